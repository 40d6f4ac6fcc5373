// Batch-norm over the rows of a grain, and the activation after it; `nn::norm` says what each number is. What lies in bf16
// is computed in f32, and rounded once where it is written.

template <class T>
__device__ __forceinline__ void moments_of(float *lines, const T *x, u64 rows, u32 c) {
  u64 blocks = (rows + BLOCK - 1) / BLOCK;
  EACH(i, blocks * c) {
    u64 line = over(i, c), first = line * BLOCK;
    u32 channel = rest(i, c), count = rows - first < BLOCK ? (u32)(rows - first) : BLOCK;
    const T *from = x + first * c + channel;
    // All of them are asked for before the first is waited for. What is behind the last row adds nothing.
    float own[BLOCK];
#pragma unroll
    for (u32 k = 0; k < BLOCK; k++) own[k] = k < count ? f32_of(from[(u64)k * c]) : 0.0f;
    double sum = 0.0, square = 0.0;
#pragma unroll
    for (u32 k = 0; k < BLOCK; k++) sum += (double)own[k];
    float mean = (float)(sum * (1.0 / (double)count));
#pragma unroll
    for (u32 k = 0; k < BLOCK; k++) {
      double d = k < count ? (double)(own[k] - mean) : 0.0;
      square += d * d;
    }
    lines[line * 2 * c + channel] = mean;
    lines[line * 2 * c + c + channel] = (float)square;
  }
}

// The mean of each channel of 64 rows, then its Σ(x − mean)²: lines of 2c numbers.
extern "C" __global__ void moments(float *__restrict__ lines, const float *__restrict__ x, u64 rows, u32 c) {
  moments_of(lines, x, rows, c);
}

extern "C" __global__ void moments_bf16(float *__restrict__ lines, const bf16 *__restrict__ x, u64 rows, u32 c) {
  moments_of(lines, x, rows, c);
}

// Adds moments to moments (Chan et al., 1979).
__device__ __forceinline__ void join(double *count, double *mean, double *square, double n, double m, double q) {
  if (n == 0.0) return;
  double share = n / (*count + n), delta = m - *mean;
  *mean += delta * share;
  *square += q + delta * delta * *count * share;
  *count += n;
}

// Joins lines of means and squares, each of `each` rows (the last of what is left), in groups of 256: eight chains of every
// eighth line, joined in order. In front of what it gives is the count of the first group: that of all, where there is one.
template <class T>
__device__ __forceinline__ void join_group(double *all, const T *lines, u64 rows, u64 each, u32 c) {
  __shared__ double chains[3][8][32];
  u64 lines_of_all = (rows + each - 1) / each, first = (u64)blockIdx.y * GROUP;
  u64 last = first + GROUP < lines_of_all ? first + GROUP : lines_of_all;
  u32 channel = blockIdx.x * 32 + threadIdx.x;
  double count = 0.0, mean = 0.0, square = 0.0;
  if (channel < c)
    for (u64 line = first + threadIdx.y; line < last; line += 8) {
      u64 own = rows - line * each < each ? rows - line * each : each;
      join(&count, &mean, &square, (double)own, (double)lines[line * 2 * c + channel],
           (double)lines[line * 2 * c + c + channel]);
    }
  chains[0][threadIdx.y][threadIdx.x] = count;
  chains[1][threadIdx.y][threadIdx.x] = mean;
  chains[2][threadIdx.y][threadIdx.x] = square;
  __syncthreads();
  if (threadIdx.y == 0 && channel < c) {
    for (u32 k = 1; k < 8; k++)
      join(&count, &mean, &square, chains[0][k][threadIdx.x], chains[1][k][threadIdx.x], chains[2][k][threadIdx.x]);
    double *to = all + 1 + (u64)blockIdx.y * 2 * c;
    if (channel == 0 && blockIdx.y == 0) all[0] = count;
    to[channel] = mean;
    to[c + channel] = square;
  }
}

extern "C" __global__ void join_moments(double *all, const float *lines, u64 rows, u64 each, u32 c) {
  join_group(all, lines, rows, each, c);
}

// The same of groups.
extern "C" __global__ void join_groups(double *all, const double *lines, u64 rows, u64 each, u32 c) {
  join_group(all, lines, rows, each, c);
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

// `scale` is γ / √(var + eps).
__device__ __forceinline__ float normalised(float x, float mean, float scale, float beta) {
  return fmaf(x - mean, scale, beta);
}

template <int V, class T>
__device__ __forceinline__ void normalise_rows(T *y, const T *x, const float *stats, const float *gamma,
                                               const float *beta, u64 n, u32 c, int act) {
  EACH_IN_ROWS(i, n / V, channel, c / V) {
    Some<T, V> v = some<V>(x, i);
    Some<float, V> mean = some<V>(stats, channel), inverse = some<V>(stats + c, channel);
    Some<float, V> g = some<V>(gamma, channel), b = some<V>(beta, channel);
#pragma unroll
    for (int k = 0; k < V; k++)
      set(&v.of[k], act_of(act, normalised(f32_of(v.of[k]), mean.of[k], g.of[k] * inverse.of[k], b.of[k])));
    put<V>(y, i, v);
  }
}

extern "C" __global__ void normalise(float *y, const float *x, const float *stats, const float *gamma,
                                     const float *beta, u64 n, u32 c, int act) {
  bool four = by_four(c, x, y) && by_four(c, gamma, beta) && by_four(c, stats, stats);
  IN_FOURS(four, normalise_rows, y, x, stats, gamma, beta, n, c, act);
}

extern "C" __global__ void normalise_bf16(bf16 *y, const bf16 *x, const float *stats, const float *gamma,
                                          const float *beta, u64 n, u32 c, int act) {
  bool four = by_four(c, x, y) && by_four(c, gamma, beta) && by_four(c, stats, stats);
  IN_FOURS(four, normalise_rows, y, x, stats, gamma, beta, n, c, act);
}

// The gradient before the activation. It is made anew wherever it is needed: in memory of bf16 it would be rounded.
__device__ __forceinline__ float before(int act, float x, float mean, float scale, float beta, float dy) {
  return slope_of(act, normalised(x, mean, scale, beta), dy);
}

// What a word of memory holds: a number of f32, one of bf16, or two neighbours of bf16 in the bytes of one of f32.
__device__ __forceinline__ float part_of(float word, int) { return word; }
__device__ __forceinline__ float part_of(bf16 word, int) { return f32_of(word); }
__device__ __forceinline__ float part_of(u32 word, int k) { return f32_of((bf16)(k ? word >> 16 : word)); }

// Rows that a thread asks for before it waits for the first; a part of `BLOCK`.
#define AHEAD 8

// Of words that hold `V` channels each.
template <int V, class Word>
__device__ __forceinline__ void slopes_of(float *lines, const Word *dy, const Word *x, const float *stats,
                                          const float *gamma, const float *beta, u64 rows, u32 c, int act) {
  u64 blocks = (rows + BLOCK - 1) / BLOCK;
  u32 words = c / V;
  EACH(i, blocks * words) {
    u64 line = over(i, words), first = line * BLOCK, last = first + BLOCK < rows ? first + BLOCK : rows;
    u32 word = rest(i, words);
    Some<float, V> mean = some<V>(stats, word), scale = some<V>(stats + c, word);
    Some<float, V> g = some<V>(gamma, word), b = some<V>(beta, word);
    Some<float, V> plain = {}, times = {};
#pragma unroll
    for (int k = 0; k < V; k++) scale.of[k] *= g.of[k];
    for (u64 row = first; row < last; row += AHEAD) {
      Word v[AHEAD], d[AHEAD];
#pragma unroll
      for (u32 n = 0; n < AHEAD; n++) {
        bool there = row + n < last;
        v[n] = there ? x[(row + n) * words + word] : (Word)0;
        d[n] = there ? dy[(row + n) * words + word] : (Word)0;
      }
#pragma unroll
      for (u32 n = 0; n < AHEAD; n++) {
        if (row + n >= last) break;
#pragma unroll
        for (int k = 0; k < V; k++) {
          float own = part_of(v[n], k);
          float slope = before(act, own, mean.of[k], scale.of[k], b.of[k], part_of(d[n], k));
          plain.of[k] += slope;
          times.of[k] += slope * (own - mean.of[k]);
        }
      }
    }
    put<V>(lines + line * 2 * c, word, plain);
    put<V>(lines + line * 2 * c + c, word, times);
  }
}

// Of the gradient before the activation, of 64 rows each: Σ dz and Σ dz·(x − mean), lines of 2c numbers.
extern "C" __global__ void norm_slopes(float *__restrict__ lines, const float *__restrict__ dy,
                                       const float *__restrict__ x, const float *__restrict__ stats,
                                       const float *__restrict__ gamma, const float *__restrict__ beta, u64 rows, u32 c,
                                       int act) {
  slopes_of<1>(lines, dy, x, stats, gamma, beta, rows, c, act);
}

extern "C" __global__ void norm_slopes_bf16(float *__restrict__ lines, const bf16 *__restrict__ dy,
                                            const bf16 *__restrict__ x, const float *__restrict__ stats,
                                            const float *__restrict__ gamma, const float *__restrict__ beta, u64 rows,
                                            u32 c, int act) {
  if (c % 2 == 0) slopes_of<2>(lines, (const u32 *)dy, (const u32 *)x, stats, gamma, beta, rows, c, act);
  else slopes_of<1>(lines, dy, x, stats, gamma, beta, rows, c, act);
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

// What the gradient through the statistics of `count` rows is made of: dx = scale·dz + a·(x − mean) + b.
extern "C" __global__ void norm_terms(float *terms, const double *sums, const float *stats, const float *gamma,
                                      double count, u32 c) {
  EACH(i, c) {
    float inverse = stats[c + i], scale = gamma[i] * inverse;
    double slope = (double)inverse * (double)inverse * sums[c + i] / count;
    terms[i] = scale;
    terms[c + i] = (float)(-(double)scale * slope);
    terms[2 * c + i] = (float)(-(double)scale * sums[i] / count);
  }
}

template <int V, class T>
__device__ __forceinline__ void through_rows(T *dx, const T *dy, const T *x, const float *terms, const float *stats,
                                             const float *beta, u64 n, u32 c, int act) {
  EACH_IN_ROWS(i, n / V, channel, c / V) {
    Some<T, V> d = some<V>(dy, i), v = some<V>(x, i);
    Some<float, V> mean = some<V>(stats, channel), shift = some<V>(beta, channel), scale = some<V>(terms, channel);
    Some<float, V> a = some<V>(terms + c, channel), b = some<V>(terms + 2 * c, channel);
#pragma unroll
    for (int k = 0; k < V; k++) {
      float own = f32_of(v.of[k]);
      float slope = before(act, own, mean.of[k], scale.of[k], shift.of[k], f32_of(d.of[k]));
      set(&d.of[k], slope * scale.of[k] + ((own - mean.of[k]) * a.of[k] + b.of[k]));
    }
    put<V>(dx, i, d);
  }
}

// Through the activation and the statistics.
extern "C" __global__ void norm_through(float *dx, const float *dy, const float *x, const float *terms,
                                        const float *stats, const float *beta, u64 n, u32 c, int act) {
  bool four = by_four(c, dx, dy) && by_four(c, x, beta) && by_four(c, terms, stats);
  IN_FOURS(four, through_rows, dx, dy, x, terms, stats, beta, n, c, act);
}

extern "C" __global__ void norm_through_bf16(bf16 *dx, const bf16 *dy, const bf16 *x, const float *terms,
                                             const float *stats, const float *beta, u64 n, u32 c, int act) {
  bool four = by_four(c, dx, dy) && by_four(c, x, beta) && by_four(c, terms, stats);
  IN_FOURS(four, through_rows, dx, dy, x, terms, stats, beta, n, c, act);
}

template <int V, class T>
__device__ __forceinline__ void fixed_rows(T *dx, const T *dy, const T *x, const float *stats, const float *gamma,
                                           const float *beta, u64 n, u32 c, int act) {
  EACH_IN_ROWS(i, n / V, channel, c / V) {
    Some<T, V> d = some<V>(dy, i), v = act == NONE ? d : some<V>(x, i);
    Some<float, V> mean = some<V>(stats, channel), inverse = some<V>(stats + c, channel);
    Some<float, V> g = some<V>(gamma, channel), b = some<V>(beta, channel);
#pragma unroll
    for (int k = 0; k < V; k++) {
      float scale = g.of[k] * inverse.of[k];
      set(&d.of[k], before(act, f32_of(v.of[k]), mean.of[k], scale, b.of[k], f32_of(d.of[k])) * scale);
    }
    put<V>(dx, i, d);
  }
}

// Through the activation and fixed statistics; without an activation `x` is not read.
extern "C" __global__ void norm_fixed_back(float *dx, const float *dy, const float *x, const float *stats,
                                           const float *gamma, const float *beta, u64 n, u32 c, int act) {
  bool four = by_four(c, dx, dy) && by_four(c, x, stats) && by_four(c, gamma, beta);
  IN_FOURS(four, fixed_rows, dx, dy, x, stats, gamma, beta, n, c, act);
}

extern "C" __global__ void norm_fixed_back_bf16(bf16 *dx, const bf16 *dy, const bf16 *x, const float *stats,
                                                const float *gamma, const float *beta, u64 n, u32 c, int act) {
  bool four = by_four(c, dx, dy) && by_four(c, x, stats) && by_four(c, gamma, beta);
  IN_FOURS(four, fixed_rows, dx, dy, x, stats, gamma, beta, n, c, act);
}
