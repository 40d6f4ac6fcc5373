// Depthwise convolution of images `[n, h, w, c]`, weights by tap, `[k·k, c]`; taps in the CPU's order, fused as there, some
// channels of a pixel at a time. Sums are f32; those of bf16 are rounded once.

template <int V, class T>
__device__ __forceinline__ void outputs(T *y, const T *x, const float *weights, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow,
                                        u32 k, u32 stride, u32 top, u32 left) {
  EACH(i, n / V) {
    u64 pixel = over(i, c / V), line = over(pixel, ow);
    u32 channel = rest(i, c / V), ox = rest(pixel, ow), oy = rest(line, oh);
    const T *image = x + over(line, oh) * ((u64)h * w * c);
    Some<float, V> sum = {};
    for (u32 ky = 0; ky < k; ky++) {
      u32 py = oy * stride + ky - top; // before the first row it is huge
      if (py >= h) continue;
      for (u32 kx = 0; kx < k; kx++) {
        u32 px = ox * stride + kx - left;
        if (px >= w) continue;
        Some<T, V> v = some<V>(image, ((u64)py * w + px) * (c / V) + channel);
        Some<float, V> own = some<V>(weights, (u64)(ky * k + kx) * (c / V) + channel);
#pragma unroll
        for (int j = 0; j < V; j++) sum.of[j] = fmaf(f32_of(v.of[j]), own.of[j], sum.of[j]);
      }
    }
    put<V>(y, i, sum);
  }
}

extern "C" __global__ void depthwise(float *y, const float *x, const float *weights, u64 n, u32 h, u32 w, u32 c, u32 oh,
                                     u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  IN_FOURS(by_four(c, x, y) && by_four(c, weights, weights), outputs, y, x, weights, n, h, w, c, oh, ow, k, stride, top,
           left);
}

extern "C" __global__ void depthwise_bf16(bf16 *y, const bf16 *x, const float *weights, u64 n, u32 h, u32 w, u32 c, u32 oh,
                                          u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  IN_FOURS(by_four(c, x, y) && by_four(c, weights, weights), outputs, y, x, weights, n, h, w, c, oh, ow, k, stride, top,
           left);
}

template <int V, class T>
__device__ __forceinline__ void inputs(T *dx, const T *dy, const float *weights, u64 n, u32 h, u32 w, u32 c, u32 oh, u32 ow,
                                       u32 k, u32 stride, u32 top, u32 left) {
  EACH(i, n / V) {
    u64 pixel = over(i, c / V), line = over(pixel, w);
    u32 channel = rest(i, c / V), px = rest(pixel, w), py = rest(line, h);
    const T *image = dy + over(line, h) * ((u64)oh * ow * c);
    Some<float, V> sum = {};
    for (u32 ky = 0; ky < k && ky <= py + top; ky++) {
      u32 oy = (py + top - ky) / stride;
      if ((py + top - ky) % stride || oy >= oh) continue;
      for (u32 kx = 0; kx < k && kx <= px + left; kx++) {
        u32 ox = (px + left - kx) / stride;
        if ((px + left - kx) % stride || ox >= ow) continue;
        Some<T, V> v = some<V>(image, ((u64)oy * ow + ox) * (c / V) + channel);
        Some<float, V> own = some<V>(weights, (u64)(ky * k + kx) * (c / V) + channel);
#pragma unroll
        for (int j = 0; j < V; j++) sum.of[j] = fmaf(f32_of(v.of[j]), own.of[j], sum.of[j]);
      }
    }
    put<V>(dx, i, sum);
  }
}

extern "C" __global__ void depthwise_input(float *dx, const float *dy, const float *weights, u64 n, u32 h, u32 w, u32 c,
                                           u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  IN_FOURS(by_four(c, dx, dy) && by_four(c, weights, weights), inputs, dx, dy, weights, n, h, w, c, oh, ow, k, stride, top,
           left);
}

extern "C" __global__ void depthwise_input_bf16(bf16 *dx, const bf16 *dy, const float *weights, u64 n, u32 h, u32 w, u32 c,
                                                u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  IN_FOURS(by_four(c, dx, dy) && by_four(c, weights, weights), inputs, dx, dy, weights, n, h, w, c, oh, ow, k, stride, top,
           left);
}

// For each row of outputs one line of `k·k·c` sums, a chain over the row each.
template <int V, class T>
__device__ __forceinline__ void learnt(float *lines, const T *dy, const T *x, u64 rows, u32 h, u32 w, u32 c, u32 oh, u32 ow,
                                       u32 k, u32 stride, u32 top, u32 left) {
  EACH(i, rows * k * k * (c / V)) {
    u64 place = over(i, c / V), row = over(place, k * k);
    u32 channel = rest(i, c / V), tap = rest(place, k * k);
    u32 py = rest(row, oh) * stride + tap / k - top;
    Some<float, V> sum = {};
    if (py < h) {
      const T *line = x + (over(row, oh) * h + py) * ((u64)w * c), *slopes = dy + row * ow * c;
      for (u32 ox = 0; ox < ow; ox++) {
        u32 px = ox * stride + tap % k - left;
        if (px >= w) continue;
        Some<T, V> g = some<V>(slopes, (u64)ox * (c / V) + channel), v = some<V>(line, (u64)px * (c / V) + channel);
#pragma unroll
        for (int j = 0; j < V; j++) sum.of[j] = fmaf(f32_of(g.of[j]), f32_of(v.of[j]), sum.of[j]);
      }
    }
    put<V>(lines, i, sum);
  }
}

extern "C" __global__ void depthwise_weights(float *lines, const float *dy, const float *x, u64 rows, u32 h, u32 w,
                                             u32 c, u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  IN_FOURS(by_four(c, dy, x) && by_four(c, lines, lines), learnt, lines, dy, x, rows, h, w, c, oh, ow, k, stride, top, left);
}

extern "C" __global__ void depthwise_weights_bf16(float *lines, const bf16 *dy, const bf16 *x, u64 rows, u32 h, u32 w,
                                                  u32 c, u32 oh, u32 ow, u32 k, u32 stride, u32 top, u32 left) {
  IN_FOURS(by_four(c, dy, x) && by_four(c, lines, lines), learnt, lines, dy, x, rows, h, w, c, oh, ow, k, stride, top, left);
}
