// What a layer does to an image before its matrix product: the k x k windows of every position, either summed channel by
// channel (depthwise) or laid out in a row (unfold). Each front has a backward that adds into the gradient of the image.
//
// Image in scratch: (h + 2 padding) x (w + 2 padding) pixels of `width` numbers, zeros around it.
// Windows: (rows * cols) x depth_width numbers; taps run row by row.
#pragma once

#include "vectors.h"

typedef struct {
  int64_t batch, height, width, channels;  // of the input
  int64_t kernel, stride, dilation, padding;
  int64_t rows, cols, features;  // of the output
  int64_t depth;                 // inner size of the product: channels, or kernel * kernel * channels
  int depthwise;
  // Derived: sizes in scratch memory.
  int64_t pixel, line, image, positions, depth_width, feature_width;
} Geometry;

INLINE int64_t tap_offset(const Geometry* g, int64_t i, int64_t j) { return i * g->dilation * g->line + j * g->dilation * g->pixel; }

// x (h, w, c) -> the image in scratch.
static void pad_image(const Geometry* g, const REAL* x, REAL* image) {
  const int64_t edge = g->padding * g->pixel;
  memset(image, 0, (g->padding * g->line) * sizeof(REAL));
  memset(image + g->image - g->padding * g->line, 0, (g->padding * g->line) * sizeof(REAL));
  for (int64_t y = 0; y < g->height; y++) {
    REAL* line = image + (y + g->padding) * g->line;
    memset(line, 0, edge * sizeof(REAL));
    if (g->pixel == g->channels) {
      memcpy(line + edge, x, g->width * g->channels * sizeof(REAL));
    } else {
      for (int64_t i = 0; i < g->width; i++) {
        REAL* to = line + edge + i * g->pixel;
        memcpy(to, x + i * g->channels, g->channels * sizeof(REAL));
        memset(to + g->channels, 0, (g->pixel - g->channels) * sizeof(REAL));
      }
    }
    memset(line + edge + g->width * g->pixel, 0, edge * sizeof(REAL));
    x += g->width * g->channels;
  }
}

INLINE void depthwise_of(int64_t k, const Geometry* g, const REAL* image, const REAL* kernel, REAL* windows) {
  for (int64_t c = 0; c < g->pixel; c += LANES)
    for (int64_t y = 0; y < g->rows; y++) {
      const REAL* line = image + y * g->stride * g->line + c;
      REAL* out = windows + y * g->cols * g->pixel + c;
      for (int64_t x = 0; x < g->cols; x++, line += g->stride * g->pixel, out += g->pixel) {
        Vector sum = {0};
#pragma GCC unroll 9
        for (int64_t i = 0; i < k; i++)
#pragma GCC unroll 9
          for (int64_t j = 0; j < k; j++)
            sum += load(line + tap_offset(g, i, j)) * load(kernel + (i * k + j) * g->pixel + c);
        store(out, sum);
      }
    }
}

// kernel: k * k rows of `pixel` numbers.
static void depthwise(const Geometry* g, const REAL* image, const REAL* kernel, REAL* windows) {
  if (g->kernel == 3)
    depthwise_of(3, g, image, kernel, windows);
  else
    depthwise_of(g->kernel, g, image, kernel, windows);
}

// Adds to kernel_grad, and to image_grad where it is given.
static void depthwise_backward(const Geometry* g, const REAL* image, const REAL* kernel, const REAL* windows_grad,
                               REAL* kernel_grad, REAL* image_grad) {
  const int64_t k = g->kernel, step = g->stride * g->pixel;
  for (int64_t y = 0; y < g->rows; y++)
    for (int64_t i = 0; i < k; i++)
      for (int64_t j = 0; j < k; j++) {
        const int64_t start = y * g->stride * g->line + tap_offset(g, i, j);
        const int64_t tap = (i * k + j) * g->pixel;
        const REAL* grad = windows_grad + y * g->cols * g->pixel;
        for (int64_t c = 0; c < g->pixel; c += LANES) {
          Vector sum = load(kernel_grad + tap + c);
          const Vector weight = load(kernel + tap + c);
          const REAL* from = image + start + c;
          REAL* to = image_grad + start + c;
          if (image_grad)
            for (int64_t x = 0; x < g->cols; x++) {
              const Vector value = load(grad + x * g->pixel + c);
              sum += load(from + x * step) * value;
              store(to + x * step, load(to + x * step) + value * weight);
            }
          else
            for (int64_t x = 0; x < g->cols; x++) sum += load(from + x * step) * load(grad + x * g->pixel + c);
          store(kernel_grad + tap + c, sum);
        }
      }
}

static void unfold(const Geometry* g, const REAL* image, REAL* windows) {
  const int joined = g->dilation == 1;  // the taps of a kernel's row lie side by side
  const int64_t run = joined ? g->kernel * g->channels : g->channels;
  for (int64_t y = 0; y < g->rows; y++)
    for (int64_t x = 0; x < g->cols; x++, windows += g->depth_width) {
      const REAL* corner = image + y * g->stride * g->line + x * g->stride * g->pixel;
      REAL* to = windows;
      for (int64_t i = 0; i < g->kernel; i++)
        for (int64_t j = 0; j < (joined ? 1 : g->kernel); j++, to += run)
          memcpy(to, corner + tap_offset(g, i, j), run * sizeof(REAL));
    }
}

// Adds to image_grad.
static void unfold_backward(const Geometry* g, const REAL* windows_grad, REAL* image_grad) {
  for (int64_t y = 0; y < g->rows; y++)
    for (int64_t x = 0; x < g->cols; x++, windows_grad += g->depth_width) {
      REAL* corner = image_grad + y * g->stride * g->line + x * g->stride * g->pixel;
      const REAL* from = windows_grad;
      for (int64_t i = 0; i < g->kernel; i++)
        for (int64_t j = 0; j < g->kernel; j++, from += g->channels) {
          REAL* to = corner + tap_offset(g, i, j);
          for (int64_t c = 0; c < g->channels; c++) to[c] += from[c];
        }
    }
}
