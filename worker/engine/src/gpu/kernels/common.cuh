// What kernels share. It stands before each of them: there are no includes, so nothing is looked for on the machine.
//
// Rules. No float atomics. Every sum has one order, a function of the shape alone, never of the grid. No contraction of
// products and sums (the compiler is told so), no approximate functions: where an order is the CPU's, so are the bits.
typedef unsigned int u32;
typedef unsigned long long u64;
// In memory: the upper half of an f32.
typedef unsigned short bf16;

// Divisions in 32 bits where these hold the number: in 64 they take several times as long.
__device__ __forceinline__ u64 over(u64 i, u32 by) { return i >> 32 ? i / by : (u32)i / by; }
__device__ __forceinline__ u32 rest(u64 i, u32 by) { return i >> 32 ? (u32)(i % by) : (u32)i % by; }

#define THREAD ((u64)blockIdx.x * blockDim.x + threadIdx.x)
#define THREADS ((u64)gridDim.x * blockDim.x)

// Every element of a flat buffer, whatever the grid.
#define EACH(i, n) for (u64 i = THREAD; i < (n); i += THREADS)

// The same of rows of `c`, with the place `k` that each has in its row: nothing is divided but for the first.
#define EACH_IN_ROWS(i, n, k, c) \
  for (u64 i = THREAD, k##_turn = rest(THREADS, c), k = rest(i, c); i < (n); \
       i += THREADS, k += k##_turn, k -= k < (c) ? 0 : (c))

// Numbers that are read and written at once: memory is as fast as it can be with sixteen bytes a thread, which are four of
// f32 and eight of bf16.
template <class T, int V> struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Some {
  T of[V];
};

template <int V, class T> __device__ __forceinline__ Some<T, V> some(const T *p, u64 i) {
  return ((const Some<T, V> *)p)[i];
}

template <int V, class T> __device__ __forceinline__ void put(T *p, u64 i, Some<T, V> v) {
  ((Some<T, V> *)p)[i] = v;
}

// Whether what begins at both places can be read four at a time, in rows of `c`.
__device__ __forceinline__ bool by_four(u32 c, const void *a, const void *b) {
  return c % 4 == 0 && (((u64)a | (u64)b) & 15) == 0;
}

// Calls what is made for so many numbers at a time.
#define IN_FOURS(four, name, ...) \
  do { \
    if (four) name<4>(__VA_ARGS__); \
    else name<1>(__VA_ARGS__); \
  } while (0)

// The same of bf16, also eight at a time in rows of `c`: where four can be read sixteen bytes can, which are eight of it.
#define IN_EIGHTS(four, c, name, ...) \
  do { \
    if ((four) && (c) % 8 == 0) name<8>(__VA_ARGS__); \
    else IN_FOURS(four, name, __VA_ARGS__); \
  } while (0)

// bf16: to the nearest, ties to even; NaN stays NaN, and quiet. As `num::bf16`.
__device__ __forceinline__ u32 rounded_bits(float x) {
  u32 bits = __float_as_uint(x);
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return (nan ? bits | 0x00400000u : bits + (0x7fffu + (bits >> 16 & 1))) & 0xffff0000u;
}

__device__ __forceinline__ float rounded(float x) { return __uint_as_float(rounded_bits(x)); }

// A number of memory, of either type.
__device__ __forceinline__ float f32_of(float x) { return x; }
__device__ __forceinline__ float f32_of(bf16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ void set(float *to, float x) { *to = x; }
__device__ __forceinline__ void set(bf16 *to, float x) { *to = (bf16)(rounded_bits(x) >> 16); }

// Sums of f32 into memory of bf16.
template <int V> __device__ __forceinline__ void put(bf16 *p, u64 i, Some<float, V> v) {
  Some<bf16, V> made;
#pragma unroll
  for (int k = 0; k < V; k++) set(&made.of[k], v.of[k]);
  put<V>(p, i, made);
}

// `y[i] = f(x[i])`, whatever the grid; `y` may be `x`.
template <class To, class From, class F> __device__ __forceinline__ void map(To *y, const From *x, u64 n, F f) {
  constexpr int V = 16 / sizeof(From);
  u64 words = by_four(4, x, y) ? n / V : 0;
#pragma unroll 1
  EACH(i, words) {
    Some<From, V> v = some<V>(x, i);
    Some<To, V> made;
#pragma unroll
    for (int k = 0; k < V; k++) set(&made.of[k], f(f32_of(v.of[k])));
    put<V>(y, i, made);
  }
#pragma unroll 1
  EACH(i, n - V * words) set(&y[V * words + i], f(f32_of(x[V * words + i])));
}

// `y[i] = f(a[i], b[i])`; `y` may be either.
template <class To, class A, class B, class F>
__device__ __forceinline__ void map_both(To *y, const A *a, const B *b, u64 n, F f) {
  constexpr int V = 16 / (sizeof(A) < sizeof(B) ? sizeof(B) : sizeof(A));
  u64 words = by_four(4, a, y) && by_four(4, b, b) ? n / V : 0;
#pragma unroll 1
  EACH(i, words) {
    Some<A, V> v = some<V>(a, i);
    Some<B, V> w = some<V>(b, i);
    Some<To, V> made;
#pragma unroll
    for (int k = 0; k < V; k++) set(&made.of[k], f(f32_of(v.of[k]), f32_of(w.of[k])));
    put<V>(y, i, made);
  }
#pragma unroll 1
  EACH(i, n - V * words) {
    u64 at = V * words + i;
    set(&y[at], f(f32_of(a[at]), f32_of(b[at])));
  }
}

// Threads that add up one row, as the CPU does: sixteen chains, folded by halves.
#define LANES 16
// Rows of one block.
#define LINES 8
// Rows whose sum is one chain in f32.
#define BLOCK 64
// Lines of such sums that a block adds up.
#define GROUP 256

// Adds up the lanes' sums of each row of a block, as `nn::lanes` folds its chains. Every thread must come here.
__device__ __forceinline__ float fold_lanes(float (*sums)[LANES], float own) {
  sums[threadIdx.y][threadIdx.x] = own;
  __syncthreads();
  for (u32 half = LANES / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.y][threadIdx.x] += sums[threadIdx.y][threadIdx.x + half];
    __syncthreads();
  }
  float total = sums[threadIdx.y][0];
  __syncthreads();
  return total;
}
