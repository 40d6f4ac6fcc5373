// Dropout: what happens to an element is a function of its sample's draw, of the site and of its place in the sample. Random
// words come by fours, so that a thread has four elements.

// `ends`: for each sample the element behind its last; samples lie one after the other. `y` may be `x`.
template <class T>
__device__ __forceinline__ void drop(float *y, const T *x, const u64 *draws, const u64 *ends, u32 samples, u64 n,
                                     u32 key0, u32 key1, u32 site, float p, float keep) {
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
    if (first + 4 <= n && by_four(4, x, y)) {
      Some<T, 4> v = some<4>(x, four);
      Some<float, 4> made;
#pragma unroll
      for (u32 k = 0; k < 4; k++) made.of[k] = f32_of(v.of[k]) * factors[k];
      put<4>(y, four, made);
    } else {
      for (u32 k = 0; k < 4 && first + k < n; k++) y[first + k] = f32_of(x[first + k]) * factors[k];
    }
  }
}

extern "C" __global__ void dropout(float *x, const u64 *draws, const u64 *ends, u32 samples, u64 n, u32 key0, u32 key1,
                                   u32 site, float p, float keep) {
  drop(x, x, draws, ends, samples, n, key0, key1, site, p, keep);
}

extern "C" __global__ void dropout_from(float *y, const float *x, const u64 *draws, const u64 *ends, u32 samples, u64 n,
                                        u32 key0, u32 key1, u32 site, float p, float keep) {
  drop(y, x, draws, ends, samples, n, key0, key1, site, p, keep);
}

extern "C" __global__ void dropout_from_bf16(float *y, const bf16 *x, const u64 *draws, const u64 *ends, u32 samples,
                                             u64 n, u32 key0, u32 key1, u32 site, float p, float keep) {
  drop(y, x, draws, ends, samples, n, key0, key1, site, p, keep);
}

template <class T>
__device__ __forceinline__ void drop_samples(T *y, const T *x, const u64 *draws, u32 samples, u64 size, u32 key0, u32 key1,
                                             u32 site, float p, float keep) {
  for (u32 sample = blockIdx.y; sample < samples; sample += gridDim.y) {
    float factor = drop_factor(philox(key0, key1, draws[sample], site, 0).a, p, keep);
    map(y + sample * size, x + sample * size, size, [=](float x) { return x * factor; });
  }
}

// Whole samples of `size` elements; across the grid are those of a sample, the samples are in its other direction.
extern "C" __global__ void drop_path(float *y, const float *x, const u64 *draws, u32 samples, u64 size, u32 key0, u32 key1,
                                     u32 site, float p, float keep) {
  drop_samples(y, x, draws, samples, size, key0, key1, site, p, keep);
}

extern "C" __global__ void drop_path_bf16(bf16 *y, const bf16 *x, const u64 *draws, u32 samples, u64 size, u32 key0,
                                          u32 key1, u32 site, float p, float keep) {
  drop_samples(y, x, draws, samples, size, key0, key1, site, p, keep);
}
