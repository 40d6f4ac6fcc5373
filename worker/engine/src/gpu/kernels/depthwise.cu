// Depthwise convolution of images `[n, h, w, c]`, weights by tap, `[k·k, c]`; taps in the CPU's order, fused as there, some
// channels of some pixels at a time. Sums are f32; those of bf16 are rounded once.

// Outputs of a thread, which reads the weights of a tap once for all of them.
#define OUTPUTS 4

template <int V, class A, class B>
__device__ __forceinline__ void add_products(Some<float, V> &sum, const Some<A, V> &a, const Some<B, V> &b) {
#pragma unroll
  for (int j = 0; j < V; j++) sum.of[j] = fmaf(f32_of(a.of[j]), f32_of(b.of[j]), sum.of[j]);
}

// Adds a tap's products with pixels of a row, `step` apart from `at` on, where they are within it: before its begin they are
// huge. All are asked for before the first is waited for; so that nothing hangs on where they are, the first pixel stands for
// what is outside.
template <int V, class T>
__device__ __forceinline__ void taken(Some<float, V> *sums, const Some<float, V> &own, const T *row, u32 at, u32 step,
                                      u32 width, u32 words, u32 word) {
  Some<T, V> v[OUTPUTS];
#pragma unroll
  for (u32 p = 0; p < OUTPUTS; p++) {
    u32 pixel = at + p * step;
    v[p] = some<V>(row, (u64)(pixel < width ? pixel : 0) * words + word);
  }
  if (at < width && (OUTPUTS - 1) * step < width - at) {
#pragma unroll
    for (u32 p = 0; p < OUTPUTS; p++) add_products(sums[p], v[p], own);
  } else {
#pragma unroll
    for (u32 p = 0; p < OUTPUTS; p++)
      if (at + p * step < width) add_products(sums[p], v[p], own);
  }
}

// Of `lines` rows of outputs; those of a thread lie side by side.
template <int V, class T>
__device__ __forceinline__ void outputs(T *y, const T *x, const float *weights, u64 lines, u32 h, u32 w, u32 c, u32 oh, u32 ow,
                                        u32 k, u32 stride, u32 top, u32 left) {
  u32 words = c / V, parts = (ow + OUTPUTS - 1) / OUTPUTS;
  EACH(i, lines * parts * words) {
    u64 part = over(i, words), line = over(part, parts);
    u32 word = rest(i, words), first = rest(part, parts) * OUTPUTS, oy = rest(line, oh);
    const T *image = x + over(line, oh) * ((u64)h * w * c);
    Some<float, V> sums[OUTPUTS] = {};
    for (u32 ky = 0; ky < k; ky++) {
      u32 py = oy * stride + ky - top; // before the first row it is huge
      if (py >= h) continue;
      const T *row = image + (u64)py * w * c;
      for (u32 kx = 0; kx < k; kx++) {
        u32 px = first * stride + kx - left;
        Some<float, V> own = some<V>(weights, (u64)(ky * k + kx) * words + word);
        taken<V>(sums, own, row, px, stride, w, words, word);
      }
    }
#pragma unroll
    for (u32 p = 0; p < OUTPUTS; p++)
      if (first + p < ow) put<V>(y, (line * ow + first + p) * words + word, sums[p]);
  }
}

extern "C" __global__ void depthwise(float *y, const float *x, const float *weights, u64 lines, u32 h, u32 w, u32 c, u32 oh,
                                     u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  IN_FOURS(by_four(c, x, y) && by_four(c, weights, weights), outputs, y, x, weights, lines, h, w, c, oh, ow, k, stride, top,
           left);
}

extern "C" __global__ void depthwise_bf16(bf16 *y, const bf16 *x, const float *weights, u64 lines, u32 h, u32 w, u32 c, u32 oh,
                                          u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  IN_FOURS(by_four(c, x, y) && by_four(c, weights, weights), outputs, y, x, weights, lines, h, w, c, oh, ow, k, stride, top,
           left);
}

// Of `lines` rows of inputs; those of a thread are a stride apart, so that a tap leads all of them to an output, or none.
template <int V, class T>
__device__ __forceinline__ void inputs(T *dx, const T *dy, const float *weights, u64 lines, u32 h, u32 w, u32 c, u32 oh,
                                       u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  u32 words = c / V, span = stride * OUTPUTS, parts = (w + span - 1) / span * stride;
  EACH(i, lines * parts * words) {
    u64 place = over(i, words), line = over(place, parts);
    u32 word = rest(i, words), part = rest(place, parts), py = rest(line, h);
    u32 first = part / stride * span + part % stride;
    const T *image = dy + over(line, h) * ((u64)oh * ow * c);
    Some<float, V> sums[OUTPUTS] = {};
    for (u32 ky = 0; ky < k && ky <= py + top; ky++) {
      u32 oy = (py + top - ky) / stride;
      if ((py + top - ky) % stride || oy >= oh) continue;
      const T *row = image + (u64)oy * ow * c;
      for (u32 kx = 0; kx < k; kx++) {
        u32 to = first + left + k * stride - kx; // so far to the right that it is not below zero
        if (to % stride) continue;
        Some<float, V> own = some<V>(weights, (u64)(ky * k + kx) * words + word);
        taken<V>(sums, own, row, to / stride - k, 1, ow, words, word);
      }
    }
#pragma unroll
    for (u32 p = 0; p < OUTPUTS; p++)
      if (first + p * stride < w) put<V>(dx, (line * w + first + p * stride) * words + word, sums[p]);
  }
}

extern "C" __global__ void depthwise_input(float *dx, const float *dy, const float *weights, u64 lines, u32 h, u32 w, u32 c,
                                           u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  IN_FOURS(by_four(c, dx, dy) && by_four(c, weights, weights), inputs, dx, dy, weights, lines, h, w, c, oh, ow, k, stride, top,
           left);
}

extern "C" __global__ void depthwise_input_bf16(bf16 *dx, const bf16 *dy, const float *weights, u64 lines, u32 h, u32 w, u32 c,
                                                u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  IN_FOURS(by_four(c, dx, dy) && by_four(c, weights, weights), inputs, dx, dy, weights, lines, h, w, c, oh, ow, k, stride, top,
           left);
}

// Outputs of a row that a thread asks for before it waits for the first.
#define AHEAD 4

// Chains over up to 256 rows of outputs, for 32 of the `k·k·c` weights: lines of 32 sums.
template <int V, class T>
__device__ __forceinline__ void learnt(float *lines, const T *dy, const T *x, u64 first, u32 count, u32 h, u32 w, u32 c,
                                       u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  const u32 words = 32 / V;
  u32 thread = threadIdx.y * 32 + threadIdx.x, word = thread % words, column = blockIdx.x * 32 + word * V;
  if (column >= k * k * c) return;
  u32 channel = column % c, ky = column / c / k, kx = column / c % k;
  // The outputs whose pixel lies in the image.
  u32 begin = kx < left ? (left - kx + stride - 1) / stride : 0;
  u32 end = kx < w + left ? (w + left - kx + stride - 1) / stride : 0;
  if (end > ow) end = ow;
  for (u32 line = thread / words; line < count; line += blockDim.y * V) {
    u64 row = first + line, image = over(row, oh);
    u32 py = rest(row, oh) * stride + ky - top; // before the first row it is huge
    Some<float, V> sum = {};
    if (py < h) {
      const T *slopes = dy + row * ow * c + channel, *pixels = x + (image * h + py) * ((u64)w * c) + channel;
      for (u32 ox = begin; ox < end; ox += AHEAD) {
        Some<T, V> g[AHEAD], v[AHEAD];
#pragma unroll
        for (u32 n = 0; n < AHEAD; n++) {
          u32 at = ox + n < end ? ox + n : ox;
          g[n] = some<V>(slopes + (u64)at * c, 0);
          v[n] = some<V>(pixels + (u64)(at * stride + kx - left) * c, 0);
        }
        if (end - ox >= AHEAD) {
#pragma unroll
          for (u32 n = 0; n < AHEAD; n++) add_products(sum, g[n], v[n]);
        } else {
#pragma unroll
          for (u32 n = 0; n < AHEAD; n++)
            if (ox + n < end) add_products(sum, g[n], v[n]);
        }
      }
    }
    put<V>(lines, line * words + word, sum);
  }
}

// Adds such lines up as `total_lines` does those of memory: eight chains for each column, in order. Every thread must come
// here.
__device__ __forceinline__ void join_lines(double *sums, const float *lines, u32 count, u32 width) {
  __shared__ double chains[8][32];
  u32 column = blockIdx.x * 32 + threadIdx.x;
  bool adds = threadIdx.y < 8 && column < width;
  double sum = 0.0;
  __syncthreads();
  if (adds) {
#pragma unroll 8
    for (u32 line = threadIdx.y; line < count; line += 8) sum += (double)lines[line * 32 + threadIdx.x];
    chains[threadIdx.y][threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.y == 0 && column < width) {
    for (u32 k = 1; k < 8; k++) sum += chains[k][threadIdx.x];
    sums[(u64)blockIdx.y * width + column] = sum;
  }
}

// Sums of `k·k·c` products over groups of 256 of the `rows` of outputs: for each row a chain in f32, then the rows in f64. A
// block has one group of 32 weights.
extern "C" __global__ void depthwise_weights(double *sums, const float *dy, const float *x, u64 rows, u32 h, u32 w, u32 c,
                                             u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  __shared__ Some<float, 8> room[GROUP * 4];
  float *lines = (float *)room;
  u64 first = (u64)blockIdx.y * GROUP;
  u32 count = rows - first < GROUP ? (u32)(rows - first) : GROUP;
  IN_FOURS(by_four(c, dy, x), learnt, lines, dy, x, first, count, h, w, c, oh, ow, k, stride, top, left);
  join_lines(sums, lines, count, k * k * c);
}

extern "C" __global__ void depthwise_weights_bf16(double *sums, const bf16 *dy, const bf16 *x, u64 rows, u32 h, u32 w,
                                                  u32 c, u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  __shared__ Some<float, 8> room[GROUP * 4];
  float *lines = (float *)room;
  u64 first = (u64)blockIdx.y * GROUP;
  u32 count = rows - first < GROUP ? (u32)(rows - first) : GROUP;
  IN_EIGHTS(by_four(c, dy, x), c, learnt, lines, dy, x, first, count, h, w, c, oh, ow, k, stride, top, left);
  join_lines(sums, lines, count, k * k * c);
}
