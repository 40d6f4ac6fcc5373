// Functions of single numbers, and of numbers and their channel. Those of bf16 are computed in f32 and rounded.

template <class T> __device__ __forceinline__ void activated(T *y, const T *x, u64 n, int act) {
  BY_ANY_ACT(act, known, map(y, x, n, [=](float x) { return act_of(known, x); }));
}

extern "C" __global__ void activate(float *y, const float *x, u64 n, int act) { activated(y, x, n, act); }

extern "C" __global__ void activate_bf16(bf16 *y, const bf16 *x, u64 n, int act) { activated(y, x, n, act); }

template <class T> __device__ __forceinline__ void slopes(T *dx, const T *z, const T *dy, u64 n, int act) {
  BY_ANY_ACT(act, known, map_both(dx, z, dy, n, [=](float z, float g) { return slope_of(known, z, g); }));
}

extern "C" __global__ void activate_back(float *dx, const float *z, const float *dy, u64 n, int act) {
  slopes(dx, z, dy, n, act);
}

extern "C" __global__ void activate_back_bf16(bf16 *dx, const bf16 *z, const bf16 *dy, u64 n, int act) {
  slopes(dx, z, dy, n, act);
}

template <class To, class A, class B>
__device__ __forceinline__ void added(To *y, const A *a, const B *b, u64 n, int act) {
  BY_ANY_ACT(act, known, map_both(y, a, b, n, [=](float a, float b) { return act_of(known, a + b); }));
}

extern "C" __global__ void add_activate(float *y, const float *a, const float *b, u64 n, int act) {
  added(y, a, b, n, act);
}

extern "C" __global__ void add_activate_bf16(bf16 *y, const bf16 *a, const bf16 *b, u64 n, int act) {
  added(y, a, b, n, act);
}

// The same in f32 of what lies in bf16, or of which one does.
extern "C" __global__ void add_halves(float *y, const bf16 *a, const bf16 *b, u64 n, int act) {
  added(y, a, b, n, act);
}

extern "C" __global__ void add_mixed(float *y, const float *a, const bf16 *b, u64 n, int act) {
  added(y, a, b, n, act);
}

// A node of the ordered tree: the left child becomes the sum.
extern "C" __global__ void add_into(float *left, const float *right, u64 n) {
  map_both(left, left, right, n, [](float a, float b) { return a + b; });
}

extern "C" __global__ void add_squares(float *sums, const float *x, u64 n) {
  map_both(sums, sums, x, n, [](float sum, float x) { return sum + x * x; });
}

template <int V, class To>
__device__ __forceinline__ void biased(To *y, const float *x, const float *bias, u64 n, u32 c) {
  EACH_IN_ROWS(i, n / V, channel, c / V) {
    Some<float, V> v = some<V>(x, i), b = some<V>(bias, channel);
    Some<To, V> sum;
#pragma unroll
    for (int k = 0; k < V; k++) set(&sum.of[k], v.of[k] + b.of[k]);
    put<V>(y, i, sum);
  }
}

// In place.
extern "C" __global__ void add_bias(float *x, const float *bias, u64 n, u32 c) {
  IN_FOURS(by_four(c, x, bias), biased, x, x, bias, n, c);
}

extern "C" __global__ void add_bias_bf16(bf16 *y, const float *x, const float *bias, u64 n, u32 c) {
  IN_FOURS(by_four(c, x, bias) && by_four(c, y, y), biased, y, x, bias, n, c);
}

// Each row what bf16 has of the bias: what sums are added to, which are rounded with it.
template <int V> __device__ __forceinline__ void begun(bf16 *y, const float *bias, u64 n, u32 c) {
  EACH_IN_ROWS(i, n / V, channel, c / V) put<V>(y, i, some<V>(bias, channel));
}

extern "C" __global__ void begin_bias_bf16(bf16 *y, const float *bias, u64 n, u32 c) {
  IN_FOURS(by_four(c, y, bias), begun, y, bias, n, c);
}

extern "C" __global__ void scale(float *x, float factor, u64 n) {
  map(x, x, n, [=](float x) { return x * factor; });
}

template <int V>
__device__ __forceinline__ void scaled(float *y, const float *x, const float *factors, u64 n, u32 c) {
  EACH_IN_ROWS(i, n / V, channel, c / V) {
    Some<float, V> v = some<V>(x, i), f = some<V>(factors, channel);
#pragma unroll
    for (int k = 0; k < V; k++) v.of[k] *= f.of[k];
    put<V>(y, i, v);
  }
}

// Each number times the factor of its channel.
extern "C" __global__ void scale_channels(float *y, const float *x, const float *factors, u64 n, u32 c) {
  IN_FOURS(by_four(c, x, y) && by_four(c, factors, factors), scaled, y, x, factors, n, c);
}

extern "C" __global__ void divide(float *x, float by, u64 n) {
  map(x, x, n, [=](float x) { return x / by; });
}

// `(x − mean) · factor` by channel.
extern "C" __global__ void normalize(float *y, const float *x, const float *mean, const float *factor, u64 n, u32 c) {
  EACH_IN_ROWS(i, n, channel, c) y[i] = (x[i] - mean[channel]) * factor[channel];
}

// Some channels of a pixel at a time, all of one image.
template <int V, class T>
__device__ __forceinline__ void gated(T *y, const T *x, const T *gates, u64 n, u32 area, u32 c) {
  EACH_IN_ROWS(i, n / V, channel, c / V) {
    Some<T, V> v = some<V>(x, i), g = some<V>(gates, over(over(i, c / V), area) * (c / V) + channel);
#pragma unroll
    for (int k = 0; k < V; k++) set(&v.of[k], f32_of(v.of[k]) * f32_of(g.of[k]));
    put<V>(y, i, v);
  }
}

// Each number times that of its image (of `area` pixels) and channel.
extern "C" __global__ void gate(float *y, const float *x, const float *gates, u64 n, u32 area, u32 c) {
  IN_FOURS(by_four(c, x, y) && by_four(c, gates, gates), gated, y, x, gates, n, area, c);
}

extern "C" __global__ void gate_bf16(bf16 *y, const bf16 *x, const bf16 *gates, u64 n, u32 area, u32 c) {
  IN_EIGHTS(by_four(c, x, y) && by_four(c, gates, gates), c, gated, y, x, gates, n, area, c);
}

template <int V, class T>
__device__ __forceinline__ void ungated(T *dx, const T *dy, const T *gates, const T *means, float share, u64 n,
                                        u32 area, u32 c) {
  EACH_IN_ROWS(i, n / V, channel, c / V) {
    u64 own = over(over(i, c / V), area) * (c / V) + channel;
    Some<T, V> v = some<V>(dy, i), g = some<V>(gates, own), m = some<V>(means, own);
#pragma unroll
    for (int k = 0; k < V; k++) set(&v.of[k], f32_of(v.of[k]) * f32_of(g.of[k]) + f32_of(m.of[k]) * share);
    put<V>(dx, i, v);
  }
}

extern "C" __global__ void gate_back(float *dx, const float *dy, const float *gates, const float *means, float share,
                                     u64 n, u32 area, u32 c) {
  IN_FOURS(by_four(c, dx, dy) && by_four(c, gates, means), ungated, dx, dy, gates, means, share, n, area, c);
}

extern "C" __global__ void gate_back_bf16(bf16 *dx, const bf16 *dy, const bf16 *gates, const bf16 *means, float share,
                                          u64 n, u32 area, u32 c) {
  IN_EIGHTS(by_four(c, dx, dy) && by_four(c, gates, means), c, ungated, dx, dy, gates, means, share, n, area, c);
}
