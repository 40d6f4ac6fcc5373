// A driver without a GPU, for tests: device memory is the host's, streams do everything at once. FAKE_POOLS=0 makes it one whose
// GPUs have no memory pools.
#include <dlfcn.h>
#include <pthread.h>
#include <search.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define OK 0
static int gpus(void) { const char *n = getenv("FAKE_GPUS"); return n ? atoi(n) : 1; }
static int pools(void) { const char *n = getenv("FAKE_POOLS"); return !n || atoi(n); }
static size_t memory(void) { const char *n = getenv("FAKE_MEMORY"); return n ? strtoull(n, NULL, 10) : (size_t)80 << 30; }
// What is below of memory and of streams is one thread's at a time.
static pthread_mutex_t watch = PTHREAD_MUTEX_INITIALIZER;
static int pretend = 1;
static void *handle(void) { return &pretend; }

int cuInit(unsigned flags) { (void)flags; return gpus() > 0 ? OK : 100; }
int cuDriverGetVersion(int *v) { const char *n = getenv("FAKE_CUDA_VERSION"); *v = n ? atoi(n) : 13000; return OK; }
int cuDeviceGetCount(int *n) { *n = gpus(); return OK; }
int cuDeviceGet(int *d, int i) { *d = i; return i < gpus() ? OK : 101; }
int cuDeviceGetName(char *name, int len, int d) { (void)d; strncpy(name, "Fake GPU", len); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int d) { (void)d; *bytes = memory(); return OK; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int d) { memset(uuid, d, 16); return OK; }
// 16 multiprocessors, 75 and 76 compute capability, 115 memory pools.
int cuDeviceGetAttribute(int *v, int a, int d) { (void)d; *v = a == 16 ? 132 : a == 75 ? 9 : a == 115 ? pools() : 0; return OK; }
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
// Bytes that arrays have of the pool, and the most that they ever had; that the pool has of the GPU, and how many it keeps when
// somebody waits for the GPU; and that are taken beside it.
static size_t used, high, reserved, keep, taken;
static void shrink(size_t least) {
  size_t most = used > least ? used : least;
  if (reserved > most) reserved = most;
}

// Since everything is done at once, no number shows that somebody has not waited. So it is counted how much each stream was asked
// for, and how far it has waited for each other one. Of a stream that is gone the next one has the place,
// and counts as having waited for it.
enum { STREAMS = 1024 };
typedef struct { int place; uint64_t seen[STREAMS]; } Stream;
typedef struct { int recorded, place; uint64_t seen[STREAMS]; } Event;
static Stream plain;
static char lives[STREAMS] = {1};
// How much each place was asked for, and how much of that the host knows to be done.
static uint64_t asked[STREAMS], done[STREAMS];
static Stream *stream(void *s) { return s ? s : &plain; }
static void see(uint64_t *seen, const uint64_t *more) {
  for (int i = 0; i < STREAMS; i++) if (more[i] > seen[i]) seen[i] = more[i];
}
// What a thread has done: events that it has recorded, how often a stream was told to wait for another one, which stream it has
// waited for last, and behind which one it has last given memory back.
static __thread uint64_t events, crossed, synchronized, freed;
void fake_streams(uint64_t *told) { told[0] = events; told[1] = crossed; told[2] = freed; }
static int wait_for(const uint64_t *seen) {
  pthread_mutex_lock(&watch);
  see(done, seen);
  shrink(keep);
  pthread_mutex_unlock(&watch);
  return OK;
}
int cuCtxSynchronize(void) { return wait_for(asked); }
int cuStreamCreate(void **s, unsigned f) {
  (void)f;
  Stream *made = calloc(1, sizeof *made);
  pthread_mutex_lock(&watch);
  while (made->place < STREAMS && lives[made->place]) made->place++;
  if (made->place == STREAMS) { fprintf(stderr, "%d streams at a time are more than this driver counts\n", STREAMS); abort(); }
  lives[made->place] = 1;
  made->seen[made->place] = asked[made->place];
  pthread_mutex_unlock(&watch);
  *s = made;
  return OK;
}
int cuStreamDestroy_v2(void *s) {
  pthread_mutex_lock(&watch);
  lives[stream(s)->place] = 0;
  pthread_mutex_unlock(&watch);
  free(s);
  return OK;
}
int cuStreamSynchronize(void *s) { synchronized = (uint64_t)(uintptr_t)s; return wait_for(stream(s)->seen); }
int cuEventCreate(void **e, unsigned f) { (void)f; *e = calloc(1, sizeof(Event)); return OK; }
int cuEventRecord(void *e, void *s) {
  Event *event = e;
  pthread_mutex_lock(&watch);
  event->recorded = 1;
  event->place = stream(s)->place;
  memcpy(event->seen, stream(s)->seen, sizeof event->seen);
  pthread_mutex_unlock(&watch);
  events++;
  return OK;
}
int cuEventSynchronize(void *e) { return wait_for(((Event *)e)->seen); }
int cuEventQuery(void *e) { return cuEventSynchronize(e); }
int cuEventDestroy_v2(void *e) { free(e); return OK; }
int cuStreamWaitEvent(void *s, void *e, unsigned f) {
  (void)f;
  Event *event = e;
  pthread_mutex_lock(&watch);
  see(stream(s)->seen, event->seen);
  pthread_mutex_unlock(&watch);
  if (event->recorded && event->place != stream(s)->place) crossed++;
  return OK;
}

// A thread may be told that after so many arrays and kernels more it finds no room for so many.
static __thread uint64_t more = UINT64_MAX, refused;
void fake_full(uint64_t after, uint64_t times) { more = after; refused = times; }
static int is_full(void) {
  if (more == UINT64_MAX) return 0;
  if (more) { more--; return 0; }
  if (refused) { refused--; return 1; }
  more = UINT64_MAX;
  return 0;
}
// Or that no more bytes than so many are free.
static __thread size_t spare = SIZE_MAX;
void fake_free(uint64_t bytes) { spare = bytes; }
// Bytes that a thread holds, and the most that it has held since somebody was told.
static __thread int64_t held, most;
void fake_held(int64_t *told) { told[0] = held; told[1] = most; most = held; }
// Memory begins as NaN, aligned as a GPU's is, with what is known of it before it, and behind it a fence that writes must not
// cross. Known of that of the pool is when it was given, and when it was used of late: what nobody has waited for who has used it
// since.
enum { ALIGN = 256, FENCE = 0x5a, USERS = 8 };
typedef struct { int place; uint64_t asked; } Point;
typedef struct { char *at; size_t size; int pooled, users; Point given, user[USERS]; } Memory;
_Static_assert(sizeof(Memory) <= ALIGN, "it has to go before the memory");
static void *pool; // A tree, by address.
static int apart(const void *left, const void *right) {
  const Memory *l = left, *r = right;
  return l->at + l->size + ALIGN <= r->at ? -1 : r->at + r->size + ALIGN <= l->at ? 1 : 0;
}
static Point next(Stream *s) { return (Point){s->place, s->seen[s->place] = ++asked[s->place]}; }
static int has_waited(const Stream *s, Point p) { return p.asked <= s->seen[p.place] || p.asked <= done[p.place]; }
static void expect(const Memory *m, const Stream *s, Point p, const char *what) {
  if (has_waited(s, p)) return;
  fprintf(stderr, "%zu bytes are %s on a stream that has not waited for what another one does with them\n", m->size, what);
  abort();
}
// What is asked of a stream uses memory, if it is the pool's. Kernels, copies and all-reduces are known of; products,
// convolutions and what else NCCL does are not.
void fake_uses(void *on, const void *at) {
  Memory key = {.at = (char *)at}, **found;
  pthread_mutex_lock(&watch);
  if ((found = tfind(&key, &pool, apart))) {
    Memory *m = *found;
    Stream *s = stream(on);
    int users = 0;
    expect(m, s, m->given, "used");
    for (int i = 0; i < m->users; i++) if (!has_waited(s, m->user[i])) m->user[users++] = m->user[i];
    if (users == USERS) users--; // Of one of so many nothing is known any more.
    m->user[users++] = next(s);
    m->users = users;
  }
  pthread_mutex_unlock(&watch);
}
static void uses(void *on, uint64_t at) { fake_uses(on, (const void *)(uintptr_t)at); }
static int take(uint64_t *p, size_t n, Stream *of) {
  if (is_full()) return 2;
  pthread_mutex_lock(&watch);
  size_t grown = of && used + n > reserved ? used + n : reserved, beside = of ? taken : taken + n;
  char *whole = grown + beside > memory() ? NULL : aligned_alloc(ALIGN, (n + ALIGN - 1) / ALIGN * ALIGN + 2 * ALIGN);
  if (whole) {
    Memory *m = (Memory *)whole;
    *m = (Memory){.at = whole + ALIGN, .size = n, .pooled = of != NULL};
    reserved = grown;
    taken = beside;
    if (of) {
      used += n;
      if (used > high) high = used;
      m->given = next(of);
      tsearch(m, &pool, apart);
    }
  }
  pthread_mutex_unlock(&watch);
  if (!whole) return 2;
  memset(whole + ALIGN, 0xff, n);
  memset(whole + ALIGN + n, FENCE, ALIGN);
  held += (int64_t)n;
  if (held > most) most = held;
  *p = (uint64_t)(uintptr_t)(whole + ALIGN);
  return OK;
}
static int give(uint64_t p, const Stream *behind) {
  Memory *m = (Memory *)((char *)(uintptr_t)p - ALIGN);
  for (int i = 0; i < ALIGN; i++)
    if (m->at[m->size + i] != FENCE) { fprintf(stderr, "a kernel wrote behind %zu bytes\n", m->size); abort(); }
  pthread_mutex_lock(&watch);
  if (m->pooled) {
    if (behind) expect(m, behind, m->given, "given back");
    for (int i = 0; behind && i < m->users; i++) expect(m, behind, m->user[i], "given back");
    tdelete(m, &pool, apart);
    used -= m->size;
  } else taken -= m->size;
  pthread_mutex_unlock(&watch);
  held -= (int64_t)m->size;
  memset(m->at, 0xff, m->size);
  __asm__ volatile("" : : "r"(m) : "memory"); // Else the compiler sees that nobody reads it.
  free(m);
  return OK;
}
int cuMemAlloc_v2(uint64_t *p, size_t n) { return take(p, n, NULL); }
int cuMemFree_v2(uint64_t p) { freed = synchronized; return give(p, NULL); }
int cuMemAllocAsync(uint64_t *p, size_t n, void *s) { return take(p, n, stream(s)); }
int cuMemFreeAsync(uint64_t p, void *s) { freed = (uint64_t)(uintptr_t)s; return give(p, stream(s)); }
int cuDeviceGetDefaultMemPool(void **p, int d) { (void)d; *p = handle(); return pools() ? OK : 801; }
// 4 bytes that are kept, 5 those that the pool has, 7 those that arrays have, 8 the most of those.
int cuMemPoolSetAttribute(void *p, int what, const uint64_t *value) {
  (void)p;
  if (what == 4) keep = *value;
  return what == 4 ? OK : 1;
}
int cuMemPoolGetAttribute(void *p, int what, uint64_t *value) {
  (void)p;
  pthread_mutex_lock(&watch);
  *value = what == 4 ? keep : what == 5 ? reserved : what == 7 ? used : high;
  pthread_mutex_unlock(&watch);
  return what == 4 || what == 5 || what == 7 || what == 8 ? OK : 1;
}
int cuMemPoolTrimTo(void *p, size_t least) {
  (void)p;
  pthread_mutex_lock(&watch);
  shrink(least);
  pthread_mutex_unlock(&watch);
  return OK;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) {
  *total = memory();
  pthread_mutex_lock(&watch);
  *free = reserved + taken < *total ? *total - reserved - taken : 0;
  pthread_mutex_unlock(&watch);
  if (*free > spare) *free = spare;
  return OK;
}
int cuMemHostAlloc(void **p, size_t n, unsigned flags) { (void)flags; *p = malloc(n ? n : 1); return OK; }
int cuMemFreeHost(void *p) { free(p); return OK; }
// Bytes that a thread has sent up.
static __thread uint64_t sent;
uint64_t fake_sent(void) { return sent; }
int cuMemcpyHtoDAsync_v2(uint64_t d, const void *s, size_t n, void *on) {
  uses(on, d);
  sent += n;
  memcpy((void *)(uintptr_t)d, s, n);
  return OK;
}
int cuMemcpyDtoHAsync_v2(void *d, uint64_t s, size_t n, void *on) {
  uses(on, s);
  memcpy(d, (void *)(uintptr_t)s, n);
  return OK;
}
int cuMemcpyDtoDAsync_v2(uint64_t d, uint64_t s, size_t n, void *on) {
  uses(on, s);
  uses(on, d);
  memmove((void *)(uintptr_t)d, (void *)(uintptr_t)s, n);
  return OK;
}
int cuMemsetD8Async(uint64_t d, unsigned char v, size_t n, void *on) {
  uses(on, d);
  memset((void *)(uintptr_t)d, v, n);
  return OK;
}

// A module is a library of the compiler beside this: its image is a path. Kernels are loaded when they are asked for, and run one
// after the other.
int cuModuleLoadData(void **m, const void *image) { *m = dlopen(image, RTLD_NOW | RTLD_LOCAL); return *m ? OK : 200; }
int cuModuleUnload(void *m) { (void)m; return OK; }
int cuModuleGetFunction(void **f, void *m, const char *name) {
  if (is_full()) return 2;
  char launcher[200];
  snprintf(launcher, sizeof launcher, "launch_%s", name);
  *f = dlsym(m, launcher);
  return *f ? OK : 500;
}
typedef int Launcher(const unsigned *shape, void **params, void (*uses)(void *, const void *), void *on);
int cuLaunchKernel(Launcher *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *on, void **params, void **extra) {
  static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
  (void)shared; (void)extra;
  unsigned shape[6] = {gx, gy, gz, bx, by, bz};
  // What a GPU has: that many threads a block, blocks in each direction.
  unsigned threads = bx * by * bz;
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || !threads || threads > 1024) return 1;
  pthread_mutex_lock(&one);
  int code = f(shape, params, fake_uses, on);
  pthread_mutex_unlock(&one);
  return code;
}
