// Dropout: what happens to an element is a function of its sample's draw, of the site and of its place in the sample. Random
// words come by fours, so that a thread has four elements.

// In place. `ends`: for each sample the element behind its last; samples lie one after the other.
extern "C" __global__ void dropout(float *x, const u64 *draws, const u64 *ends, u32 samples, u64 n, u32 key0, u32 key1,
                                   u32 site, float p, float keep) {
  EACH(four, (n + 3) / 4) {
    u64 first = four * 4;
    u32 sample = 0, high = samples - 1; // the first sample that ends behind the first element
    while (sample < high) {
      u32 middle = (sample + high) / 2;
      if (ends[middle] > first) high = middle;
      else sample = middle + 1;
    }
    float factors[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    Words words = {};
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
      if (first + k >= n) continue;
      u32 before = sample;
      while (ends[sample] <= first + k) sample++;
      u64 index = first + k - (sample ? ends[sample - 1] : 0);
      if (k == 0 || sample != before || index % 4 == 0)
        words = philox(key0, key1, draws[sample], site, (u32)(index / 4));
      factors[k] = drop_factor(word_of(words, index), p, keep);
    }
    if (first + 4 <= n && by_four(4, x, x)) {
      Some<float, 4> v = some<4>(x, four);
#pragma unroll
      for (u32 k = 0; k < 4; k++) v.of[k] *= factors[k];
      put<4>(x, four, v);
    } else {
      for (u32 k = 0; k < 4 && first + k < n; k++) x[first + k] *= factors[k];
    }
  }
}

// Of attention's probabilities `[samples·heads, t, t]`, of which a sample uses `length` rows and columns: its sequence goes
// on from head to head. `y` may be `x`.
template <int V, class T>
__device__ __forceinline__ void drop_scores(T *y, const float *x, const u64 *draws, const u32 *lengths, u32 heads, u32 t,
                                            u64 n, u32 key0, u32 key1, u32 site, float p, float keep) {
  EACH(i, n / V) {
    u64 line = over(i * V, t), square = over(line, t), sample = over(square, heads), length = lengths[sample];
    u32 column = rest(i * V, t), row = rest(line, t), head = rest(square, heads);
    u64 index = (head * length + row) * length + column;
    Some<float, V> v = some<V>(x, i);
    Some<T, V> made;
    Words words = {};
#pragma unroll
    for (int k = 0; k < V; k++) {
      if (row < length && column + k < length) {
        if (k == 0 || (index + k) % 4 == 0) words = philox(key0, key1, draws[sample], site, (u32)((index + k) / 4));
        v.of[k] *= drop_factor(word_of(words, index + k), p, keep);
      }
      set(&made.of[k], v.of[k]);
    }
    put<V>(y, i, made);
  }
}

extern "C" __global__ void dropout_scores(float *x, const u64 *draws, const u32 *lengths, u32 heads, u32 t, u64 n,
                                          u32 key0, u32 key1, u32 site, float p, float keep) {
  IN_FOURS(by_four(t, x, x), drop_scores, x, x, draws, lengths, heads, t, n, key0, key1, site, p, keep);
}

// The same in memory of its own.
extern "C" __global__ void shown_scores(float *y, const float *x, const u64 *draws, const u32 *lengths, u32 heads, u32 t,
                                        u64 n, u32 key0, u32 key1, u32 site, float p, float keep) {
  IN_FOURS(by_four(t, x, y), drop_scores, y, x, draws, lengths, heads, t, n, key0, key1, site, p, keep);
}

extern "C" __global__ void shown_scores_bf16(bf16 *y, const float *x, const u64 *draws, const u32 *lengths, u32 heads,
                                             u32 t, u64 n, u32 key0, u32 key1, u32 site, float p, float keep) {
  IN_FOURS(by_four(t, x, y), drop_scores, y, x, draws, lengths, heads, t, n, key0, key1, site, p, keep);
}

template <class T>
__device__ __forceinline__ void drop_samples(T *y, const T *x, const u64 *draws, u64 n, u64 size, u32 key0, u32 key1,
                                             u32 site, float p, float keep) {
  EACH(i, n) set(&y[i], f32_of(x[i]) * drop_factor(philox(key0, key1, draws[i / size], site, 0).a, p, keep));
}

// Whole samples of `size` elements.
extern "C" __global__ void drop_path(float *y, const float *x, const u64 *draws, u64 n, u64 size, u32 key0, u32 key1,
                                     u32 site, float p, float keep) {
  drop_samples(y, x, draws, n, size, key0, key1, site, p, keep);
}

extern "C" __global__ void drop_path_bf16(bf16 *y, const bf16 *x, const u64 *draws, u64 n, u64 size, u32 key0,
                                          u32 key1, u32 site, float p, float keep) {
  drop_samples(y, x, draws, n, size, key0, key1, site, p, keep);
}
