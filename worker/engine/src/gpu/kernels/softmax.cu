// Softmax of attention's scores `[samples·heads, t, t]`, of which a sample uses `length` rows and columns: what is beyond
// them becomes zero, so that the products that follow may take the whole square.

// How long the sample of a row is.
__device__ __forceinline__ u32 length_of(const u32 *lengths, u64 row, u32 heads, u32 t) {
  u32 length = lengths[over(over(row, t), heads)];
  return length < t ? length : t;
}

// p = exp((s − max)·scale) / Σ, in place; each row's largest score and inverse sum are noted.
extern "C" __global__ void softmax(float *s, float *notes, const u32 *lengths, u32 heads, u32 t, float scale, u64 rows) {
  __shared__ float sums[LINES][LANES];
  u64 row = (u64)blockIdx.x * LINES + threadIdx.y;
  u32 length = row < rows ? length_of(lengths, row, heads, t) : 0;
  bool real = row < rows && row % t < length;
  float *own = s + row * t;
  float most = real ? own[0] : 0.0f;
  if (real)
    for (u32 i = threadIdx.x; i < length; i += LANES) most = own[i] > most ? own[i] : most;
  sums[threadIdx.y][threadIdx.x] = most;
  __syncthreads();
  for (u32 k = 0; k < LANES; k++) most = sums[threadIdx.y][k] > most ? sums[threadIdx.y][k] : most;
  __syncthreads();
  float sum = 0.0f;
  if (real)
    for (u32 i = threadIdx.x; i < length; i += LANES) {
      own[i] = exp_of((own[i] - most) * scale);
      sum += own[i];
    }
  float inverse = 1.0f / fold_lanes(sums, sum);
  if (row >= rows) return;
  for (u32 i = threadIdx.x; i < t; i += LANES) own[i] = real && i < length ? own[i] * inverse : 0.0f;
  if (threadIdx.x == 0) {
    notes[row * 2] = real ? most : 0.0f;
    notes[row * 2 + 1] = real ? inverse : 0.0f;
  }
}

// The same from scores and what was noted.
extern "C" __global__ void softmax_again(float *s, const float *notes, const u32 *lengths, u32 heads, u32 t,
                                         float scale, u64 n) {
  EACH(i, n) {
    u64 row = over(i, t);
    u32 length = length_of(lengths, row, heads, t);
    bool real = rest(row, t) < length && rest(i, t) < length;
    s[i] = real ? exp_of((s[i] - notes[row * 2]) * scale) * notes[row * 2 + 1] : 0.0f;
  }
}

// ds = p·(dp − Σ dp·p)·scale, in place of dp.
extern "C" __global__ void softmax_back(float *dp, const float *p, const u32 *lengths, u32 heads, u32 t, float scale,
                                        u64 rows) {
  __shared__ float sums[LINES][LANES];
  u64 row = (u64)blockIdx.x * LINES + threadIdx.y;
  u32 length = row < rows ? length_of(lengths, row, heads, t) : 0;
  bool real = row < rows && row % t < length;
  float *own = dp + row * t;
  const float *q = p + row * t;
  float product = 0.0f;
  if (real)
    for (u32 i = threadIdx.x; i < length; i += LANES) product += own[i] * q[i];
  float along = fold_lanes(sums, product);
  if (row >= rows) return;
  for (u32 i = threadIdx.x; i < t; i += LANES) own[i] = real && i < length ? q[i] * (own[i] - along) * scale : 0.0f;
}
