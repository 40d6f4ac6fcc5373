// Softmax of attention's scores `[samples·heads, t, t]`, of which a sample uses `length` rows and columns: what is beyond
// them becomes zero, so that the products that follow may take the whole square. Scores come as a product gives them, and
// in their place are then probabilities as one takes them, without what is dropped of them. Between the two all is f32.

// Threads of a row. Each has four columns of sixteen, which are four of the chains that make up a sum.
#define QUAD 4
// Rows of a block.
#define ROWS 32
// Chains of a row, and what lies between two rows so that threads of a warp find theirs at once.
#define PADDED (LANES + QUAD)
// Fours of a thread whose exponentials are kept beside it; those of longer rows are computed again.
#define HELD 8

// A thread's fours of columns before `end`, counted by `j`.
#define EACH_FOUR(at, j, end) for (u32 at = threadIdx.x * 4, j = 0; at < (end); at += LANES, j++)

// A row: its real columns, of which one that is not real has none, and where random words are for the first of them.
struct Row {
  u32 end;
  u64 draw, first;
};

// A sample's sequence of words goes on from head to head.
__device__ __forceinline__ Row row_of(u64 row, u64 rows, const u32 *lengths, const u64 *draws, u32 heads, u32 t,
                                      bool drops) {
  Row made = {};
  if (row >= rows) return made;
  u64 square = over(row, t), sample = over(square, heads);
  u32 place = rest(row, t), length = lengths[sample] < t ? lengths[sample] : t;
  if (place >= length) return made;
  made.end = length;
  made.draw = drops ? draws[sample] : 0;
  made.first = ((u64)rest(square, heads) * length + place) * length;
  return made;
}

// What is dropped, with probability `p`.
struct Drop {
  u32 key0, key1, site;
  float p, keep;
};

// What four probabilities are multiplied with.
__device__ __forceinline__ Some<float, 4> factors_of(Row row, u32 at, Drop drop) {
  Some<float, 4> made = {{1.0f, 1.0f, 1.0f, 1.0f}};
  if (!(drop.p > 0.0f)) return made;
  u64 index = row.first + at;
  u32 block = (u32)(index / 4), from = (u32)index % 4;
  Words words = philox(drop.key0, drop.key1, row.draw, drop.site, block), next = words;
  if (from) next = philox(drop.key0, drop.key1, row.draw, drop.site, block + 1);
#pragma unroll
  for (u32 k = 0; k < 4; k++)
    made.of[k] = drop_factor(from + k < 4 ? word_of(words, from + k) : word_of(next, from + k), drop.p, drop.keep);
  return made;
}

// Four columns of a row of `t`, of which there may be fewer if they are not read at once.
template <class T> __device__ __forceinline__ Some<float, 4> four_of(const T *own, u32 at, u32 t, bool at_once) {
  Some<float, 4> made = {};
  if (at_once) {
    Some<T, 4> v = some<4>(own + at, 0);
#pragma unroll
    for (int k = 0; k < 4; k++) made.of[k] = f32_of(v.of[k]);
  } else {
#pragma unroll
    for (u32 k = 0; k < 4; k++)
      if (at + k < t) made.of[k] = f32_of(own[at + k]);
  }
  return made;
}

template <class T>
__device__ __forceinline__ void set_four(T *own, u32 at, u32 t, bool at_once, Some<float, 4> v) {
  if (at_once) {
    put<4>(own + at, 0, v);
  } else {
#pragma unroll
    for (u32 k = 0; k < 4; k++)
      if (at + k < t) set(&own[at + k], v.of[k]);
  }
}

// exp((s − most)·scale) where columns are real.
__device__ __forceinline__ Some<float, 4> exps_of(Some<float, 4> s, u32 at, u32 end, float most, float scale) {
#pragma unroll
  for (u32 k = 0; k < 4; k++) s.of[k] = at + k < end ? exp_of((s.of[k] - most) * scale) : 0.0f;
  return s;
}

// Adds up the chains of a row as `fold_lanes` does, each thread for itself.
__device__ __forceinline__ float fold_quads(float (*sums)[PADDED], Some<float, 4> chains) {
  float *own = sums[threadIdx.y];
#pragma unroll
  for (int k = 0; k < 4; k++) own[threadIdx.x * 4 + k] = chains.of[k];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 4; k++) chains.of[k] = (own[k] + own[k + 8]) + (own[k + 4] + own[k + 12]);
  return (chains.of[0] + chains.of[2]) + (chains.of[1] + chains.of[3]);
}

// p = exp((s − max)·scale) / Σ, and what is dropped of it; each row's largest score and inverse sum are noted.
template <class T>
__device__ __forceinline__ void probable(T *s, float *notes, const u32 *lengths, const u64 *draws, u32 heads, u32 t,
                                         float scale, u64 rows, Drop drop) {
  __shared__ float sums[ROWS][PADDED];
  __shared__ Some<float, 4> held[HELD][ROWS][QUAD];
  u64 which = (u64)blockIdx.x * ROWS + threadIdx.y;
  Row row = row_of(which, rows, lengths, draws, heads, t, drop.p > 0.0f);
  bool at_once = by_four(t, s, s);
  T *own = s + which * t;
  float most = row.end ? f32_of(own[0]) : 0.0f;
  EACH_FOUR(at, j, row.end) {
    Some<float, 4> v = four_of(own, at, t, at_once);
#pragma unroll
    for (u32 k = 0; k < 4; k++) most = at + k < row.end && v.of[k] > most ? v.of[k] : most;
  }
  sums[threadIdx.y][threadIdx.x] = most;
  __syncthreads();
  for (u32 k = 0; k < QUAD; k++) most = sums[threadIdx.y][k] > most ? sums[threadIdx.y][k] : most;
  __syncthreads();
  Some<float, 4> chains = {};
  EACH_FOUR(at, j, row.end) {
    Some<float, 4> v = exps_of(four_of(own, at, t, at_once), at, row.end, most, scale);
#pragma unroll
    for (int k = 0; k < 4; k++) chains.of[k] += v.of[k];
    if (j < HELD) held[j][threadIdx.y][threadIdx.x] = v;
  }
  float inverse = 1.0f / fold_quads(sums, chains);
  if (which >= rows) return;
  EACH_FOUR(at, j, t) {
    Some<float, 4> v = {};
    if (at < row.end) {
      v = j < HELD ? held[j][threadIdx.y][threadIdx.x]
                   : exps_of(four_of(own, at, t, at_once), at, row.end, most, scale);
      Some<float, 4> factors = factors_of(row, at, drop);
#pragma unroll
      for (u32 k = 0; k < 4; k++) v.of[k] = at + k < row.end ? v.of[k] * inverse * factors.of[k] : 0.0f;
    }
    set_four(own, at, t, at_once, v);
  }
  if (threadIdx.x == 0) {
    notes[which * 2] = row.end ? most : 0.0f;
    notes[which * 2 + 1] = row.end ? inverse : 0.0f;
  }
}

extern "C" __global__ void softmax(float *s, float *notes, const u32 *lengths, const u64 *draws, u32 heads, u32 t,
                                   float scale, u64 rows, u32 key0, u32 key1, u32 site, float p, float keep) {
  probable(s, notes, lengths, draws, heads, t, scale, rows, {key0, key1, site, p, keep});
}

extern "C" __global__ void softmax_bf16(bf16 *s, float *notes, const u32 *lengths, const u64 *draws, u32 heads, u32 t,
                                        float scale, u64 rows, u32 key0, u32 key1, u32 site, float p, float keep) {
  probable(s, notes, lengths, draws, heads, t, scale, rows, {key0, key1, site, p, keep});
}

// From scores, what was noted of them, and the slopes of what a product took: that again in place of the scores, and
// ds = p·(dp − Σ dp·p)·scale in place of the slopes, of which what was dropped had no part in the product.
template <class T>
__device__ __forceinline__ void through(T *s, T *slopes, const float *notes, const u32 *lengths, const u64 *draws,
                                        u32 heads, u32 t, float scale, u64 rows, Drop drop) {
  __shared__ float sums[ROWS][PADDED];
  __shared__ Some<float, 4> held[HELD][ROWS][QUAD];
  u64 which = (u64)blockIdx.x * ROWS + threadIdx.y;
  Row row = row_of(which, rows, lengths, draws, heads, t, drop.p > 0.0f);
  bool at_once = by_four(t, s, slopes);
  T *own = s + which * t, *dp = slopes + which * t;
  float most = row.end ? notes[which * 2] : 0.0f, inverse = row.end ? notes[which * 2 + 1] : 0.0f;
  Some<float, 4> chains = {};
  u32 dropped = 0; // A bit for each number of the fours that are held.
  EACH_FOUR(at, j, row.end) {
    Some<float, 4> p = exps_of(four_of(own, at, t, at_once), at, row.end, most, scale);
    Some<float, 4> d = four_of(dp, at, t, at_once), factors = factors_of(row, at, drop);
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
      p.of[k] *= inverse;
      chains.of[k] += at + k < row.end ? d.of[k] * factors.of[k] * p.of[k] : 0.0f;
      if (j < HELD && factors.of[k] == 0.0f) dropped |= 1u << (j * 4 + k);
    }
    if (j < HELD) held[j][threadIdx.y][threadIdx.x] = p;
  }
  float along = fold_quads(sums, chains);
  if (which >= rows) return;
  EACH_FOUR(at, j, t) {
    Some<float, 4> shown = {}, slope = {};
    if (at < row.end) {
      Some<float, 4> p, factors, d = four_of(dp, at, t, at_once);
      if (j < HELD) {
        p = held[j][threadIdx.y][threadIdx.x];
#pragma unroll
        for (u32 k = 0; k < 4; k++) factors.of[k] = dropped >> (j * 4 + k) & 1 ? 0.0f : drop.keep;
      } else {
        p = exps_of(four_of(own, at, t, at_once), at, row.end, most, scale);
#pragma unroll
        for (int k = 0; k < 4; k++) p.of[k] *= inverse;
        factors = factors_of(row, at, drop);
      }
#pragma unroll
      for (u32 k = 0; k < 4; k++)
        if (at + k < row.end) {
          shown.of[k] = p.of[k] * factors.of[k];
          slope.of[k] = p.of[k] * (d.of[k] * factors.of[k] - along) * scale;
        }
    }
    set_four(own, at, t, at_once, shown);
    set_four(dp, at, t, at_once, slope);
  }
}

extern "C" __global__ void softmax_back(float *s, float *dp, const float *notes, const u32 *lengths, const u64 *draws,
                                        u32 heads, u32 t, float scale, u64 rows, u32 key0, u32 key1, u32 site, float p,
                                        float keep) {
  through(s, dp, notes, lengths, draws, heads, t, scale, rows, {key0, key1, site, p, keep});
}

extern "C" __global__ void softmax_back_bf16(bf16 *s, bf16 *dp, const float *notes, const u32 *lengths,
                                             const u64 *draws, u32 heads, u32 t, float scale, u64 rows, u32 key0,
                                             u32 key1, u32 site, float p, float keep) {
  through(s, dp, notes, lengths, draws, heads, t, scale, rows, {key0, key1, site, p, keep});
}
