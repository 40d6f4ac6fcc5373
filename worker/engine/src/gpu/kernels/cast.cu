// bf16, rounded as `common.cuh` does it.

// Rounds, and stays f32.
extern "C" __global__ void round_bf16(float *y, const float *x, u64 n) {
  map(y, x, n, [](float x) { return rounded(x); });
}

extern "C" __global__ void to_bf16(bf16 *y, const float *x, u64 n) {
  map(y, x, n, [](float x) { return x; });
}

extern "C" __global__ void from_bf16(float *y, const bf16 *x, u64 n) {
  map(y, x, n, [](float x) { return x; });
}
