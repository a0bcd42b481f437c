// A gated layer of gated.py and its gradient, as calls from XLA. An image's windows are made as a whole; then CHUNK positions at
// a time go through norm, products and gate, and what lies between stays in cache. Backward computes it anew.
//
// Arguments: x, the three windows' kernels (k, k, channels), their biases, conv_in (c, 2 h) and its bias, conv_out (h, features)
// and its bias, and skip (c) where x is added. The norm has no scale and no bias: they are part of conv_in.
// The result is the same, bit by bit, on any number of threads: see groups.h.

#include <math.h>

#include "frame.h"
#include "fronts.h"
#include "gemm.h"
#include "groups.h"
#include "tanhexp.h"
#include "threads.h"

enum { WINDOWS = 3, CHUNK = 48 };  // chunk: positions; a multiple of every TILE_ROWS
enum { X, KERNELS, BIASES = KERNELS + WINDOWS, CONV_IN = BIASES + WINDOWS, IN_BIAS, CONV_OUT, OUT_BIAS, SKIP };
static const REAL EPSILON = 1e-5;  // norm.py's

// --- Shapes, and weights laid out for the loops ---------------------------------------------------------------------

typedef struct {
  Geometry g, transposed;  // of a stride of 1 that keeps the size
  int64_t first;           // channel of x
  REAL *taps, *reversed;
  const REAL* bias;
} Window;

typedef struct {
  int64_t batch, positions, channels, hidden, features;
  int64_t width, hidden_width, feature_width;  // the same in whole vectors
  Window windows[WINDOWS];
  Geometry average;  // what the last window's part goes through before it
  REAL *box, *conv_in, *in_bias, *conv_out;
  REAL *in_turned, *out_turned;  // for the gradient
  const STORED* x;
  const REAL *out_bias, *skip;
} Layer;

static Geometry make_geometry(const int64_t* x, int64_t channels, int64_t kernel, int64_t dilation) {
  Geometry g = {.batch = x[0], .height = x[1], .width = x[2], .rows = x[1], .cols = x[2], .channels = channels,
                .features = channels, .kernel = kernel, .stride = 1, .dilation = dilation,
                .padding = dilation * (kernel - 1) / 2, .depthwise = 1};
  return with_sizes(g);
}

static Window make_window(const XLA_FFI_CallFrame* frame, int64_t at, int64_t number, int64_t first) {
  static const char* const DILATIONS[] = {"dilation_0", "dilation_1", "dilation_2"};
  const int64_t* kernel = argument_shape(frame, at + KERNELS + number);
  Window w = {make_geometry(argument_shape(frame, at), kernel[2], kernel[0], attribute(frame, DILATIONS[number]))};
  const int64_t count = kernel[0] * kernel[0], pixel = w.g.pixel;
  w.transposed = make_transposed(&w.g);
  w.first = first;
  w.taps = widen(argument(frame, at + KERNELS + number), count, kernel[2], pixel);
  w.reversed = reverse(w.taps, count, pixel);
  w.bias = argument(frame, at + BIASES + number);
  return w;
}

// at: the number of the argument x.
static Layer make_layer(const XLA_FFI_CallFrame* frame, int64_t at) {
  const int64_t *x = argument_shape(frame, at), *out = argument_shape(frame, at + CONV_OUT);
  Layer l = {.batch = x[0], .positions = x[1] * x[2], .channels = x[3], .hidden = out[0], .features = out[1]};
  l.width = padded(l.channels), l.hidden_width = padded(l.hidden), l.feature_width = padded(l.features);
  int64_t first = l.channels;
  for (int64_t n = WINDOWS; n-- > 0;) {
    first -= argument_shape(frame, at + KERNELS + n)[2];
    l.windows[n] = make_window(frame, at, n, first);
  }
  const Geometry* last = &l.windows[WINDOWS - 1].g;
  l.average = make_geometry(x, last->channels, attribute(frame, "pool"), 1);
  const int64_t count = l.average.kernel * l.average.kernel;
  l.box = zeros(count * last->pixel, sizeof(REAL));
  for (int64_t i = 0; i < count * last->pixel; i++) l.box[i] = (REAL)1 / count;
  l.conv_in = widen(argument(frame, at + CONV_IN), 2 * l.channels, l.hidden, l.hidden_width);
  l.in_bias = widen(argument(frame, at + IN_BIAS), 2, l.hidden, l.hidden_width);
  l.conv_out = widen(argument(frame, at + CONV_OUT), l.hidden, l.features, l.feature_width);
  l.in_turned = transpose(l.conv_in, l.channels, 2 * l.hidden_width, l.width);
  l.out_turned = transpose(argument(frame, at + CONV_OUT), l.hidden, l.features, l.hidden_width);
  pair_across(l.conv_in, l.channels, 2 * l.hidden_width, l.conv_in);
  pair_across(l.conv_out, l.hidden, l.feature_width, l.conv_out);
  pair_across(l.in_turned, 2 * l.hidden_width, l.width, l.in_turned);
  pair_across(l.out_turned, l.features, l.hidden_width, l.out_turned);
  l.x = images(frame, at);
  l.out_bias = argument(frame, at + OUT_BIAS);
  l.skip = frame->args.size > at + SKIP ? argument(frame, at + SKIP) : NULL;
  return l;
}

static void free_layer(Layer* l) {
  for (int64_t n = 0; n < WINDOWS; n++) free(l->windows[n].taps), free(l->windows[n].reversed);
  free(l->box), free(l->conv_in), free(l->in_bias), free(l->conv_out), free(l->in_turned), free(l->out_turned);
}

// --- Scratch memory of an image and of a chunk ----------------------------------------------------------------------

typedef struct {
  REAL* image;                   // padded, of any window
  REAL* seen[WINDOWS];           // what the windows make of the image; backward: its gradient
  REAL *normed, *inverse;        // chunk: windows' results of mean 0 and variance 1; 1 / standard deviation
  REAL *hidden, *gated, *out;    // chunk: values, then gates; their product; the result or its gradient
  REAL *normed_grad, *part;      // backward: of a chunk; of an image's part
  REAL *first, *second;          // chunk: operands of a product in pairs, where numbers are needed as they are, too
} Scratch;

static REAL* take(REAL** from, int64_t count) {
  REAL* taken = *from;
  *from += padded(count);
  return taken;
}

static Scratch make_scratch(const Layer* l) {
  int64_t image = l->average.image, part = 0, seen = 0;
  for (int64_t n = 0; n < WINDOWS; n++) {
    const int64_t size = l->positions * l->windows[n].g.pixel;
    if (l->windows[n].g.image > image) image = l->windows[n].g.image;
    if (size > part) part = size;
    seen += size;
  }
  const int64_t wider = l->width > l->feature_width ? l->width : l->feature_width;
  const int64_t chunk = 2 * l->width + 1 + 5 * l->hidden_width + l->feature_width + wider;
  REAL* memory = scratch(image + seen + part + CHUNK * chunk);
  Scratch s = {take(&memory, image)};
  for (int64_t n = 0; n < WINDOWS; n++) s.seen[n] = take(&memory, l->positions * l->windows[n].g.pixel);
  s.normed = take(&memory, CHUNK * l->width);
  s.inverse = take(&memory, CHUNK);
  s.hidden = take(&memory, CHUNK * 2 * l->hidden_width);
  s.gated = take(&memory, CHUNK * l->hidden_width);
  s.out = take(&memory, CHUNK * l->feature_width);
  s.normed_grad = take(&memory, CHUNK * l->width);
  s.part = take(&memory, part);
  s.first = take(&memory, CHUNK * wider);
  s.second = take(&memory, CHUNK * 2 * l->hidden_width);
  return s;
}

// --- Forward --------------------------------------------------------------------------------------------------------

// The part of image n that a window sees, padded, in s->image.
static void pad_part(const Layer* l, int64_t n, int64_t number, const Scratch* s) {
  const Window* w = &l->windows[number];
  const STORED* part = l->x + n * l->positions * l->channels + w->first;
  if (number < WINDOWS - 1) {
    pad_image(&w->g, part, l->channels, s->image);
    return;
  }
  pad_image(&l->average, part, l->channels, s->image);
  depthwise(&l->average, s->image, l->box, s->part);
  Geometry whole = w->g;  // the average's rows have their zeros
  whole.channels = whole.pixel;
  pad_scratch(&whole, s->part, s->image);
}

static void look(const Layer* l, int64_t n, const Scratch* s) {
  for (int64_t number = 0; number < WINDOWS; number++) {
    pad_part(l, n, number, s);
    depthwise(&l->windows[number].g, s->image, l->windows[number].taps, s->seen[number]);
  }
}

// What the windows make of `count` positions from `first` on, normalized over channels, into s->normed.
static void normalize(const Layer* l, int64_t n, int64_t first, int64_t count, const Scratch* s) {
  const int64_t c = l->channels, passed = l->windows[0].first;
  for (int64_t p = 0; p < count; p++) {
    REAL* restrict row = s->normed + p * l->width;
    read_row(row, l->x + (n * l->positions + first + p) * c, passed);
    for (int64_t number = 0; number < WINDOWS; number++) {
      const Window* w = &l->windows[number];
      const REAL* seen = s->seen[number] + (first + p) * w->g.pixel;
      for (int64_t i = 0; i < w->g.channels; i++) row[w->first + i] = seen[i] + w->bias[i];
    }
    REAL sum = 0, squares = 0;
    for (int64_t i = 0; i < c; i++) sum += row[i];
    const REAL mean = sum / c;
    for (int64_t i = 0; i < c; i++) row[i] -= mean, squares += row[i] * row[i];
    const REAL inverse = 1 / (REAL)sqrt(squares / c + EPSILON);
    for (int64_t i = 0; i < c; i++) row[i] *= inverse;
    for (int64_t i = c; i < l->width; i++) row[i] = 0;
    s->inverse[p] = inverse;
  }
}

// value * factor, which is small where the value is far below 0, before the gate multiplies it: value * gate might overflow.
INLINE Vector active(Vector value, Vector factor) {
  Vector product = value * factor;
  KEEP(product);
  return product;
}

static void gate(const Layer* l, int64_t count, const Scratch* s) {
  const int64_t h = l->hidden_width;
  for (int64_t i = 0; i < h; i += LANES) {
    const Vector value_bias = load(l->in_bias + i), gate_bias = load(l->in_bias + h + i);
    for (int64_t p = 0; p < count; p++) {
      const REAL* hidden = s->hidden + p * 2 * h + i;
      const Vector value = load(hidden) + value_bias;
      Vector exp, factor;
      tanh_exp(value, &exp, &factor);
      store(s->gated + p * h + i, active(value, factor) * (load(hidden + h) + gate_bias));
    }
  }
}

static void forward_image(const Layer* l, int64_t n, const Scratch* s, STORED* y) {
  const int64_t h = l->hidden_width, width = l->feature_width;
  look(l, n, s);
  for (int64_t first = 0; first < l->positions; first += CHUNK) {
    const int64_t count = min(CHUNK, l->positions - first);
    normalize(l, n, first, count, s);
    const REAL* normed = pair_along(s->normed, count, l->channels, l->width, s->normed);
    gemm(count, 2 * h, l->channels, normed, l->width, 1, l->conv_in, 2 * h, s->hidden, 2 * h, 0);
    gate(l, count, s);
    const REAL* gated = pair_along(s->gated, count, l->hidden, h, s->gated);
    gemm(count, width, l->hidden, gated, h, 1, l->conv_out, width, s->out, width, 0);
    for (int64_t p = 0; p < count; p++) {
      const int64_t at = n * l->positions + first + p;
      const REAL* from = s->out + p * width;
      const STORED* x = l->x + at * l->channels;
      STORED* restrict to = y + at * l->features;
      if (l->skip)
        for (int64_t i = 0; i < l->features; i++) to[i] = write_one(from[i] + l->out_bias[i] + read_one(x[i]) * l->skip[i]);
      else
        for (int64_t i = 0; i < l->features; i++) to[i] = write_one(from[i] + l->out_bias[i]);
    }
  }
}

typedef struct {
  Layer layer;
  STORED* y;
} Forward;

static void forward_group(void* context, int64_t group) {
  const Forward* f = context;
  const Scratch s = make_scratch(&f->layer);
  for (int64_t n = first_image(group, f->layer.batch); n < first_image(group + 1, f->layer.batch); n++)
    forward_image(&f->layer, n, &s, f->y);
}

// (x, weights) -> y (b, h, w, features)
XLA_FFI_Error* gated_forward(XLA_FFI_CallFrame* frame) {
  if (asks_version(frame)) return NULL;
  Forward f = {make_layer(frame, 0), result_images(frame, 0)};
  parallel(frame, min(GROUPS, f.layer.batch), forward_group, &f);
  free_layer(&f.layer);
  return NULL;
}

// --- Backward -------------------------------------------------------------------------------------------------------

// Sums of a group, with rows of whole vectors.
typedef struct {
  REAL *taps[WINDOWS], *biases[WINDOWS], *conv_in, *in_bias, *conv_out, *out_bias, *skip;
} Sums;

typedef struct {
  Layer layer;
  const STORED* grad;
  STORED* x_grad;
  REAL* sums;
  int64_t apart;  // numbers from a group's sums to the next one's
} Backward;

static Sums make_sums(const Layer* l, REAL** memory) {
  Sums s;
  for (int64_t n = 0; n < WINDOWS; n++) {
    const Geometry* g = &l->windows[n].g;
    s.taps[n] = take(memory, g->kernel * g->kernel * g->pixel);
    s.biases[n] = take(memory, g->pixel);
  }
  s.conv_in = take(memory, l->channels * 2 * l->hidden_width);
  s.in_bias = take(memory, 2 * l->hidden_width);
  s.conv_out = take(memory, l->hidden * l->feature_width);
  s.out_bias = take(memory, l->feature_width);
  s.skip = take(memory, l->feature_width);
  return s;
}

static int64_t sums_size(const Layer* l) {
  int64_t size = (2 * l->channels + 2) * l->hidden_width + (l->hidden + 2) * l->feature_width;
  for (int64_t n = 0; n < WINDOWS; n++) size += (l->windows[n].g.kernel * l->windows[n].g.kernel + 1) * l->windows[n].g.pixel;
  return size;
}

// Adds rows of `width` numbers.
static void add_rows(const REAL* rows, int64_t count, int64_t width, REAL* to) {
  for (int64_t i = 0; i < width; i += LANES) {
    Vector sum = {0};
    for (int64_t p = 0; p < count; p++) sum += load(rows + p * width + i);
    store(to + i, load(to + i) + sum);
  }
}

// The gradient of a chunk of y, into s->out with zeros to whole vectors; what the shortcut and the last bias get of it.
static void read_grad(const Backward* b, int64_t first, int64_t count, const Scratch* s, const Sums* sums) {
  const Layer* l = &b->layer;
  for (int64_t p = 0; p < count; p++) {
    REAL* restrict row = s->out + p * l->feature_width;
    read_row(row, b->grad + (first + p) * l->features, l->features);
    for (int64_t i = l->features; i < l->feature_width; i++) row[i] = 0;
    const STORED* x = l->x + (first + p) * l->channels;
    if (l->skip)
      for (int64_t i = 0; i < l->features; i++) sums->skip[i] += row[i] * read_one(x[i]);
  }
  add_rows(s->out, count, l->feature_width, sums->out_bias);
}

// s->gated: in, the gradient of the gated product; out, the product. s->hidden: in, values and gates; out, their gradient.
static void gate_backward(const Layer* l, int64_t count, const Scratch* s) {
  const int64_t h = l->hidden_width;
  for (int64_t i = 0; i < h; i += LANES) {
    const Vector value_bias = load(l->in_bias + i), gate_bias = load(l->in_bias + h + i);
    for (int64_t p = 0; p < count; p++) {
      REAL *hidden = s->hidden + p * 2 * h + i, *gated = s->gated + p * h + i;
      const Vector value = load(hidden) + value_bias, gate = load(hidden + h) + gate_bias, grad = load(gated);
      Vector exp, factor;
      tanh_exp(value, &exp, &factor);
      const Vector slope = factor + value * exp * (1 - factor * factor), kept = active(value, factor);
      store(gated, kept * gate);
      store(hidden, grad * gate * slope);
      store(hidden + h, grad * kept);
    }
  }
}

// Writes `count` channels of x's gradient, from channel `first` of a position on, with what came by the shortcut.
static void write_x_grad(const Backward* b, int64_t position, int64_t first, int64_t count, const REAL* from) {
  const Layer* l = &b->layer;
  const int64_t at = position * l->channels + first;
  STORED* restrict to = b->x_grad + at;
  if (l->skip)
    for (int64_t i = 0; i < count; i++) to[i] = write_one(from[i] + read_one(b->grad[at + i]) * l->skip[first + i]);
  else
    write_row(to, from, count);
}

// The gradient of what the windows made of a chunk, in their places; that of what passes by them, into x's.
static void normalize_backward(const Backward* b, int64_t n, int64_t first, int64_t count, const Scratch* s) {
  const Layer* l = &b->layer;
  const int64_t c = l->channels, passed = l->windows[0].first;
  for (int64_t p = 0; p < count; p++) {
    const REAL *normed = s->normed + p * l->width, inverse = s->inverse[p];
    REAL* restrict grad = s->normed_grad + p * l->width;
    REAL sum = 0, product = 0;
    for (int64_t i = 0; i < c; i++) sum += grad[i], product += grad[i] * normed[i];
    sum /= c, product /= c;
    for (int64_t i = 0; i < c; i++) grad[i] = inverse * (grad[i] - sum - normed[i] * product);
    write_x_grad(b, n * l->positions + first + p, 0, passed, grad);
    for (int64_t number = 0; number < WINDOWS; number++) {
      const Window* w = &l->windows[number];
      REAL* seen = s->seen[number] + (first + p) * w->g.pixel;
      memcpy(seen, grad + w->first, w->g.channels * sizeof(REAL));
      for (int64_t i = w->g.channels; i < w->g.pixel; i++) seen[i] = 0;
    }
  }
}

// From the gradient of what a window made to those of its taps, its bias and its part of x.
static void window_backward(const Backward* b, int64_t n, int64_t number, const Scratch* s, const Sums* sums) {
  const Layer* l = &b->layer;
  const Window* w = &l->windows[number];
  REAL* grad = s->seen[number];
  pad_part(l, n, number, s);
  taps_backward(&w->g, s->image, grad, sums->taps[number]);
  add_rows(grad, l->positions, w->g.pixel, sums->biases[number]);
  pad_scratch(&w->transposed, grad, s->image);
  depthwise(&w->transposed, s->image, w->reversed, s->part);
  if (number == WINDOWS - 1) {  // an average is its own transpose
    Geometry whole = l->average;
    whole.channels = whole.pixel;
    pad_scratch(&whole, s->part, s->image);
    depthwise(&whole, s->image, l->box, s->part);
  }
  for (int64_t p = 0; p < l->positions; p++)
    write_x_grad(b, n * l->positions + p, w->first, w->g.channels, s->part + p * w->g.pixel);
}

static void backward_image(const Backward* b, int64_t n, const Scratch* s, const Sums* sums) {
  const Layer* l = &b->layer;
  const int64_t c = l->channels, h = l->hidden_width, width = l->feature_width;
  look(l, n, s);
  for (int64_t first = 0; first < l->positions; first += CHUNK) {
    const int64_t count = min(CHUNK, l->positions - first);
    normalize(l, n, first, count, s);
    const REAL* normed = pair_along(s->normed, count, c, l->width, s->first);
    gemm(count, 2 * h, c, normed, l->width, 1, l->conv_in, 2 * h, s->hidden, 2 * h, 0);
    read_grad(b, n * l->positions + first, count, s, sums);
    const REAL* out = pair_along(s->out, count, l->features, width, s->first);
    gemm(count, h, l->features, out, width, 1, l->out_turned, h, s->gated, h, 0);
    gate_backward(l, count, s);
    const REAL* gated = pair_across(s->gated, count, h, s->gated);
    out = pair_across(s->out, count, width, s->first);
    gemm(l->hidden, width, count, gated, 1, h, out, width, sums->conv_out, width, 1);
    normed = pair_across(s->normed, count, l->width, s->first);
    const REAL* hidden = pair_across(s->hidden, count, 2 * h, s->second);
    gemm(c, 2 * h, count, normed, 1, l->width, hidden, 2 * h, sums->conv_in, 2 * h, 1);
    add_rows(s->hidden, count, 2 * h, sums->in_bias);
    hidden = pair_along(s->hidden, count, 2 * h, 2 * h, s->hidden);
    gemm(count, l->width, 2 * h, hidden, 2 * h, 1, l->in_turned, l->width, s->normed_grad, l->width, 0);
    normalize_backward(b, n, first, count, s);
  }
  for (int64_t number = 0; number < WINDOWS; number++) window_backward(b, n, number, s, sums);
}

static void backward_group(void* context, int64_t group) {
  const Backward* b = context;
  const Scratch s = make_scratch(&b->layer);
  REAL* memory = b->sums + group * b->apart;
  const Sums sums = make_sums(&b->layer, &memory);
  for (int64_t n = first_image(group, b->layer.batch); n < first_image(group + 1, b->layer.batch); n++)
    backward_image(b, n, &s, &sums);
}

// Adds the groups' sums into the results, which are in the arguments' order.
static void write_sums(const XLA_FFI_CallFrame* frame, const Backward* b, const Sums* s) {
  const Layer* l = &b->layer;
  const int64_t groups = min(GROUPS, l->batch), apart = b->apart, c = l->channels, h = l->hidden, hidden_width = l->hidden_width;
  for (int64_t n = 0; n < WINDOWS; n++) {
    const Geometry* g = &l->windows[n].g;
    add_groups(result(frame, KERNELS + n), s->taps[n], groups, apart, g->kernel * g->kernel, g->channels, g->pixel);
    add_groups(result(frame, BIASES + n), s->biases[n], groups, apart, 1, g->channels, g->pixel);
  }
  add_groups(result(frame, CONV_IN), s->conv_in, groups, apart, 2 * c, h, hidden_width);
  add_groups(result(frame, IN_BIAS), s->in_bias, groups, apart, 2, h, hidden_width);
  add_groups(result(frame, CONV_OUT), s->conv_out, groups, apart, h, l->features, l->feature_width);
  add_groups(result(frame, OUT_BIAS), s->out_bias, groups, apart, 1, l->features, l->feature_width);
  if (l->skip) add_groups(result(frame, SKIP), s->skip, groups, apart, 1, c, l->feature_width);
}

// (grad, x, weights) -> their gradients
XLA_FFI_Error* gated_backward(XLA_FFI_CallFrame* frame) {
  if (asks_version(frame)) return NULL;
  Backward b = {make_layer(frame, 1), images(frame, 0), result_images(frame, X)};
  b.apart = sums_size(&b.layer);
  b.sums = zeros(min(GROUPS, b.layer.batch) * b.apart, sizeof(REAL));
  parallel(frame, min(GROUPS, b.layer.batch), backward_group, &b);
  REAL* memory = b.sums;
  const Sums sums = make_sums(&b.layer, &memory);
  write_sums(frame, &b, &sums);
  free(b.sums);
  free_layer(&b.layer);
  return NULL;
}
