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
// eighth line, joined in order. `give` has what becomes of a channel of the block's group.
template <class T, class F>
__device__ __forceinline__ void join_group(const T *lines, u64 rows, u64 each, u32 c, F give) {
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
    give(channel, count, mean, square);
  }
}

// Moments of each group. In front of them is the count of the first group: that of all, where there is one.
template <class T>
__device__ __forceinline__ void join_lines(double *all, const T *lines, u64 rows, u64 each, u32 c) {
  join_group(lines, rows, each, c, [=](u32 channel, double count, double mean, double square) {
    double *to = all + 1 + (u64)blockIdx.y * 2 * c;
    if (channel == 0 && blockIdx.y == 0) all[0] = count;
    to[channel] = mean;
    to[c + channel] = square;
  });
}

extern "C" __global__ void join_moments(double *all, const float *lines, u64 rows, u64 each, u32 c) {
  join_lines(all, lines, rows, each, c);
}

// The same of groups.
extern "C" __global__ void join_groups(double *all, const double *lines, u64 rows, u64 each, u32 c) {
  join_lines(all, lines, rows, each, c);
}

// Mean, 1/√(var + eps), var of a channel.
__device__ __forceinline__ void state(float *stats, u32 c, u32 channel, double count, double mean, double square,
                                      float eps) {
  double var = square / count;
  stats[channel] = (float)mean;
  stats[c + channel] = (float)(1.0 / sqrt(var + (double)eps));
  stats[2 * c + channel] = (float)var;
}

// Statistics of one group, which has all.
template <class T>
__device__ __forceinline__ void state_lines(float *stats, const T *lines, u64 rows, u64 each, float eps, u32 c) {
  join_group(lines, rows, each, c, [=](u32 channel, double count, double mean, double square) {
    state(stats, c, channel, count, mean, square, eps);
  });
}

extern "C" __global__ void join_statistics(float *stats, const float *lines, u64 rows, u64 each, float eps, u32 c) {
  state_lines(stats, lines, rows, each, eps, c);
}

extern "C" __global__ void join_group_statistics(float *stats, const double *lines, u64 rows, u64 each, float eps,
                                                 u32 c) {
  state_lines(stats, lines, rows, each, eps, c);
}

// Of moments that have been joined.
extern "C" __global__ void statistics(float *stats, const double *all, float eps, u32 c) {
  EACH(i, c) state(stats, c, i, all[0], all[1 + i], all[1 + c + i], eps);
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

// What a norm has of some channels.
template <int V> struct Channels {
  Some<float, V> mean, scale, beta;
};

template <int V>
__device__ __forceinline__ Channels<V> channels_of(const float *stats, const float *gamma, const float *beta, u32 c,
                                                   u32 place) {
  Channels<V> own = {some<V>(stats, place), some<V>(stats + c, place), some<V>(beta, place)};
  Some<float, V> g = some<V>(gamma, place);
#pragma unroll
  for (int k = 0; k < V; k++) own.scale.of[k] *= g.of[k];
  return own;
}

// Common activations are made for four numbers at a time, or eight of bf16, where a thread has the same channels in each of
// its rows, and reads what belongs to them once. Whatever else there is goes one by one.
#define ANY -1
#define AT_ONCE(Read, name, ...) \
  if (MOST<Read> == 8 && c % 8 == 0) name<MOST<Read>>(__VA_ARGS__); \
  else name<4>(__VA_ARGS__)

// Numbers of that type that are read at a time, at most.
template <class Read> constexpr int MOST = 16 / sizeof(Read);

// Whether the grid is such that it has, for as many of that type.
template <class Read> __device__ __forceinline__ bool steady(u32 c) {
  return rest(THREADS, c / (c % MOST<Read> ? 4 : MOST<Read>)) == 0;
}

template <int V, class T, class Act>
__device__ __forceinline__ void normalise_rows(T *y, const T *x, const float *stats, const float *gamma,
                                               const float *beta, u64 n, u32 c, Act act) {
  Channels<V> own;
  if (V > 1) own = channels_of<V>(stats, gamma, beta, c, rest(THREAD, c / V));
#pragma unroll 1
  EACH_IN_ROWS(i, n / V, place, c / V) {
    if (V == 1) own = channels_of<V>(stats, gamma, beta, c, place);
    Some<T, V> v = some<V>(x, i);
#pragma unroll
    for (int k = 0; k < V; k++)
      set(&v.of[k], act_of(act, normalised(f32_of(v.of[k]), own.mean.of[k], own.scale.of[k], own.beta.of[k])));
    put<V>(y, i, v);
  }
}

template <class T>
__device__ __forceinline__ void normalise_all(T *y, const T *x, const float *stats, const float *gamma,
                                              const float *beta, u64 n, u32 c, int act) {
  bool many = by_four(c, x, y) && by_four(c, gamma, beta) && by_four(c, stats, stats) && steady<T>(c);
  BY_ACT(many ? act : ANY, known, AT_ONCE(T, normalise_rows, y, x, stats, gamma, beta, n, c, known),
         normalise_rows<1>(y, x, stats, gamma, beta, n, c, act));
}

extern "C" __global__ void normalise(float *y, const float *x, const float *stats, const float *gamma,
                                     const float *beta, u64 n, u32 c, int act) {
  normalise_all(y, x, stats, gamma, beta, n, c, act);
}

extern "C" __global__ void normalise_bf16(bf16 *y, const bf16 *x, const float *stats, const float *gamma,
                                          const float *beta, u64 n, u32 c, int act) {
  normalise_all(y, x, stats, gamma, beta, n, c, act);
}

// The gradient before the activation. It is made anew wherever it is needed: in memory of bf16 it would be rounded.
template <class Act>
__device__ __forceinline__ float before(Act act, float x, float mean, float scale, float beta, float dy) {
  return slope_of(act, normalised(x, mean, scale, beta), dy);
}

// What a word of memory holds: a number of f32, one of bf16, or two neighbours of bf16 in the bytes of one of f32.
__device__ __forceinline__ float part_of(float word, int) { return word; }
__device__ __forceinline__ float part_of(bf16 word, int) { return f32_of(word); }
__device__ __forceinline__ float part_of(u32 word, int k) { return f32_of((bf16)(k ? word >> 16 : word)); }

// Of words that hold `V` channels each; `AHEAD` rows, a part of `BLOCK`, are asked for before the first is waited for.
template <int V, int AHEAD, class Slope, class Word, class Act>
__device__ __forceinline__ void slopes_of(float *lines, const Slope *dy, const Word *x, const float *stats,
                                          const float *gamma, const float *beta, u64 rows, u32 c, Act act) {
  u64 blocks = (rows + BLOCK - 1) / BLOCK;
  u32 words = c / V;
  EACH(i, blocks * words) {
    u64 line = over(i, words), first = line * BLOCK;
    u32 word = rest(i, words), count = rows - first < BLOCK ? (u32)(rows - first) : BLOCK;
    const Word *from = x + first * words + word;
    const Slope *slopes = dy + first * words + word;
    Channels<V> own = channels_of<V>(stats, gamma, beta, c, word);
    Some<float, V> plain = {}, times = {};
#pragma unroll 1
    for (u32 row = 0; row < count; row += AHEAD) {
      Word v[AHEAD];
      Slope d[AHEAD];
#pragma unroll
      for (u32 n = 0; n < AHEAD; n++, from += words, slopes += words) {
        bool there = row + n < count;
        v[n] = there ? *from : (Word)0;
        d[n] = there ? *slopes : (Slope)0;
      }
#pragma unroll
      for (u32 n = 0; n < AHEAD; n++) {
        if (row + n >= count) break;
#pragma unroll
        for (int k = 0; k < V; k++) {
          float value = part_of(v[n], k), mean = own.mean.of[k];
          float slope = before(act, value, mean, own.scale.of[k], own.beta.of[k], part_of(d[n], k));
          plain.of[k] += slope;
          times.of[k] += slope * (value - mean);
        }
      }
    }
    put<V>(lines + line * 2 * c, word, plain);
    put<V>(lines + line * 2 * c + c, word, times);
  }
}

template <int V, class Slope, class Word>
__device__ __forceinline__ void slopes_by_act(float *lines, const Slope *dy, const Word *x, const float *stats,
                                              const float *gamma, const float *beta, u64 rows, u32 c, int act) {
  BY_ACT(act, known, (slopes_of<V, 8>(lines, dy, x, stats, gamma, beta, rows, c, known)),
         (slopes_of<V, 1>(lines, dy, x, stats, gamma, beta, rows, c, act)));
}

// Of the gradient before the activation, of 64 rows each: Σ dz and Σ dz·(x − mean), lines of 2c numbers.
extern "C" __global__ void norm_slopes(float *__restrict__ lines, const float *__restrict__ dy,
                                       const float *__restrict__ x, const float *__restrict__ stats,
                                       const float *__restrict__ gamma, const float *__restrict__ beta, u64 rows, u32 c,
                                       int act) {
  slopes_by_act<1>(lines, dy, x, stats, gamma, beta, rows, c, act);
}

extern "C" __global__ void norm_slopes_bf16(float *__restrict__ lines, const bf16 *__restrict__ dy,
                                            const bf16 *__restrict__ x, const float *__restrict__ stats,
                                            const float *__restrict__ gamma, const float *__restrict__ beta, u64 rows,
                                            u32 c, int act) {
  slopes_by_act<1>(lines, dy, x, stats, gamma, beta, rows, c, act);
}

// The same of an even number of channels, two a thread.
extern "C" __global__ void norm_slopes_pairs(float *__restrict__ lines, const bf16 *__restrict__ dy,
                                             const bf16 *__restrict__ x, const float *__restrict__ stats,
                                             const float *__restrict__ gamma, const float *__restrict__ beta, u64 rows,
                                             u32 c, int act) {
  slopes_by_act<2>(lines, (const u32 *)dy, (const u32 *)x, stats, gamma, beta, rows, c, act);
}

// The same of slopes in f32.
extern "C" __global__ void norm_slopes_mixed(float *__restrict__ lines, const float *__restrict__ dy,
                                             const bf16 *__restrict__ x, const float *__restrict__ stats,
                                             const float *__restrict__ gamma, const float *__restrict__ beta, u64 rows,
                                             u32 c, int act) {
  slopes_by_act<1>(lines, dy, x, stats, gamma, beta, rows, c, act);
}

// Adds the gradient of γ.
extern "C" __global__ void norm_gamma(float *dgamma, const double *sums, const float *stats, u32 c) {
  EACH(i, c) dgamma[i] += (float)(sums[c + i] * (double)stats[c + i]);
}

// Adds the linear terms of running statistics, around their mean r: Σ(x − r), Σ(x − r)² and the count.
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

template <int V> struct Terms {
  Some<float, V> mean, beta, scale, a, b;
};

template <int V>
__device__ __forceinline__ Terms<V> terms_of(const float *terms, const float *stats, const float *beta, u32 c, u32 place) {
  return {some<V>(stats, place), some<V>(beta, place), some<V>(terms, place), some<V>(terms + c, place),
          some<V>(terms + 2 * c, place)};
}

// Slopes in either type; what is given lies as `x` does.
template <int V, class Slope, class T, class Act>
__device__ __forceinline__ void through_rows(T *dx, const Slope *dy, const T *x, const float *terms, const float *stats,
                                             const float *beta, u64 n, u32 c, Act act) {
  Terms<V> own;
  if (V > 1) own = terms_of<V>(terms, stats, beta, c, rest(THREAD, c / V));
#pragma unroll 1
  EACH_IN_ROWS(i, n / V, place, c / V) {
    if (V == 1) own = terms_of<V>(terms, stats, beta, c, place);
    Some<Slope, V> d = some<V>(dy, i);
    Some<T, V> v = some<V>(x, i);
#pragma unroll
    for (int k = 0; k < V; k++) {
      float value = f32_of(v.of[k]), mean = own.mean.of[k], scale = own.scale.of[k];
      float slope = before(act, value, mean, scale, own.beta.of[k], f32_of(d.of[k]));
      set(&v.of[k], slope * scale + ((value - mean) * own.a.of[k] + own.b.of[k]));
    }
    put<V>(dx, i, v);
  }
}

template <class Slope, class T>
__device__ __forceinline__ void through_all(T *dx, const Slope *dy, const T *x, const float *terms, const float *stats,
                                            const float *beta, u64 n, u32 c, int act) {
  bool many = by_four(c, dx, dy) && by_four(c, x, beta) && by_four(c, terms, stats) && steady<Slope>(c);
  BY_ACT(many ? act : ANY, known, AT_ONCE(Slope, through_rows, dx, dy, x, terms, stats, beta, n, c, known),
         through_rows<1>(dx, dy, x, terms, stats, beta, n, c, act));
}

// Through the activation and the statistics.
extern "C" __global__ void norm_through(float *dx, const float *dy, const float *x, const float *terms,
                                        const float *stats, const float *beta, u64 n, u32 c, int act) {
  through_all(dx, dy, x, terms, stats, beta, n, c, act);
}

extern "C" __global__ void norm_through_bf16(bf16 *dx, const bf16 *dy, const bf16 *x, const float *terms,
                                             const float *stats, const float *beta, u64 n, u32 c, int act) {
  through_all(dx, dy, x, terms, stats, beta, n, c, act);
}

extern "C" __global__ void norm_through_mixed(bf16 *dx, const float *dy, const bf16 *x, const float *terms,
                                              const float *stats, const float *beta, u64 n, u32 c, int act) {
  through_all(dx, dy, x, terms, stats, beta, n, c, act);
}

template <int V, class Slope, class T, class Act>
__device__ __forceinline__ void fixed_rows(T *dx, const Slope *dy, const T *x, const float *stats, const float *gamma,
                                           const float *beta, u64 n, u32 c, Act act) {
  Channels<V> own;
  if (V > 1) own = channels_of<V>(stats, gamma, beta, c, rest(THREAD, c / V));
#pragma unroll 1
  EACH_IN_ROWS(i, n / V, place, c / V) {
    if (V == 1) own = channels_of<V>(stats, gamma, beta, c, place);
    Some<Slope, V> d = some<V>(dy, i);
    Some<T, V> v = {};
    if (bends(act)) v = some<V>(x, i);
#pragma unroll
    for (int k = 0; k < V; k++) {
      float scale = own.scale.of[k];
      float slope = before(act, f32_of(v.of[k]), own.mean.of[k], scale, own.beta.of[k], f32_of(d.of[k]));
      set(&v.of[k], slope * scale);
    }
    put<V>(dx, i, v);
  }
}

template <class Slope, class T>
__device__ __forceinline__ void fixed_all(T *dx, const Slope *dy, const T *x, const float *stats, const float *gamma,
                                          const float *beta, u64 n, u32 c, int act) {
  bool many = by_four(c, dx, dy) && by_four(c, x, stats) && by_four(c, gamma, beta) && steady<Slope>(c);
  BY_ACT(many ? act : ANY, known, AT_ONCE(Slope, fixed_rows, dx, dy, x, stats, gamma, beta, n, c, known),
         fixed_rows<1>(dx, dy, x, stats, gamma, beta, n, c, act));
}

// Through the activation and fixed statistics; without an activation `x` is not read.
extern "C" __global__ void norm_fixed_back(float *dx, const float *dy, const float *x, const float *stats,
                                           const float *gamma, const float *beta, u64 n, u32 c, int act) {
  fixed_all(dx, dy, x, stats, gamma, beta, n, c, act);
}

extern "C" __global__ void norm_fixed_back_bf16(bf16 *dx, const bf16 *dy, const bf16 *x, const float *stats,
                                                const float *gamma, const float *beta, u64 n, u32 c, int act) {
  fixed_all(dx, dy, x, stats, gamma, beta, n, c, act);
}

extern "C" __global__ void norm_fixed_back_mixed(bf16 *dx, const float *dy, const bf16 *x, const float *stats,
                                                 const float *gamma, const float *beta, u64 n, u32 c, int act) {
  fixed_all(dx, dy, x, stats, gamma, beta, n, c, act);
}
