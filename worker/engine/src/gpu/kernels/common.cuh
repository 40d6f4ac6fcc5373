// What kernels share. It stands before each of them: there are no includes, so nothing is looked for on the machine.
//
// Rules. No float atomics. Every sum has one order, a function of the shape alone, never of the grid. No contraction of
// products and sums (the compiler is told so), no approximate functions: where an order is the CPU's, so are the bits.
typedef unsigned int u32;
typedef unsigned long long u64;

// Every element of a flat buffer, whatever the grid.
#define EACH(i, n) \
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (u64)gridDim.x * blockDim.x)

// Threads that add up one row, as the CPU does: sixteen chains, folded by halves.
#define LANES 16
// Rows of one block.
#define LINES 8
// Rows whose sum is one chain in f32.
#define BLOCK 64

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
