// `num::math` and `nn::act`, number by number: the same operations in the same order, so the same bits.

__device__ __forceinline__ float exp_of(float x) {
  const float magic = 12582912.0f; // 1.5·2²³: adding it rounds to an integer
  x = x > 88.3f ? 88.3f : x;
  x = x < -87.3f ? -87.3f : x;
  float n = (x * 1.44269504088896340736f + magic) - magic;
  float r = x - n * 0.6933594f;
  r = r - n * -2.1219444e-4f;
  float p = 1.9875691e-4f;
  p = p * r + 1.3982e-3f;
  p = p * r + 8.333452e-3f;
  p = p * r + 4.1665796e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 0.5f;
  float y = p * r * r + r + 1.0f;
  return y * __uint_as_float((__float_as_uint(n + magic) << 23) + 0x3f800000u);
}

__device__ __forceinline__ float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(-x)); }

__device__ __forceinline__ float tanh_of(float x) {
  float a = fabsf(x);
  float e = exp_of(-2.0f * a);
  float large = (1.0f - e) / (1.0f + e);
  float z = x * x;
  float p = -5.7049887e-3f;
  p = p * z + 2.063909e-2f;
  p = p * z - 5.3739716e-2f;
  p = p * z + 1.3331442e-1f;
  p = p * z - 3.333328e-1f;
  float small = a + a * z * p;
  float t = a < 0.625f ? small : large;
  return x < 0.0f ? -t : t;
}

__device__ __forceinline__ float erf_of(float x) {
  x = x > 4.0f ? 4.0f : x;
  x = x < -4.0f ? -4.0f : x;
  float z = x * x;
  float p = -2.7261423e-10f;
  p = p * z + 2.7706815e-8f;
  p = p * z - 2.101024e-6f;
  p = p * z - 5.6925063e-5f;
  p = p * z - 7.349906e-4f;
  p = p * z - 2.9546e-3f;
  p = p * z - 1.6096033e-2f;
  float q = -1.4566072e-5f;
  q = q * z - 2.1337406e-4f;
  q = q * z - 1.682827e-3f;
  q = q * z - 7.3733293e-3f;
  q = q * z - 1.4264739e-2f;
  return x * p / q;
}

#define INVERSE_ROOT_2 0.707106781186547524400844f
#define SLOPE 0.7978846f

__device__ __forceinline__ float gelu_tanh_inner(float x) { return tanh_of(SLOPE * (x + 0.044715f * x * x * x)); }

// Numbers of the activations, as `gpu::ops` gives them.
#define NONE 0
#define RELU 1
#define RELU6 2
#define SILU 3
#define GELU 4
#define GELU_TANH 5
#define TANH 6
#define SIGMOID 7

__device__ __forceinline__ float act_of(int act, float x) {
  switch (act) {
  case RELU: return x < 0.0f ? 0.0f : x;
  case RELU6: {
    float low = x < 0.0f ? 0.0f : x;
    return low > 6.0f ? 6.0f : low;
  }
  case SILU: return x * sigmoid_of(x);
  case GELU: return 0.5f * x * (1.0f + erf_of(x * INVERSE_ROOT_2));
  case GELU_TANH: return 0.5f * x * (1.0f + gelu_tanh_inner(x));
  case TANH: return tanh_of(x);
  case SIGMOID: return sigmoid_of(x);
  default: return x;
  }
}

// `dy · f′(z)`; a rectifier chooses instead of multiplying, so that a zero slope hides no infinity.
__device__ __forceinline__ float slope_of(int act, float z, float dy) {
  switch (act) {
  case RELU: return z > 0.0f ? dy : 0.0f;
  case RELU6: return z > 0.0f && z < 6.0f ? dy : 0.0f;
  case SILU: {
    float s = sigmoid_of(z);
    return dy * (s * (1.0f + z * (1.0f - s)));
  }
  case GELU: {
    float cdf = 0.5f * (1.0f + erf_of(z * INVERSE_ROOT_2));
    return dy * (cdf + z * 0.3989423f * exp_of(-0.5f * z * z));
  }
  case GELU_TANH: {
    float t = gelu_tanh_inner(z);
    return dy * (0.5f * (1.0f + t) + 0.5f * z * (1.0f - t * t) * SLOPE * (1.0f + 0.134145f * z * z));
  }
  case TANH: {
    float t = tanh_of(z);
    return dy * (1.0f - t * t);
  }
  case SIGMOID: {
    float s = sigmoid_of(z);
    return dy * (s * (1.0f - s));
  }
  default: return dy;
  }
}

// An activation that the compiler knows: of the switches above it leaves one case.
template <int ACT> struct Known {};

template <int ACT> __device__ __forceinline__ float act_of(Known<ACT>, float x) { return act_of(ACT, x); }

template <int ACT> __device__ __forceinline__ float slope_of(Known<ACT>, float z, float dy) {
  return slope_of(ACT, z, dy);
}

// Whether a slope depends on where it is taken.
__device__ __forceinline__ bool bends(int act) { return act != NONE; }
template <int ACT> __device__ __forceinline__ bool bends(Known<ACT>) { return ACT != NONE; }

// Does `work`, in which `known` is the activation, for one of those that networks have behind a norm, and `rest` for any
// other: it is chosen once a thread, and not for each number.
#define BY_ACT(act, known, work, rest) \
  do { \
    switch (act) { \
    case NONE: { Known<NONE> known; work; break; } \
    case RELU: { Known<RELU> known; work; break; } \
    case RELU6: { Known<RELU6> known; work; break; } \
    case SILU: { Known<SILU> known; work; break; } \
    case GELU: { Known<GELU> known; work; break; } \
    default: rest; \
    } \
  } while (0)

// The same of any activation.
#define BY_ANY_ACT(act, known, work) \
  BY_ACT(act, known, work, switch (act) { \
    case GELU_TANH: { Known<GELU_TANH> known; work; break; } \
    case TANH: { Known<TANH> known; work; break; } \
    default: { Known<SIGMOID> known; work; } \
  })
