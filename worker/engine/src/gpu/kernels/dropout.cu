// Dropout: what happens to an element is a function of its sample's draw, of the site and of its place in the sample.

// In place. `ends`: for each sample the element behind its last; samples lie one after the other.
extern "C" __global__ void dropout(float *x, const u64 *draws, const u64 *ends, u32 samples, u64 n, u32 key0, u32 key1,
                                   u32 site, float p, float keep) {
  EACH(i, n) {
    u32 low = 0, high = samples - 1; // the first sample that ends behind i
    while (low < high) {
      u32 middle = (low + high) / 2;
      if (ends[middle] > i) high = middle;
      else low = middle + 1;
    }
    u64 first = low ? ends[low - 1] : 0;
    x[i] *= drop_factor(key0, key1, draws[low], site, i - first, p, keep);
  }
}

// Of attention's probabilities `[samples·heads, t, t]`, of which a sample uses `length` rows and columns: its sequence goes
// on from head to head.
extern "C" __global__ void dropout_scores(float *x, const u64 *draws, const u32 *lengths, u32 heads, u32 t, u64 n,
                                          u32 key0, u32 key1, u32 site, float p, float keep) {
  EACH(i, n) {
    u32 column = i % t, row = i / t % t, head = i / t / t % heads;
    u64 sample = i / t / t / heads, length = lengths[sample];
    if (row >= length || column >= length) continue;
    u64 index = (head * length + row) * length + column;
    x[i] *= drop_factor(key0, key1, draws[sample], site, index, p, keep);
  }
}

// Whole samples of `size` elements.
extern "C" __global__ void drop_path(float *y, const float *x, const u64 *draws, u64 n, u64 size, u32 key0, u32 key1,
                                     u32 site, float p, float keep) {
  EACH(i, n) y[i] = x[i] * drop_factor(key0, key1, draws[i / size], site, 0, p, keep);
}
