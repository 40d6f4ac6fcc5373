// Convolutions without a GPU, for tests: plain loops over channels-last images, with sums in double precision. Each list begins
// with an algorithm and an answer that came after all bindings. Of the others of each pass the first that is offered is not
// deterministic, the second needs more memory than anybody has (and says so when asked only), the third does not compute as the
// descriptors say (with tensor cores or without, or in half precision of bf16) and fails when it is to run, the fourth is not
// there for these descriptors after all; only the fifth computes. What is said of its arithmetic is not what the descriptors say,
// and of groups it is not listed. None computes windows seven apart, of which there is no list, nor bf16 images with an odd number
// of channels, of which the first alone is listed. All tensors of a convolution are of one type, and how they are multiplied has
// to be said.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
enum { SUCCESS = 0, BAD_PARAM = 2000, NOT_SUPPORTED = 3000, INTERNAL = 4000, FLOAT = 0, BFLOAT16 = 9, NHWC = 1, CROSS_CORRELATION = 1, DEFAULT = 0, TENSOR = 1, CONVERT = 2, FMA = 3, GOOD = 1, SCRATCH = 4096 };
typedef struct { int stream; } Handle;
typedef struct { int n, c, h, w, type; } Shape; // of a filter: outputs, channels of a group, height, width
typedef struct { int pad_h, pad_w, down, right, groups, math; } How;
typedef struct { int algo, status; float time; size_t memory; int determinism, math, reserved[3]; } Offer;

size_t cudnnGetVersion(void) { return 91300; }
// Also of what is newer than any bindings.
const char *cudnnGetErrorString(int code) { static __thread char name[40]; snprintf(name, sizeof name, "CUDNN_STATUS_FAKE_%d", code); return name; }
int cudnnCreate(Handle **h) { *h = calloc(1, sizeof **h); return SUCCESS; }
int cudnnDestroy(Handle *h) { free(h); return SUCCESS; }
int cudnnSetStream(Handle *h, void *s) { h->stream = s != NULL; return SUCCESS; }
int cudnnCreateTensorDescriptor(Shape **d) { *d = calloc(1, sizeof **d); return SUCCESS; }
int cudnnDestroyTensorDescriptor(Shape *d) { free(d); return SUCCESS; }
int cudnnCreateFilterDescriptor(Shape **d) { *d = calloc(1, sizeof **d); return SUCCESS; }
int cudnnDestroyFilterDescriptor(Shape *d) { free(d); return SUCCESS; }
int cudnnCreateConvolutionDescriptor(How **d) { *d = calloc(1, sizeof **d); (*d)->groups = 1; (*d)->math = -1; return SUCCESS; }
int cudnnDestroyConvolutionDescriptor(How *d) { free(d); return SUCCESS; }
static int set(Shape *d, int format, int type, int n, int c, int h, int w) {
  if (n < 1 || c < 1 || h < 1 || w < 1) return BAD_PARAM;
  *d = (Shape){n, c, h, w, type};
  return format == NHWC && (type == FLOAT || type == BFLOAT16) ? SUCCESS : NOT_SUPPORTED;
}
int cudnnSetTensor4dDescriptor(Shape *d, int format, int type, int n, int c, int h, int w) { return set(d, format, type, n, c, h, w); }
int cudnnSetFilter4dDescriptor(Shape *d, int type, int format, int k, int c, int h, int w) { return set(d, format, type, k, c, h, w); }
int cudnnSetConvolution2dDescriptor(How *d, int pad_h, int pad_w, int down, int right, int dh, int dw, int mode, int type) {
  d->pad_h = pad_h; d->pad_w = pad_w; d->down = down; d->right = right;
  return dh == 1 && dw == 1 && mode == CROSS_CORRELATION && type == FLOAT ? SUCCESS : NOT_SUPPORTED;
}
int cudnnSetConvolutionGroupCount(How *d, int n) { d->groups = n; return SUCCESS; }
int cudnnSetConvolutionMathType(How *d, int math) { d->math = math; return SUCCESS; }

static int sound(const Handle *h, const Shape *x, const Shape *w, const How *d, const Shape *y) {
  int oh = (x->h + 2 * d->pad_h - w->h) / d->down + 1, ow = (x->w + 2 * d->pad_w - w->w) / d->right + 1;
  if (x->type != w->type || x->type != y->type) return 0;
  // f32 as it is, or as TF32; bf16 as it is.
  if (x->type == FLOAT ? d->math != FMA && d->math != DEFAULT : d->math != TENSOR) return 0;
  return h->stream && x->c == w->c * d->groups && w->n % d->groups == 0 && y->n == x->n && y->c == w->n && y->h == oh && y->w == ow;
}
static int odd(const Shape *x) { return x->type != FLOAT && x->c % 2; }
static int offers(int fits, const Shape *x, const How *d, int most, int *count, Offer *list) {
  if (!fits || d->down == 7) return BAD_PARAM;
  int own = d->math, other = own == FMA ? TENSOR : own == TENSOR ? CONVERT : FMA;
  const Offer all[] = {{99, SUCCESS, 0, 0, 1, own, {0}}, {1, 3999, 0, 0, 1, own, {0}}, {0, SUCCESS, 1, 0, 0, own, {0}}, {3, SUCCESS, 2, 0, 1, own, {0}}, {2, SUCCESS, 3, 0, 1, other, {0}}, {4, SUCCESS, 4, 0, 1, 0, {0}}, {GOOD, SUCCESS, 5, 0, 1, other, {0}}};
  int there = odd(x) ? 3 : d->groups > 1 ? 6 : 7;
  *count = most < there ? most : there;
  memcpy(list, all, *count * sizeof *list);
  return SUCCESS;
}
int cudnnGetConvolutionForwardAlgorithm_v7(Handle *h, Shape *x, Shape *w, How *d, Shape *y, int most, int *count, Offer *list) { return offers(sound(h, x, w, d, y), x, d, most, count, list); }
int cudnnGetConvolutionBackwardDataAlgorithm_v7(Handle *h, Shape *w, Shape *y, How *d, Shape *x, int most, int *count, Offer *list) { return offers(sound(h, x, w, d, y), x, d, most, count, list); }
int cudnnGetConvolutionBackwardFilterAlgorithm_v7(Handle *h, Shape *x, Shape *y, How *d, Shape *w, int most, int *count, Offer *list) { return offers(sound(h, x, w, d, y), x, d, most, count, list); }

static int needs(int fits, int algo, size_t *size) {
  if (!fits) return BAD_PARAM;
  *size = algo == GOOD ? SCRATCH : algo == 3 ? (size_t)1 << 40 : 0;
  return algo == 4 ? NOT_SUPPORTED : SUCCESS;
}
int cudnnGetConvolutionForwardWorkspaceSize(Handle *h, Shape *x, Shape *w, How *d, Shape *y, int algo, size_t *size) { return needs(sound(h, x, w, d, y), algo, size); }
int cudnnGetConvolutionBackwardDataWorkspaceSize(Handle *h, Shape *w, Shape *y, How *d, Shape *x, int algo, size_t *size) { return needs(sound(h, x, w, d, y), algo, size); }
int cudnnGetConvolutionBackwardFilterWorkspaceSize(Handle *h, Shape *x, Shape *y, How *d, Shape *w, int algo, size_t *size) { return needs(sound(h, x, w, d, y), algo, size); }

static float get(const void *p, size_t i, int type) {
  if (type == FLOAT) return ((const float *)p)[i];
  uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16; float f; memcpy(&f, &bits, 4); return f;
}
// bf16 to the nearest, ties to even.
static void put(void *p, size_t i, int type, float f) {
  if (type == FLOAT) { ((float *)p)[i] = f; return; }
  uint32_t bits; memcpy(&bits, &f, 4);
  ((uint16_t *)p)[i] = (f != f ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
// What a convolution reads: f32 that may be TF32 to the nearest of that, ties to even.
static double seen(const void *p, size_t i, int type, const How *d) {
  float f = get(p, i, type);
  if (type != FLOAT || d->math != DEFAULT) return f;
  uint32_t bits; memcpy(&bits, &f, 4);
  bits = (f != f ? bits | 0x400000 : bits + 0xfff + (bits >> 13 & 1)) & 0xffffe000; memcpy(&f, &bits, 4);
  return f;
}
enum { OUTPUTS, INPUTS, WEIGHTS };
// Every product of a convolution once, added to what is asked for.
static int run(int of, const Shape *x, const void *xs, const Shape *w, const void *ws, const How *d, const Shape *y, const void *ys, float alpha, float beta, void *out) {
  const Shape *o = of == OUTPUTS ? y : of == INPUTS ? x : w;
  size_t count = (size_t)o->n * o->c * o->h * o->w;
  double *sums = calloc(count, sizeof *sums);
  int own = w->n / d->groups, type = x->type;
  for (int n = 0; n < y->n; n++) for (int oy = 0; oy < y->h; oy++) for (int ox = 0; ox < y->w; ox++)
    for (int k = 0; k < w->n; k++) for (int ky = 0; ky < w->h; ky++) for (int kx = 0; kx < w->w; kx++) {
      int py = oy * d->down + ky - d->pad_h, px = ox * d->right + kx - d->pad_w;
      if (py < 0 || py >= x->h || px < 0 || px >= x->w) continue;
      for (int c = 0; c < w->c; c++) {
        size_t xi = (((size_t)n * x->h + py) * x->w + px) * x->c + k / own * w->c + c;
        size_t wi = (((size_t)k * w->h + ky) * w->w + kx) * w->c + c;
        size_t yi = (((size_t)n * y->h + oy) * y->w + ox) * y->c + k;
        if (of == OUTPUTS) sums[yi] += seen(xs, xi, type, d) * seen(ws, wi, type, d);
        else if (of == INPUTS) sums[xi] += seen(ys, yi, type, d) * seen(ws, wi, type, d);
        else sums[wi] += seen(ys, yi, type, d) * seen(xs, xi, type, d);
      }
    }
  for (size_t i = 0; i < count; i++) put(out, i, type, alpha * (float)sums[i] + (beta ? beta * get(out, i, type) : 0.0f));
  free(sums);
  return SUCCESS;
}
static int refused(const Shape *x, const How *d, int algo, const void *scratch, size_t size) {
  // Where memory is little, that would be for want of it.
  if (algo == 2) return getenv("FAKE_MEMORY") ? NOT_SUPPORTED : INTERNAL;
  if (d->down == 7 || odd(x)) return NOT_SUPPORTED;
  return algo == GOOD && scratch && size >= SCRATCH ? SUCCESS : BAD_PARAM;
}
int cudnnConvolutionForward(Handle *h, const float *alpha, Shape *x, const void *xs, Shape *w, const void *ws, How *d, int algo, void *scratch, size_t size, const float *beta, Shape *y, void *ys) {
  if (!sound(h, x, w, d, y)) return BAD_PARAM;
  if (refused(x, d, algo, scratch, size)) return refused(x, d, algo, scratch, size);
  return run(OUTPUTS, x, xs, w, ws, d, y, NULL, *alpha, *beta, ys);
}
int cudnnConvolutionBackwardData(Handle *h, const float *alpha, Shape *w, const void *ws, Shape *y, const void *ys, How *d, int algo, void *scratch, size_t size, const float *beta, Shape *x, void *xs) {
  if (!sound(h, x, w, d, y)) return BAD_PARAM;
  if (refused(x, d, algo, scratch, size)) return refused(x, d, algo, scratch, size);
  return run(INPUTS, x, NULL, w, ws, d, y, ys, *alpha, *beta, xs);
}
int cudnnConvolutionBackwardFilter(Handle *h, const float *alpha, Shape *x, const void *xs, Shape *y, const void *ys, How *d, int algo, void *scratch, size_t size, const float *beta, Shape *w, void *ws) {
  if (!sound(h, x, w, d, y)) return BAD_PARAM;
  if (refused(x, d, algo, scratch, size)) return refused(x, d, algo, scratch, size);
  return run(WEIGHTS, x, xs, w, NULL, d, y, ys, *alpha, *beta, ws);
}
