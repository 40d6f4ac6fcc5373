// Updates of runs of flat buffers, as `optim` makes them.

extern "C" __global__ void adamw(float *values, const float *mean, float *first, float *second, u64 n, float b1, float n1,
                                 float b2, float n2, float eps, float keep, float rate, float c2) {
  EACH(i, n) {
    float g = mean[i], m = b1 * first[i] + n1 * g, v = b2 * second[i] + n2 * g * g;
    first[i] = m;
    second[i] = v;
    values[i] = values[i] * keep - rate * m / (sqrtf(v) / c2 + eps);
  }
}

extern "C" __global__ void sgd(float *values, const float *mean, float *first, u64 n, float momentum, float lr,
                               float decay) {
  EACH(i, n) {
    float m = momentum * first[i] + (mean[i] + decay * values[i]);
    first[i] = m;
    values[i] -= lr * m;
  }
}

// Σ x² of each 4096 elements, in f64: eight chains of every eighth square, added in order. A block of 8 x 32 threads has
// 32 of them; who asks folds the sums pairwise.
extern "C" __global__ void squares(double *sums, const float *x, u64 n) {
  __shared__ double chains[32][8];
  u64 first = ((u64)blockIdx.x * 32 + threadIdx.y) * 4096, last = first + 4096 < n ? first + 4096 : n;
  double sum = 0.0;
  for (u64 i = first + threadIdx.x; i < last; i += 8) sum += (double)x[i] * (double)x[i];
  chains[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0 && first < n) {
    sum = 0.0;
    for (u32 k = 0; k < 8; k++) sum += chains[threadIdx.y][k];
    sums[(u64)blockIdx.x * 32 + threadIdx.y] = sum;
  }
}
