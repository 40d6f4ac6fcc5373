// A driver without a GPU, for tests: device memory is the host's, streams do everything at once.
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define OK 0
static int gpus(void) { const char *n = getenv("FAKE_GPUS"); return n ? atoi(n) : 1; }
// Bytes of memory, and of what is taken.
static size_t memory(void) { const char *n = getenv("FAKE_MEMORY"); return n ? strtoull(n, NULL, 10) : (size_t)80 << 30; }
static size_t taken;
static int pretend = 1;
static void *handle(void) { return &pretend; }

int cuInit(unsigned flags) { (void)flags; return gpus() > 0 ? OK : 100; }
int cuDriverGetVersion(int *v) { const char *n = getenv("FAKE_CUDA_VERSION"); *v = n ? atoi(n) : 13000; return OK; }
int cuDeviceGetCount(int *n) { *n = gpus(); return OK; }
int cuDeviceGet(int *d, int i) { *d = i; return i < gpus() ? OK : 101; }
int cuDeviceGetName(char *name, int len, int d) { (void)d; strncpy(name, "Fake GPU", len); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int d) { (void)d; *bytes = memory(); return OK; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int d) { memset(uuid, d, 16); return OK; }
// 16 multiprocessors, 75 and 76 compute capability; no memory pools.
int cuDeviceGetAttribute(int *v, int a, int d) { (void)d; *v = a == 16 ? 132 : a == 75 ? 9 : 0; return OK; }
int cuGetErrorName(int code, const char **s) {
  *s = code == 2     ? "CUDA_ERROR_OUT_OF_MEMORY"
       : code == 100 ? "CUDA_ERROR_NO_DEVICE"
       : code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
                     : "CUDA_ERROR_FAKE";
  return OK;
}
int cuGetErrorString(int code, const char **s) { return cuGetErrorName(code, s); }

int cuDevicePrimaryCtxRetain(void **c, int d) { (void)d; *c = handle(); return OK; }
int cuDevicePrimaryCtxRelease_v2(int d) { (void)d; return OK; }
int cuCtxGetCurrent(void **c) { *c = NULL; return OK; }
int cuCtxSetCurrent(void *c) { (void)c; return OK; }
int cuCtxSynchronize(void) { return OK; }
// Streams and events do nothing, but for what a thread may be asked of its own: how many events it has recorded, how often a
// stream was told to wait for another one, and which stream it has waited for last.
static __thread uint64_t recorded, crossed, synchronized;
void fake_streams(uint64_t *told) { told[0] = recorded; told[1] = crossed; told[2] = synchronized; }
int cuStreamCreate(void **s, unsigned f) { (void)f; *s = malloc(1); return OK; }
int cuStreamDestroy_v2(void *s) { free(s); return OK; }
int cuStreamSynchronize(void *s) { synchronized = (uint64_t)(uintptr_t)s; return OK; }
int cuEventCreate(void **e, unsigned f) { (void)f; *e = calloc(1, sizeof(void *)); return OK; }
int cuEventRecord(void *e, void *s) { *(void **)e = s; recorded++; return OK; }
int cuEventQuery(void *e) { (void)e; return OK; }
int cuEventSynchronize(void *e) { (void)e; return OK; }
int cuEventDestroy_v2(void *e) { free(e); return OK; }
int cuStreamWaitEvent(void *s, void *e, unsigned f) {
  (void)f;
  void *on = *(void **)e;
  if (on && on != s) crossed++;
  return OK;
}
// A thread may be told that after so many arrays more it finds no room for so many.
static __thread uint64_t more = UINT64_MAX, refused;
void fake_full(uint64_t after, uint64_t times) { more = after; refused = times; }
static int is_full(void) {
  if (more == UINT64_MAX) return 0;
  if (more) { more--; return 0; }
  if (refused) { refused--; return 1; }
  more = UINT64_MAX;
  return 0;
}
// Bytes that a thread holds, and the most that it has held since somebody was told.
static __thread int64_t held, most;
void fake_held(int64_t *told) { told[0] = held; told[1] = most; most = held; }
// Memory begins as NaN, aligned as a GPU's is, and behind it is a fence that writes must not cross.
enum { ALIGN = 256, FENCE = 0x5a };
int cuMemAlloc_v2(uint64_t *p, size_t n) {
  if (is_full()) return 2;
  int full = __sync_add_and_fetch(&taken, n) > memory();
  char *whole = full ? NULL : aligned_alloc(ALIGN, (n + ALIGN - 1) / ALIGN * ALIGN + 2 * ALIGN);
  if (!whole) { __sync_sub_and_fetch(&taken, n); return 2; }
  memcpy(whole, &n, sizeof n);
  memset(whole + ALIGN, 0xff, n);
  memset(whole + ALIGN + n, FENCE, ALIGN);
  held += (int64_t)n;
  if (held > most) most = held;
  *p = (uint64_t)(uintptr_t)(whole + ALIGN);
  return OK;
}
int cuMemFree_v2(uint64_t p) {
  char *whole = (char *)(uintptr_t)p - ALIGN;
  size_t n; memcpy(&n, whole, sizeof n);
  for (int i = 0; i < ALIGN; i++)
    if (whole[ALIGN + n + i] != FENCE) { fprintf(stderr, "a kernel wrote behind %zu bytes\n", n); abort(); }
  __sync_sub_and_fetch(&taken, n);
  held -= (int64_t)n;
  free(whole);
  return OK;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) { *total = memory(); *free = taken < *total ? *total - taken : 0; return OK; }
int cuMemHostAlloc(void **p, size_t n, unsigned flags) { (void)flags; *p = malloc(n ? n : 1); return OK; }
int cuMemFreeHost(void *p) { free(p); return OK; }
// Bytes that a thread has sent up.
static __thread uint64_t sent;
uint64_t fake_sent(void) { return sent; }
int cuMemcpyHtoDAsync_v2(uint64_t d, const void *s, size_t n, void *st) { (void)st; sent += n; memcpy((void *)(uintptr_t)d, s, n); return OK; }
int cuMemcpyDtoHAsync_v2(void *d, uint64_t s, size_t n, void *st) { (void)st; memcpy(d, (void *)(uintptr_t)s, n); return OK; }
int cuMemcpyDtoDAsync_v2(uint64_t d, uint64_t s, size_t n, void *st) { (void)st; memmove((void *)(uintptr_t)d, (void *)(uintptr_t)s, n); return OK; }
int cuMemsetD8Async(uint64_t d, unsigned char v, size_t n, void *st) { (void)st; memset((void *)(uintptr_t)d, v, n); return OK; }

// A module is a library of the compiler beside this: its image is a path. Kernels run one after the other.
int cuModuleLoadData(void **m, const void *image) { *m = dlopen(image, RTLD_NOW | RTLD_LOCAL); return *m ? OK : 200; }
int cuModuleUnload(void *m) { (void)m; return OK; }
int cuModuleGetFunction(void **f, void *m, const char *name) {
  char launcher[200];
  snprintf(launcher, sizeof launcher, "launch_%s", name);
  *f = dlsym(m, launcher);
  return *f ? OK : 500;
}
int cuLaunchKernel(int (*f)(const unsigned *, void **), unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **params, void **extra) {
  static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
  (void)shared; (void)stream; (void)extra;
  unsigned shape[6] = {gx, gy, gz, bx, by, bz};
  // What a GPU has: that many threads a block, blocks in each direction.
  unsigned threads = bx * by * bz;
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || !threads || threads > 1024) return 1;
  pthread_mutex_lock(&one);
  int code = f(shape, params);
  pthread_mutex_unlock(&one);
  return code;
}
