// `num::rng`: Philox4x32-10, one word of the sequence that belongs to (id, site).

__device__ __forceinline__ u32 philox_word(u32 key0, u32 key1, u64 id, u32 site, u64 index) {
  u32 c0 = (u32)id, c1 = (u32)(id >> 32), c2 = site, c3 = (u32)(index / 4);
  for (int round = 0; round < 10; round++) {
    u64 p0 = (u64)c0 * 0xD2511F53u, p1 = (u64)c2 * 0xCD9E8D57u;
    c0 = (u32)(p1 >> 32) ^ c1 ^ key0;
    c1 = (u32)p1;
    c2 = (u32)(p0 >> 32) ^ c3 ^ key1;
    c3 = (u32)p0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  switch (index % 4) {
  case 0: return c0;
  case 1: return c1;
  case 2: return c2;
  default: return c3;
  }
}

// What an element of a sample is multiplied with: zero with probability `p`, else 1 / (1 − p).
__device__ __forceinline__ float drop_factor(u32 key0, u32 key1, u64 id, u32 site, u64 index, float p, float keep) {
  float uniform = (float)(philox_word(key0, key1, id, site, index) >> 8) * (1.0f / 16777216.0f);
  return uniform < p ? 0.0f : keep;
}
