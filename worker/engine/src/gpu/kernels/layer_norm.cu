// Layer normalisation; a row has sixteen threads, whose sums are the chains of `nn::lanes`.

// Normalised rows (before γ and β), the result, and each row's 1/σ.
extern "C" __global__ void layer_norm(float *hat, float *y, float *inverse, const float *x, const float *gamma,
                                      const float *beta, float eps, u64 rows, u32 c) {
  __shared__ float sums[LINES][LANES];
  u64 row = (u64)blockIdx.x * LINES + threadIdx.y;
  bool real = row < rows;
  const float *own = x + row * c;
  float sum = 0.0f;
  if (real)
    for (u32 i = threadIdx.x; i < c; i += LANES) sum += own[i];
  float mean = fold_lanes(sums, sum) / (float)c;
  float square = 0.0f;
  if (real)
    for (u32 i = threadIdx.x; i < c; i += LANES) square += (own[i] - mean) * (own[i] - mean);
  float scale = 1.0f / sqrtf(fold_lanes(sums, square) / (float)c + eps);
  if (!real) return;
  if (threadIdx.x == 0) inverse[row] = scale;
  for (u32 i = threadIdx.x; i < c; i += LANES) {
    float h = (own[i] - mean) * scale;
    hat[row * c + i] = h;
    y[row * c + i] = h * gamma[i] + beta[i];
  }
}

extern "C" __global__ void layer_norm_back(float *dx, const float *dy, const float *hat, const float *inverse,
                                           const float *gamma, u64 rows, u32 c) {
  __shared__ float sums[LINES][LANES];
  u64 row = (u64)blockIdx.x * LINES + threadIdx.y;
  bool real = row < rows;
  const float *g = dy + row * c, *h = hat + row * c;
  float sum = 0.0f, product = 0.0f;
  if (real)
    for (u32 i = threadIdx.x; i < c; i += LANES) {
      float d = g[i] * gamma[i];
      sum += d;
      product += d * h[i];
    }
  float mean = fold_lanes(sums, sum) / (float)c;
  float along = fold_lanes(sums, product) / (float)c;
  if (!real) return;
  for (u32 i = threadIdx.x; i < c; i += LANES)
    dx[row * c + i] = (g[i] * gamma[i] - mean - h[i] * along) * inverse[row];
}
