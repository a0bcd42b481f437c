// A convolution with the batch statistics of its output, and its gradient through normalization, shortcut and relu, as
// calls from XLA. An image is worked on as a whole: what lies between input and output stays in cache.
//
// The result is the same, bit by bit, on any number of threads: see groups.h.

#include "frame.h"
#include "fronts.h"
#include "gemm.h"
#include "groups.h"
#include "threads.h"

// x: shape of the input, y: of the output.
static Geometry make_geometry(const XLA_FFI_CallFrame* frame, const int64_t* x, const int64_t* y) {
  Geometry g = {.batch = x[0], .height = x[1], .width = x[2], .channels = x[3],
                .rows = y[1], .cols = y[2], .features = y[3],
                .kernel = attribute(frame, "kernel"), .stride = attribute(frame, "stride"),
                .dilation = attribute(frame, "dilation"), .padding = attribute(frame, "padding"),
                .depthwise = attribute(frame, "depthwise")};
  return with_sizes(g);
}

static void make_windows(const Geometry* g, const STORED* x, const REAL* taps, REAL* image, REAL* windows) {
  pad_image(g, x, g->channels, image);
  if (g->depthwise)
    depthwise(g, image, taps, windows);
  else
    unfold(g, image, windows);
}

// --- Forward: y = windows(x) matrix, with the mean and variance of each feature or followed by gain, offset and relu --

typedef struct {
  Geometry g;
  int has_shortcut;
  const STORED* x;
  const REAL *taps, *matrix, *affine;  // affine: gain, offset
  STORED* y;
  double* moments;  // of each group: mean, then sum of squared deviations; or NULL
} Forward;

// Copies an image's output out of scratch and merges its moments into the group's, as Chan et al. (1983) do.
static void write_output(const Geometry* g, const REAL* from, STORED* y, REAL* sums, double* moments, int64_t earlier) {
  REAL* squares = sums + g->feature_width;
  for (int64_t f = 0; f < g->feature_width; f += LANES) {
    const Vector first = load(from + f);  // from the first position: no cancellation
    Vector sum = {0}, square = {0};
    for (int64_t p = 0; p < g->positions; p++) {
      const Vector value = load(from + p * g->feature_width + f), shifted = value - first;
      sum += shifted;
      square += shifted * shifted;
    }
    store(sums + f, sum);
    store(squares + f, square);
  }
  if (g->features == g->feature_width)
    write_row(y, from, g->positions * g->features);
  else
    for (int64_t p = 0; p < g->positions; p++)
      write_row(y + p * g->features, from + p * g->feature_width, g->features);
  const double count = g->positions, total = count + earlier;
  for (int64_t f = 0; f < g->features; f++) {
    const double shift = sums[f] / count, delta = from[f] + shift - moments[f];
    moments[f] += delta * count / total;
    moments[g->features + f] += squares[f] - sums[f] * shift + delta * delta * earlier * count / total;
  }
}

// y = relu(gain * from + offset [+ x]); a NaN stays one.
static void write_relu(const Forward* f, const REAL* from, const STORED* x, STORED* y) {
  const Geometry* g = &f->g;
  const REAL *gain = f->affine, *offset = gain + g->features;
  for (int64_t p = 0; p < g->positions; p++, from += g->feature_width, x += g->features, y += g->features) {
    STORED* restrict to = y;
    if (f->has_shortcut)
      for (int64_t i = 0; i < g->features; i++) {
        const REAL value = from[i] * gain[i] + offset[i] + read_one(x[i]);
        to[i] = write_one(value < 0 ? 0 : value);
      }
    else
      for (int64_t i = 0; i < g->features; i++) {
        const REAL value = from[i] * gain[i] + offset[i];
        to[i] = write_one(value < 0 ? 0 : value);
      }
  }
}

static void forward_group(void* context, int64_t group) {
  const Forward* f = context;
  const Geometry* g = &f->g;
  REAL* image = scratch(g->image + g->positions * (g->depth_width + g->feature_width) + 2 * g->feature_width);
  REAL* windows = image + g->image;
  REAL* out = windows + g->positions * g->depth_width;
  REAL* sums = out + g->positions * g->feature_width;
  int64_t earlier = 0;
  for (int64_t n = first_image(group, g->batch); n < first_image(group + 1, g->batch); n++, earlier += g->positions) {
    const STORED* x = f->x + n * g->height * g->width * g->channels;
    STORED* y = f->y + n * g->positions * g->features;
    make_windows(g, x, f->taps, image, windows);
    const REAL* rows = pair_along(windows, g->positions, g->depth, g->depth_width, windows);
    gemm(g->positions, g->feature_width, g->depth, rows, g->depth_width, 1, f->matrix, g->feature_width, out, g->feature_width, 0);
    if (f->moments)
      write_output(g, out, y, sums, f->moments + group * 2 * g->features, earlier);
    else
      write_relu(f, out, x, y);
  }
}

// Runs forward_group for all groups, with weights laid out for it.
static void run_forward(const XLA_FFI_CallFrame* frame, Forward* f) {
  const Geometry* g = &f->g;
  REAL* taps = widen(argument(frame, 1), g->kernel * g->kernel, g->channels, g->pixel);
  REAL* matrix = widen(argument(frame, 2), g->depth, g->features, g->feature_width);
  f->x = images(frame, 0), f->y = result_images(frame, 0), f->taps = taps;
  f->matrix = pair_across(matrix, g->depth, g->feature_width, matrix);
  parallel(frame, min(GROUPS, g->batch), forward_group, f);
  free(matrix), free(taps);
}

// (x, taps, matrix, affine) -> relu(gain * y + offset), plus x before relu where the attribute `shortcut` asks for it
XLA_FFI_Error* block_apply(XLA_FFI_CallFrame* frame) {
  if (asks_version(frame)) return NULL;
  Forward f = {make_geometry(frame, argument_shape(frame, 0), result_shape(frame, 0)), attribute(frame, "shortcut")};
  f.affine = argument(frame, 3);
  run_forward(frame, &f);
  return NULL;
}

// (x, taps, matrix) -> (y, moments: mean and variance)
XLA_FFI_Error* block_forward(XLA_FFI_CallFrame* frame) {
  if (asks_version(frame)) return NULL;
  Forward f = {make_geometry(frame, argument_shape(frame, 0), result_shape(frame, 0))};
  const Geometry* g = &f.g;
  const int64_t groups = min(GROUPS, g->batch), features = g->features;
  f.moments = zeros(groups * 2 * features, sizeof(double));
  run_forward(frame, &f);
  for (int64_t i = 0; i < features; i++) {
    double mean = 0, squares = 0, earlier = 0;
    for (int64_t group = 0; group < groups; group++) {
      const double* moments = f.moments + group * 2 * features;
      const double count = (first_image(group + 1, g->batch) - first_image(group, g->batch)) * g->positions;
      const double delta = moments[i] - mean, total = earlier + count;
      mean += delta * count / total;
      squares += moments[features + i] + delta * delta * earlier * count / total;
      earlier = total;
    }
    result(frame, 1)[i] = mean;
    result(frame, 1)[features + i] = squares / earlier;
  }
  free(f.moments);
  return NULL;
}

// --- Backward through relu: grad where y * gain + offset + shortcut > 0 ---------------------------------------------

typedef struct {
  int64_t batch, positions, features;
  const STORED *grad, *y, *shortcut;
  const REAL* affine;  // gain, offset, mean
  double* sums;        // of each group: masked grad, masked grad * (y - mean)
} Reduction;

INLINE REAL masked(REAL grad, REAL y, REAL gain, REAL offset, REAL shortcut) {
  return y * gain + offset + shortcut > 0 ? grad : 0;
}

// One vector of features of one image: its sums, added to `sums`.
INLINE void reduce_lanes(const Reduction* r, int has_shortcut, int64_t first, int64_t f, double* sums) {
  const int64_t features = r->features;
  const Vector gain = load(r->affine + f), offset = load(r->affine + features + f), mean = load(r->affine + 2 * features + f);
  Vector plain = {0}, product = {0};
  for (int64_t at = first + f; at < first + r->positions * features; at += features) {
    const Vector y = read(r->y + at);
    Vector input = y * gain + offset;
    if (has_shortcut) input += read(r->shortcut + at);
    const Vector grad = where_positive(input, read(r->grad + at));
    plain += grad;
    product += grad * (y - mean);
  }
  for (int64_t i = 0; i < LANES; i++) sums[f + i] += plain[i], sums[features + f + i] += product[i];
}

// The same for the feature f alone.
static void reduce_one(const Reduction* r, int64_t first, int64_t f, double* sums) {
  const int64_t features = r->features;
  const REAL gain = r->affine[f], offset = r->affine[features + f], mean = r->affine[2 * features + f];
  REAL plain = 0, product = 0;
  for (int64_t at = first + f; at < first + r->positions * features; at += features) {
    const REAL y = read_one(r->y[at]);
    const REAL grad = masked(read_one(r->grad[at]), y, gain, offset, r->shortcut ? read_one(r->shortcut[at]) : 0);
    plain += grad, product += grad * (y - mean);
  }
  sums[f] += plain, sums[features + f] += product;
}

static void reduce_group(void* context, int64_t group) {
  const Reduction* r = context;
  double* sums = r->sums + group * 2 * r->features;
  for (int64_t n = first_image(group, r->batch); n < first_image(group + 1, r->batch); n++) {
    const int64_t first = n * r->positions * r->features;
    int64_t f = 0;
    for (; f + LANES <= r->features; f += LANES)
      if (r->shortcut)
        reduce_lanes(r, 1, first, f, sums);
      else
        reduce_lanes(r, 0, first, f, sums);
    for (; f < r->features; f++) reduce_one(r, first, f, sums);
  }
}

// (grad, y[, shortcut], affine) -> (sums of masked grad and of masked grad * (y - mean))
XLA_FFI_Error* relu_sums(XLA_FFI_CallFrame* frame) {
  if (asks_version(frame)) return NULL;
  const int64_t* shape = argument_shape(frame, 1);
  Reduction r = {shape[0], shape[1] * shape[2], shape[3], images(frame, 0), images(frame, 1),
                 frame->args.size > 3 ? images(frame, 2) : NULL, argument(frame, frame->args.size - 1)};
  const int64_t groups = min(GROUPS, r.batch);
  r.sums = zeros(groups * 2 * r.features, sizeof(double));
  parallel(frame, groups, reduce_group, &r);
  for (int64_t f = 0; f < 2 * r.features; f++) {
    double sum = 0;
    for (int64_t group = 0; group < groups; group++) sum += r.sums[group * 2 * r.features + f];
    result(frame, 0)[f] = sum;
  }
  free(r.sums);
  return NULL;
}

// --- Backward through normalization and convolution -----------------------------------------------------------------

typedef struct {
  Geometry g, transposed;
  int has_shortcut, wants_x, gathers;
  const STORED *grad, *y, *x;
  const REAL *affine, *taps, *reversed, *turned;  // affine: gain, offset; then the gradient of y as a, b, c
  STORED* x_grad;
  REAL* sums;  // of each group: gradient of the matrix, then of the taps
} Backward;

// Gradient of y = a * masked grad + b * y + c, into scratch.
static void normalization_backward(const Backward* b, int64_t n, REAL* to) {
  const Geometry* g = &b->g;
  const int64_t features = g->features;
  const REAL *gain = b->affine, *offset = gain + features, *scale = offset + features, *slope = scale + features,
             *constant = slope + features;
  const int64_t first = n * g->positions * features;
  for (int64_t p = 0; p < g->positions; p++, to += g->feature_width) {
    const int64_t at = first + p * features;
    const STORED *grad = b->grad + at, *values = b->y + at, *shortcut = b->x + at;
    REAL* restrict row = to;
    if (b->has_shortcut)
      for (int64_t f = 0; f < features; f++) {
        const REAL y = read_one(values[f]), kept = masked(read_one(grad[f]), y, gain[f], offset[f], read_one(shortcut[f]));
        row[f] = scale[f] * kept + slope[f] * y + constant[f];
      }
    else
      for (int64_t f = 0; f < features; f++) {
        const REAL y = read_one(values[f]), kept = masked(read_one(grad[f]), y, gain[f], offset[f], 0);
        row[f] = scale[f] * kept + slope[f] * y + constant[f];
      }
    for (int64_t f = features; f < g->feature_width; f++) row[f] = 0;
  }
}

// The gradient of an image out of scratch, its lines so far apart, plus what came by the shortcut.
static void write_x_grad(const Backward* b, int64_t n, const REAL* image_grad, int64_t line) {
  const Geometry* g = &b->g;
  const int64_t c = g->channels, first = n * g->height * g->width * c;
  const REAL *gain = b->affine, *offset = gain + c;  // of as many features as channels where there is a shortcut
  for (int64_t i = 0; i < g->height; i++)
    for (int64_t j = 0; j < g->width; j++) {
      const REAL* from = image_grad + i * line + j * g->pixel;
      const int64_t at = first + (i * g->width + j) * c;
      STORED* restrict to = b->x_grad + at;
      const STORED *grad = b->grad + at, *y = b->y + at, *x = b->x + at;
      if (b->has_shortcut)
        for (int64_t f = 0; f < c; f++)
          to[f] = write_one(from[f] + masked(read_one(grad[f]), read_one(y[f]), gain[f], offset[f], read_one(x[f])));
      else
        write_row(to, from, c);
    }
}

// x's gradient of image n, from that of its windows; image_grad: scratch.
static void windows_backward(const Backward* b, int64_t n, const REAL* windows_grad, REAL* image_grad) {
  const Geometry* g = &b->g;
  if (b->gathers) {
    REAL* padded_grad = image_grad + g->height * g->width * g->pixel;
    pad_scratch(&b->transposed, windows_grad, padded_grad);
    depthwise(&b->transposed, padded_grad, b->reversed, image_grad);
    write_x_grad(b, n, image_grad, g->width * g->pixel);
    return;
  }
  memset(image_grad, 0, g->image * sizeof(REAL));
  if (g->depthwise)
    depthwise_scatter(g, b->taps, windows_grad, image_grad);
  else
    unfold_backward(g, windows_grad, image_grad);
  write_x_grad(b, n, image_grad + g->padding * (g->line + g->pixel), g->line);
}

static void backward_group(void* context, int64_t group) {
  const Backward* b = context;
  const Geometry* g = &b->g;
  const int64_t windows_size = g->positions * g->depth_width;
  const int64_t x_size = b->gathers ? g->height * g->width * g->pixel + b->transposed.image : g->image;
  const int64_t y_size = g->positions * g->feature_width;
  REAL* image = scratch(g->image + 2 * windows_size + 2 * y_size + x_size);
  REAL* windows = image + g->image;
  REAL* y_grad = windows + windows_size;
  REAL* y_pairs = y_grad + y_size;
  REAL* windows_grad = y_pairs + y_size;
  REAL* image_grad = windows_grad + windows_size;
  REAL* matrix_grad = b->sums + group * (g->depth * g->feature_width + g->kernel * g->kernel * g->pixel);
  REAL* taps_grad = matrix_grad + g->depth * g->feature_width;
  for (int64_t n = first_image(group, g->batch); n < first_image(group + 1, g->batch); n++) {
    make_windows(g, b->x + n * g->height * g->width * g->channels, b->taps, image, windows);
    normalization_backward(b, n, y_grad);
    const REAL* columns = pair_across(windows, g->positions, g->depth_width, windows);
    gemm(g->depth, g->feature_width, g->positions, columns, 1, g->depth_width,
         pair_across(y_grad, g->positions, g->feature_width, y_pairs), g->feature_width, matrix_grad, g->feature_width, 1);
    if (!b->wants_x && !g->depthwise) continue;
    const REAL* rows = pair_along(y_grad, g->positions, g->features, g->feature_width, y_grad);
    gemm(g->positions, g->depth_width, g->features, rows, g->feature_width, 1, b->turned, g->depth_width, windows_grad,
         g->depth_width, 0);
    if (g->depthwise) taps_backward(g, image, windows_grad, taps_grad);
    if (b->wants_x) windows_backward(b, n, windows_grad, image_grad);
  }
}

// (grad, y, x, affine, taps, matrix) -> (gradients of the matrix, the taps and, where the attribute asks for it, x)
XLA_FFI_Error* block_backward(XLA_FFI_CallFrame* frame) {
  if (asks_version(frame)) return NULL;
  Backward b = {.g = make_geometry(frame, argument_shape(frame, 2), argument_shape(frame, 1)),
                .has_shortcut = attribute(frame, "shortcut"), .wants_x = frame->rets.size > 2,
                .grad = images(frame, 0), .y = images(frame, 1), .x = images(frame, 2), .affine = argument(frame, 3)};
  const Geometry* g = &b.g;
  b.transposed = make_transposed(g);
  b.gathers = g->depthwise && g->stride == 1 && b.transposed.padding >= 0;
  const int64_t groups = min(GROUPS, g->batch), taps_count = g->kernel * g->kernel;
  const int64_t apart = g->depth * g->feature_width + taps_count * g->pixel;
  REAL* taps = widen(argument(frame, 4), taps_count, g->channels, g->pixel);
  REAL* turned = transpose(argument(frame, 5), g->depth, g->features, g->depth_width);
  REAL* reversed = reverse(taps, taps_count, g->pixel);
  b.taps = taps, b.reversed = reversed, b.turned = pair_across(turned, g->features, g->depth_width, turned);
  b.x_grad = b.wants_x ? result_images(frame, 2) : NULL;
  b.sums = zeros(groups * apart, sizeof(REAL));
  parallel(frame, groups, backward_group, &b);
  add_groups(result(frame, 0), b.sums, groups, apart, g->depth, g->features, g->feature_width);
  add_groups(result(frame, 1), b.sums + g->depth * g->feature_width, groups, apart, taps_count, g->channels, g->pixel);
  free(b.sums), free(reversed), free(turned), free(taps);
  return NULL;
}
