// Numbers that move towards others: averages towards values, and by their gradient values towards where they began.

extern "C" __global__ void average(float *averages, const float *values, u64 n, float towards) {
  EACH(i, n) averages[i] += towards * (values[i] - averages[i]);
}

// Adds `weight·f·(now − start)` to each number of a gradient, without an f where it is not known; Σ of what was added times
// the distance, for each 4096 elements, in f64: eight chains of every eighth one, added in order. A block of 8 x 32 threads
// has 32 of them.
extern "C" __global__ void pull(double *sums, float *mean, const float *now, const float *start, const float *f, u64 n,
                                float weight, u32 known) {
  __shared__ double chains[32][8];
  u64 first = ((u64)blockIdx.x * 32 + threadIdx.y) * 4096, last = first + 4096 < n ? first + 4096 : n;
  double sum = 0.0;
  for (u64 i = first + threadIdx.x; i < last; i += 8) {
    float away = now[i] - start[i], back = (known ? weight * f[i] : weight) * away;
    mean[i] += back;
    sum += (double)back * (double)away;
  }
  chains[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0 && first < n) {
    sum = 0.0;
    for (u32 k = 0; k < 8; k++) sum += chains[threadIdx.y][k];
    sums[(u64)blockIdx.x * 32 + threadIdx.y] = sum;
  }
}
