// Functions of single numbers, and of numbers and their channel.

extern "C" __global__ void activate(float *y, const float *x, u64 n, int act) {
  map(y, x, n, [=](float x) { return act_of(act, x); });
}

extern "C" __global__ void activate_back(float *dx, const float *z, const float *dy, u64 n, int act) {
  map_both(dx, z, dy, n, [=](float z, float g) { return slope_of(act, z, g); });
}

extern "C" __global__ void add_activate(float *y, const float *a, const float *b, u64 n, int act) {
  map_both(y, a, b, n, [=](float a, float b) { return act_of(act, a + b); });
}

// A node of the ordered tree: the left child becomes the sum.
extern "C" __global__ void add_into(float *left, const float *right, u64 n) {
  map_both(left, left, right, n, [](float a, float b) { return a + b; });
}

extern "C" __global__ void add_squares(float *sums, const float *x, u64 n) {
  map_both(sums, sums, x, n, [](float sum, float x) { return sum + x * x; });
}

template <int V>
__device__ __forceinline__ void biased(float *x, const float *bias, u64 n, u32 c, int rounds) {
  EACH_IN_ROWS(i, n / V, channel, c / V) {
    Some<float, V> v = some<V>(x, i), b = some<V>(bias, channel);
#pragma unroll
    for (int k = 0; k < V; k++) {
      float sum = v.of[k] + b.of[k];
      v.of[k] = rounds ? rounded(sum) : sum;
    }
    put<V>(x, i, v);
  }
}

// In place; `rounds`: the sum is rounded to bf16.
extern "C" __global__ void add_bias(float *x, const float *bias, u64 n, u32 c, int rounds) {
  IN_FOURS(by_four(c, x, bias), biased, x, bias, n, c, rounds);
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

// Each number times that of its image (of `area` pixels) and channel.
extern "C" __global__ void gate(float *y, const float *x, const float *gates, u64 n, u32 area, u32 c) {
  EACH_IN_ROWS(i, n, channel, c) y[i] = x[i] * gates[over(over(i, c), area) * c + channel];
}

extern "C" __global__ void gate_back(float *dx, const float *dy, const float *gates, const float *means, float share,
                                     u64 n, u32 area, u32 c) {
  EACH_IN_ROWS(i, n, channel, c) {
    u64 own = over(over(i, c), area) * c + channel;
    dx[i] = dy[i] * gates[own] + means[own] * share;
  }
}
