// `num::rng`: Philox4x32-10.

struct Words {
  u32 a, b, c, d;
};

// Four words of the sequence that belongs to (id, site): those from `4·block` on.
__device__ __forceinline__ Words philox(u32 key0, u32 key1, u64 id, u32 site, u32 block) {
  u32 c0 = (u32)id, c1 = (u32)(id >> 32), c2 = site, c3 = block;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    u64 p0 = (u64)c0 * 0xD2511F53u, p1 = (u64)c2 * 0xCD9E8D57u;
    c0 = (u32)(p1 >> 32) ^ c1 ^ key0;
    c1 = (u32)p1;
    c2 = (u32)(p0 >> 32) ^ c3 ^ key1;
    c3 = (u32)p0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// The word of an index within its four.
__device__ __forceinline__ u32 word_of(Words words, u64 index) {
  u32 low = index & 1 ? words.b : words.a, high = index & 1 ? words.d : words.c;
  return index & 2 ? high : low;
}

// What an element of a sample is multiplied with: zero with probability `p`, else 1 / (1 − p).
__device__ __forceinline__ float drop_factor(u32 word, float p, float keep) {
  float uniform = (float)(word >> 8) * (1.0f / 16777216.0f);
  return uniform < p ? 0.0f : keep;
}
