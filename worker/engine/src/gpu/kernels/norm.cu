// Batch-norm over the rows of a grain, and the activation after it; `nn::norm` says what each number is.

// The mean of each channel of 64 rows, then its Σ(x − mean)²: lines of 2c numbers.
extern "C" __global__ void moments(float *lines, const float *x, u64 rows, u32 c) {
  u64 blocks = (rows + BLOCK - 1) / BLOCK;
  EACH(i, blocks * c) {
    u64 block = i / c, first = block * BLOCK, last = first + BLOCK < rows ? first + BLOCK : rows;
    u32 channel = i % c;
    double sum = 0.0;
    for (u64 row = first; row < last; row++) sum += (double)x[row * c + channel];
    float mean = (float)(sum * (1.0 / (double)(last - first)));
    double square = 0.0;
    for (u64 row = first; row < last; row++) {
      double d = (double)(x[row * c + channel] - mean);
      square += d * d;
    }
    lines[block * 2 * c + channel] = mean;
    lines[block * 2 * c + c + channel] = (float)square;
  }
}

// Adds moments to moments (Chan et al., 1979).
__device__ __forceinline__ void join(double *count, double *mean, double *square, double n, double m, double q) {
  if (n == 0.0) return;
  double share = n / (*count + n), delta = m - *mean;
  *mean += delta * share;
  *square += q + delta * delta * *count * share;
  *count += n;
}

// Joins the lines of all blocks: a count, the means, the squares. Eight chains of every eighth line, joined in order.
extern "C" __global__ void join_moments(double *all, const float *lines, u64 rows, u32 c) {
  __shared__ double chains[3][8][32];
  u64 blocks = (rows + BLOCK - 1) / BLOCK;
  u32 channel = blockIdx.x * 32 + threadIdx.x;
  double count = 0.0, mean = 0.0, square = 0.0;
  if (channel < c)
    for (u64 block = threadIdx.y; block < blocks; block += 8) {
      u64 own = rows - block * BLOCK < BLOCK ? rows - block * BLOCK : BLOCK;
      join(&count, &mean, &square, (double)own, (double)lines[block * 2 * c + channel],
           (double)lines[block * 2 * c + c + channel]);
    }
  chains[0][threadIdx.y][threadIdx.x] = count;
  chains[1][threadIdx.y][threadIdx.x] = mean;
  chains[2][threadIdx.y][threadIdx.x] = square;
  __syncthreads();
  if (threadIdx.y == 0 && channel < c) {
    for (u32 k = 1; k < 8; k++)
      join(&count, &mean, &square, chains[0][k][threadIdx.x], chains[1][k][threadIdx.x], chains[2][k][threadIdx.x]);
    if (channel == 0) all[0] = count;
    all[1 + channel] = mean;
    all[1 + c + channel] = square;
  }
}

// Mean, 1/√(var + eps), var of each channel.
extern "C" __global__ void statistics(float *stats, const double *all, float eps, u32 c) {
  EACH(i, c) {
    double var = all[1 + c + i] / all[0];
    stats[i] = (float)all[1 + i];
    stats[c + i] = (float)(1.0 / sqrt(var + (double)eps));
    stats[2 * c + i] = (float)var;
  }
}

// The same of running statistics.
extern "C" __global__ void running_statistics(float *stats, const float *mean, const float *var, float eps, u32 c) {
  EACH(i, c) {
    stats[i] = mean[i];
    stats[c + i] = 1.0f / sqrtf(var[i] + eps);
    stats[2 * c + i] = var[i];
  }
}

__device__ __forceinline__ float normalised(const float *x, const float *stats, const float *gamma, const float *beta,
                                            u64 i, u32 channel, u32 c) {
  return fmaf(x[i] - stats[channel], gamma[channel] * stats[c + channel], beta[channel]);
}

extern "C" __global__ void normalise(float *y, const float *x, const float *stats, const float *gamma,
                                     const float *beta, u64 n, u32 c, int act) {
  EACH(i, n) y[i] = act_of(act, normalised(x, stats, gamma, beta, i, i % c, c));
}

// The gradient before the activation, and of 64 rows each: Σ dz and Σ dz·(x − mean), lines of 2c numbers.
extern "C" __global__ void norm_before(float *dz, float *lines, const float *dy, const float *x, const float *stats,
                                       const float *gamma, const float *beta, u64 rows, u32 c, int act) {
  u64 blocks = (rows + BLOCK - 1) / BLOCK;
  EACH(i, blocks * c) {
    u64 block = i / c, first = block * BLOCK, last = first + BLOCK < rows ? first + BLOCK : rows;
    u32 channel = i % c;
    float plain = 0.0f, times = 0.0f;
    for (u64 row = first; row < last; row++) {
      u64 at = row * c + channel;
      float g = dy[at];
      if (act != NONE) g = slope_of(act, normalised(x, stats, gamma, beta, at, channel, c), g);
      dz[at] = g;
      plain += g;
      times += g * (x[at] - stats[channel]);
    }
    lines[block * 2 * c + channel] = plain;
    lines[block * 2 * c + c + channel] = times;
  }
}

// Adds the gradient of γ.
extern "C" __global__ void norm_gamma(float *dgamma, const double *sums, const float *stats, u32 c) {
  EACH(i, c) dgamma[i] += (float)(sums[c + i] * (double)stats[c + i]);
}

// Adds the linear terms of running statistics: Σ(x − r), Σ(x − r)² and the count.
extern "C" __global__ void norm_deposit(float *slot, const float *stats, const float *running, double count, u32 c) {
  EACH(i, c) {
    double shift = (double)stats[i] - (double)running[i];
    slot[i] += (float)(count * shift);
    slot[c + i] += (float)(count * ((double)stats[2 * c + i] + shift * shift));
    if (i == 0) slot[2 * c] += (float)count;
  }
}

// Through the statistics of `count` rows, in place: dx = scale·dz + a·(x − mean) + b.
extern "C" __global__ void norm_through(float *dz, const float *x, const double *sums, const float *stats,
                                        const float *gamma, double count, u64 n, u32 c) {
  EACH(i, n) {
    u32 channel = i % c;
    float inverse = stats[c + channel], scale = gamma[channel] * inverse;
    double slope = (double)inverse * (double)inverse * sums[c + channel] / count;
    float a = (float)(-(double)scale * slope), b = (float)(-(double)scale * sums[channel] / count);
    dz[i] = dz[i] * scale + ((x[i] - stats[channel]) * a + b);
  }
}

// Through fixed statistics, in place.
extern "C" __global__ void norm_scaled(float *dz, const float *stats, const float *gamma, u64 n, u32 c) {
  EACH(i, n) dz[i] *= gamma[i % c] * stats[c + i % c];
}

// Through the activation and fixed statistics at once; without an activation `x` is not read.
extern "C" __global__ void norm_fixed_back(float *dx, const float *dy, const float *x, const float *stats,
                                           const float *gamma, const float *beta, u64 n, u32 c, int act) {
  EACH(i, n) {
    u32 channel = i % c;
    float g = dy[i];
    if (act != NONE) g = slope_of(act, normalised(x, stats, gamma, beta, i, channel, c), g);
    dx[i] = g * (gamma[channel] * stats[c + channel]);
  }
}
