// What a layer does to an image before its matrix product: the k x k windows of every position, either summed channel by
// channel (depthwise) or laid out in a row (unfold). Each front has a backward that adds into the gradient of the image.
//
// Image in scratch: (h + 2 padding) x (w + 2 padding) pixels of `width` numbers, zeros around it.
// Windows: (rows * cols) x depth_width numbers; taps run row by row.
#pragma once

#include "stored.h"

typedef struct {
  int64_t batch, height, width, channels;  // of the input
  int64_t kernel, stride, dilation, padding;
  int64_t rows, cols, features;  // of the output
  int64_t depth;                 // inner size of the product: channels, or kernel * kernel * channels
  int depthwise;
  // Derived: sizes in scratch memory.
  int64_t pixel, line, image, positions, depth_width, feature_width;
} Geometry;

enum { SPAN = 8 };

// g with what follows from the rest of it.
static Geometry with_sizes(Geometry g) {
  g.depth = g.depthwise ? g.channels : g.kernel * g.kernel * g.channels;
  g.pixel = g.depthwise ? padded(g.channels) : g.channels;
  g.line = (g.width + 2 * g.padding) * g.pixel;
  g.image = (g.height + 2 * g.padding) * g.line;
  g.positions = g.rows * g.cols;
  g.depth_width = padded(g.depth);
  g.feature_width = padded(g.features);
  return g;
}

INLINE int64_t tap_offset(const Geometry* g, int64_t i, int64_t j) { return i * g->dilation * g->line + j * g->dilation * g->pixel; }

INLINE void copy_in(REAL* to, const void* from, int64_t at, int64_t count, int stored) {
  if (stored)
    read_row(to, (const STORED*)from + at, count);
  else
    memcpy(to, (const REAL*)from + at, count * sizeof(REAL));
}

// x (h, w, c), STORED or REAL, -> the image in scratch; x's positions lie `apart` numbers from each other.
INLINE void pad(const Geometry* g, const void* x, int stored, int64_t apart, REAL* image) {
  const int64_t edge = g->padding * g->pixel;
  memset(image, 0, (g->padding * g->line) * sizeof(REAL));
  memset(image + g->image - g->padding * g->line, 0, (g->padding * g->line) * sizeof(REAL));
  for (int64_t y = 0, at = 0; y < g->height; y++, at += g->width * apart) {
    REAL* line = image + (y + g->padding) * g->line;
    memset(line, 0, edge * sizeof(REAL));
    if (g->pixel == g->channels && apart == g->channels) {
      copy_in(line + edge, x, at, g->width * g->channels, stored);
    } else {
      for (int64_t i = 0; i < g->width; i++) {
        REAL* to = line + edge + i * g->pixel;
        copy_in(to, x, at + i * apart, g->channels, stored);
        memset(to + g->channels, 0, (g->pixel - g->channels) * sizeof(REAL));
      }
    }
    memset(line + edge + g->width * g->pixel, 0, edge * sizeof(REAL));
  }
}

static void pad_image(const Geometry* g, const STORED* x, int64_t apart, REAL* image) { pad(g, x, 1, apart, image); }
static void pad_scratch(const Geometry* g, const REAL* x, REAL* image) { pad(g, x, 0, g->channels, image); }

// 3 x 3: the taps stay in registers.
static void depthwise_small(const Geometry* g, const REAL* image, const REAL* kernel, REAL* windows) {
  enum { K = 3 };
  for (int64_t c = 0; c < g->pixel; c += LANES) {
    Vector taps[K * K];
#pragma GCC unroll 9
    for (int64_t t = 0; t < K * K; t++) taps[t] = load(kernel + t * g->pixel + c);
    for (int64_t y = 0; y < g->rows; y++) {
      const REAL* line = image + y * g->stride * g->line + c;
      REAL* out = windows + y * g->cols * g->pixel + c;
      for (int64_t x = 0; x < g->cols; x++, line += g->stride * g->pixel, out += g->pixel) {
        Vector sum = {0};
#pragma GCC unroll 3
        for (int64_t i = 0; i < K; i++)
#pragma GCC unroll 3
          for (int64_t j = 0; j < K; j++) sum += load(line + tap_offset(g, i, j)) * taps[i * K + j];
        store(out, sum);
      }
    }
  }
}

// One vector of channels at `span` neighbouring positions, a constant: their sums stay in registers, and a tap is read once.
INLINE void depthwise_span(int span, const Geometry* g, const REAL* corner, const REAL* kernel, REAL* out) {
  Vector sums[SPAN] = {0};
  for (int64_t i = 0; i < g->kernel; i++)
    for (int64_t j = 0; j < g->kernel; j++, kernel += g->pixel) {
      const REAL* from = corner + tap_offset(g, i, j);
      const Vector tap = load(kernel);
#pragma GCC unroll 8
      for (int n = 0; n < span; n++) sums[n] += load(from + n * g->stride * g->pixel) * tap;
    }
#pragma GCC unroll 8
  for (int n = 0; n < span; n++) store(out + n * g->pixel, sums[n]);
}

static void depthwise_large(const Geometry* g, const REAL* image, const REAL* kernel, REAL* windows) {
  for (int64_t c = 0; c < g->pixel; c += LANES)
    for (int64_t y = 0; y < g->rows; y++) {
      const REAL* line = image + y * g->stride * g->line + c;
      REAL* out = windows + y * g->cols * g->pixel + c;
      int64_t x = 0;
      for (; x + SPAN <= g->cols; x += SPAN)
        depthwise_span(SPAN, g, line + x * g->stride * g->pixel, kernel + c, out + x * g->pixel);
      for (; x < g->cols; x++) depthwise_span(1, g, line + x * g->stride * g->pixel, kernel + c, out + x * g->pixel);
    }
}

// kernel: k * k rows of `pixel` numbers.
static void depthwise(const Geometry* g, const REAL* image, const REAL* kernel, REAL* windows) {
  (g->kernel == 3 ? depthwise_small : depthwise_large)(g, image, kernel, windows);
}

// Row i and the `rows` - 1 after it of a k x k kernel: their sums stay in registers where both are constants.
INLINE void taps_backward_of(int64_t k, int64_t i, int64_t rows, Vector* sums, const Geometry* g, const REAL* image,
                             const REAL* windows_grad, REAL* kernel_grad) {
  kernel_grad += i * k * g->pixel;
  for (int64_t c = 0; c < g->pixel; c += LANES) {
#pragma GCC unroll 9
    for (int64_t t = 0; t < rows * k; t++) sums[t] = load(kernel_grad + t * g->pixel + c);
    for (int64_t y = 0; y < g->rows; y++) {
      const REAL* line = image + y * g->stride * g->line + tap_offset(g, i, 0) + c;
      const REAL* grad = windows_grad + y * g->cols * g->pixel + c;
      for (int64_t x = 0; x < g->cols; x++, line += g->stride * g->pixel, grad += g->pixel) {
        const Vector value = load(grad);
#pragma GCC unroll 9
        for (int64_t r = 0; r < rows; r++)
#pragma GCC unroll 9
          for (int64_t j = 0; j < k; j++) sums[r * k + j] += load(line + tap_offset(g, r, j)) * value;
      }
    }
#pragma GCC unroll 9
    for (int64_t t = 0; t < rows * k; t++) store(kernel_grad + t * g->pixel + c, sums[t]);
  }
}

// Adds to kernel_grad.
static void taps_backward(const Geometry* g, const REAL* image, const REAL* windows_grad, REAL* kernel_grad) {
  Vector taps[g->kernel], nine[9], seven[7];
  if (g->kernel == 3)
    taps_backward_of(3, 0, 3, nine, g, image, windows_grad, kernel_grad);
  else
    for (int64_t i = 0; i < g->kernel; i++)
      if (g->kernel == 7)
        taps_backward_of(7, i, 1, seven, g, image, windows_grad, kernel_grad);
      else
        taps_backward_of(g->kernel, i, 1, taps, g, image, windows_grad, kernel_grad);
}

// Adds to image_grad: each gradient is scattered to the pixels its window saw.
static void depthwise_scatter(const Geometry* g, const REAL* kernel, const REAL* windows_grad, REAL* image_grad) {
  const int64_t k = g->kernel, step = g->stride * g->pixel;
  for (int64_t y = 0; y < g->rows; y++)
    for (int64_t i = 0; i < k; i++)
      for (int64_t j = 0; j < k; j++) {
        REAL* to = image_grad + y * g->stride * g->line + tap_offset(g, i, j);
        const REAL *tap = kernel + (i * k + j) * g->pixel, *grad = windows_grad + y * g->cols * g->pixel;
        for (int64_t c = 0; c < g->pixel; c += LANES)
          for (int64_t x = 0; x < g->cols; x++)
            store(to + x * step + c, load(to + x * step + c) + load(grad + x * g->pixel + c) * load(tap + c));
      }
}

// A stride-1 depthwise convolution's gradient of its input as such a convolution of the output's gradient, of the same taps
// in reverse: quicker than to scatter. Its padding may come out negative: then there is none.
static Geometry make_transposed(const Geometry* g) {
  Geometry t = *g;
  t.channels = g->pixel, t.height = g->rows, t.width = g->cols, t.rows = g->height, t.cols = g->width;
  t.padding = g->dilation * (g->kernel - 1) - g->padding;
  t.line = (t.width + 2 * t.padding) * t.pixel;
  t.image = (t.height + 2 * t.padding) * t.line;
  return t;
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
