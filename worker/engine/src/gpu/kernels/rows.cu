// Sums by channel over the rows of a channels-last matrix, as `nn::rows` makes them: chains of 64 rows in f32, one line of
// sums for each; then the lines in f64.

template <class T>
__device__ __forceinline__ void sum_rows(float *__restrict__ lines, const T *__restrict__ x, u64 rows, u32 c) {
  u64 blocks = (rows + BLOCK - 1) / BLOCK;
  EACH(i, blocks * c) {
    u64 first = over(i, c) * BLOCK, last = first + BLOCK < rows ? first + BLOCK : rows;
    u32 channel = rest(i, c);
    float sum = 0.0f;
#pragma unroll 8
    for (u64 row = first; row < last; row++) sum += f32_of(x[row * c + channel]);
    lines[i] = sum;
  }
}

extern "C" __global__ void row_sums(float *lines, const float *x, u64 rows, u32 c) { sum_rows(lines, x, rows, c); }

extern "C" __global__ void row_sums_bf16(float *lines, const bf16 *x, u64 rows, u32 c) { sum_rows(lines, x, rows, c); }

extern "C" __global__ void row_products(float *__restrict__ lines, const float *__restrict__ x,
                                        const float *__restrict__ y, u64 rows, u32 c) {
  u64 blocks = (rows + BLOCK - 1) / BLOCK;
  EACH(i, blocks * c) {
    u64 first = over(i, c) * BLOCK, last = first + BLOCK < rows ? first + BLOCK : rows;
    u32 channel = rest(i, c);
    float sum = 0.0f;
#pragma unroll 8
    for (u64 row = first; row < last; row++) sum += x[row * c + channel] * y[row * c + channel];
    lines[i] = sum;
  }
}

// Adds up lines of `width` numbers in groups of 256. A block has one group of 32 columns, and eight chains for each: chain k
// takes every eighth line from the k-th on, and the chains are added in order. In f64 their order shows in no digit that f32
// keeps, nearly always.
template <class T>
__device__ __forceinline__ void total(double *sums, const T *lines, u64 count, u32 width) {
  __shared__ double chains[8][32];
  u32 column = blockIdx.x * 32 + threadIdx.x;
  u64 first = (u64)blockIdx.y * GROUP, last = first + GROUP < count ? first + GROUP : count;
  double sum = 0.0;
  if (column < width) {
#pragma unroll 8
    for (u64 line = first + threadIdx.y; line < last; line += 8) sum += (double)lines[line * width + column];
  }
  chains[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < width) {
    for (u32 k = 1; k < 8; k++) sum += chains[k][threadIdx.x];
    sums[(u64)blockIdx.y * width + column] = sum;
  }
}

extern "C" __global__ void total_lines(double *sums, const float *lines, u64 count, u32 width) {
  total(sums, lines, count, width);
}

// The same of groups.
extern "C" __global__ void total_groups(double *sums, const double *lines, u64 count, u32 width) {
  total(sums, lines, count, width);
}

// Adds totals to a gradient.
extern "C" __global__ void add_totals(float *to, const double *sums, u64 n) { EACH(i, n) to[i] += (float)sums[i]; }

// The same where the totals lie as `[taps, c]` and the gradient as `[c, taps]`.
extern "C" __global__ void add_totals_turned(float *to, const double *sums, u32 c, u32 taps) {
  EACH(i, (u64)c * taps) to[i] += (float)sums[i % taps * c + i / taps];
}
