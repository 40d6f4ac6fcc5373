// bf16: to the nearest, ties to even; NaN stays NaN, and quiet. As `num::bf16`.

__device__ __forceinline__ u32 rounded_bits(float x) {
  u32 bits = __float_as_uint(x);
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return (nan ? bits | 0x00400000u : bits + (0x7fffu + (bits >> 16 & 1))) & 0xffff0000u;
}

// Rounds, and stays f32.
extern "C" __global__ void round_bf16(float *y, const float *x, u64 n) {
  EACH(i, n) y[i] = __uint_as_float(rounded_bits(x[i]));
}

extern "C" __global__ void to_bf16(unsigned short *y, const float *x, u64 n) {
  EACH(i, n) y[i] = (unsigned short)(rounded_bits(x[i]) >> 16);
}

extern "C" __global__ void from_bf16(float *y, const unsigned short *x, u64 n) {
  EACH(i, n) y[i] = __uint_as_float((u32)x[i] << 16);
}
