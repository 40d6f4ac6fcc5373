// Rows of tables.

// A number of a row of a table; NaN where there is no such row.
__device__ __forceinline__ float cell(const float *table, u32 rows, u32 row, u32 channel, u32 c) {
  return row < rows ? table[(u64)row * c + channel] : __uint_as_float(0x7fc00000u);
}

// The word's row, plus the first row of `kind` and the place's row of `position` where they are (`parts` 1 and 2).
extern "C" __global__ void embed(float *y, const float *word, const float *kind, const float *position, const u32 *ids,
                                 const u32 *places, u64 n, u32 c, u32 words, u32 positions, int parts) {
  EACH(i, n) {
    u64 row = i / c;
    u32 channel = i % c;
    float sum = cell(word, words, ids[row], channel, c);
    if (parts & 1) sum += kind[channel];
    if (parts & 2) sum += cell(position, positions, places[row], channel, c);
    y[i] = sum;
  }
}

// Adds rows of `dy` to those of a table. `order` holds the rows sorted by their id, and within one id as they come;
// `starts` where each group begins, and the end. A thread has one channel of one group: no two write to the same place.
extern "C" __global__ void embed_back(float *table, const float *dy, const u32 *ids, const u32 *order,
                                      const u32 *starts, u32 groups, u32 c) {
  EACH(i, (u64)groups * c) {
    u32 group = i / c, channel = i % c;
    u64 at = (u64)ids[order[starts[group]]] * c + channel;
    float sum = table[at];
    for (u32 k = starts[group]; k < starts[group + 1]; k++) sum += dy[(u64)order[k] * c + channel];
    table[at] = sum;
  }
}
