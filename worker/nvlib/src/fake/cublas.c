// Products without a GPU, for tests: plain loops over matrices that lie column by column, with sums in double precision.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15, F32 = 0, BF16 = 14, COMPUTE_32F = 68, COMPUTE_TF32 = 77 };
typedef struct { int stream, workspace, mode; } Handle;

// Of a thread's next products so many are refused, with an answer of its choice.
static __thread int answer;
static __thread uint64_t refused;
void fake_refuse(int with, uint64_t times) { answer = with; refused = times; }
int cublasCreate_v2(Handle **h) { *h = calloc(1, sizeof **h); return SUCCESS; }
int cublasDestroy_v2(Handle *h) { free(h); return SUCCESS; }
int cublasSetStream_v2(Handle *h, void *s) { h->stream = s != NULL; h->workspace = 0; return SUCCESS; }
int cublasSetWorkspace_v2(Handle *h, void *at, size_t size) { h->workspace = at && size && (uintptr_t)at % 256 == 0; return h->workspace ? SUCCESS : INVALID_VALUE; }
int cublasSetMathMode(Handle *h, int mode) { h->mode = mode; return SUCCESS; }
int cublasGetProperty(int which, int *n) { *n = which ? 0 : 13; return SUCCESS; }

static float get(const void *p, int64_t i, int type) {
  if (type == F32) return ((const float *)p)[i];
  uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16; float f; memcpy(&f, &bits, 4); return f;
}
// bf16 to the nearest, ties to even.
static void put(void *p, int64_t i, int type, float f) {
  if (type == F32) { ((float *)p)[i] = f; return; }
  uint32_t bits; memcpy(&bits, &f, 4);
  ((uint16_t *)p)[i] = (f != f ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
// What a product reads: f32, or what TF32 has of it, to the nearest, ties to even.
static double seen(const void *p, int64_t i, int type, int tf32) {
  float f = get(p, i, type);
  if (!tf32) return f;
  uint32_t bits; memcpy(&bits, &f, 4);
  bits = (f != f ? bits | 0x400000 : bits + 0xfff + (bits >> 13 & 1)) & 0xffffe000; memcpy(&f, &bits, 4);
  return f;
}
int cublasGemmStridedBatchedEx(Handle *h, int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int at,
                               int lda, long long sa, const void *b, int bt, int ldb, long long sb, const float *beta,
                               void *c, int ct, int ldc, long long sc, int batch, int compute, int algo) {
  (void)algo;
  if (refused) { refused--; return answer; }
  // A stream and a workspace of one's own, and no TF32 of the handle (mode 3): bits depend on them. It is a product's to say.
  if (!h->stream || !h->workspace || h->mode == 3) return INVALID_VALUE;
  if (m < 0 || n < 0 || k < 0 || lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m || lda < 1 || ldb < 1 || ldc < 1) return INVALID_VALUE;
  // f32 gives f32, bf16 either.
  int tf32 = compute == COMPUTE_TF32;
  if (at != bt || (at != F32 && at != BF16) || (ct != F32 && ct != at)) return NOT_SUPPORTED;
  if (compute != COMPUTE_32F && !(tf32 && at == F32)) return NOT_SUPPORTED;
  for (int i = 0; i < batch; i++)
    for (int col = 0; col < n; col++)
      for (int row = 0; row < m; row++) {
        double sum = 0;
        for (int d = 0; d < k; d++)
          sum += seen(a, i * sa + (ta ? (int64_t)row * lda + d : (int64_t)d * lda + row), at, tf32) *
                 seen(b, i * sb + (tb ? (int64_t)d * ldb + col : (int64_t)col * ldb + d), bt, tf32);
        int64_t out = i * sc + (int64_t)col * ldc + row;
        put(c, out, ct, *alpha * (float)sum + (*beta ? *beta * get(c, out, ct) : 0.0f));
      }
  return SUCCESS;
}
int cublasGemmEx(Handle *h, int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int at, int lda,
                 const void *b, int bt, int ldb, const float *beta, void *c, int ct, int ldc, int compute, int algo) {
  return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, a, at, lda, 0, b, bt, ldb, 0, beta, c, ct, ldc, 0, 1, compute, algo);
}
