// Functions of single numbers, and of numbers and their channel.

extern "C" __global__ void activate(float *y, const float *x, u64 n, int act) { EACH(i, n) y[i] = act_of(act, x[i]); }

extern "C" __global__ void activate_back(float *dx, const float *z, const float *dy, u64 n, int act) {
  EACH(i, n) dx[i] = slope_of(act, z[i], dy[i]);
}

extern "C" __global__ void add_activate(float *y, const float *a, const float *b, u64 n, int act) {
  EACH(i, n) y[i] = act_of(act, a[i] + b[i]);
}

// A node of the ordered tree: the left child becomes the sum.
extern "C" __global__ void add_into(float *left, const float *right, u64 n) { EACH(i, n) left[i] += right[i]; }

extern "C" __global__ void add_squares(float *sums, const float *x, u64 n) { EACH(i, n) sums[i] += x[i] * x[i]; }

extern "C" __global__ void add_bias(float *x, const float *bias, u64 n, u32 c) { EACH(i, n) x[i] += bias[i % c]; }

extern "C" __global__ void scale(float *x, float factor, u64 n) { EACH(i, n) x[i] *= factor; }

// Each number times the factor of its channel.
extern "C" __global__ void scale_channels(float *y, const float *x, const float *factors, u64 n, u32 c) {
  EACH(i, n) y[i] = x[i] * factors[i % c];
}

extern "C" __global__ void divide(float *x, float by, u64 n) { EACH(i, n) x[i] /= by; }

// `(x − mean) · factor` by channel.
extern "C" __global__ void normalize(float *y, const float *x, const float *mean, const float *factor, u64 n, u32 c) {
  EACH(i, n) y[i] = (x[i] - mean[i % c]) * factor[i % c];
}

// Each number times that of its image (of `area` pixels) and channel.
extern "C" __global__ void gate(float *y, const float *x, const float *gates, u64 n, u32 area, u32 c) {
  EACH(i, n) y[i] = x[i] * gates[i / ((u64)area * c) * c + i % c];
}

extern "C" __global__ void gate_back(float *dx, const float *dy, const float *gates, const float *means, float share,
                                     u64 n, u32 area, u32 c) {
  EACH(i, n) {
    u64 at = i / ((u64)area * c) * c + i % c;
    dx[i] = dy[i] * gates[at] + means[at] * share;
  }
}
