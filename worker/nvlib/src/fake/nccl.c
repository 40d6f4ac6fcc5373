// An NCCL without a network, for tests: ranks are threads of one process, or, where FAKE_NCCL_DIR names a folder, processes,
// which leave there what they give. Every call on a communicator answers "in progress" and is done by a thread once all ranks
// have come. As in older ones of the real library, what works on a call is joined by the thread that made it, which has to ask
// the communicator for something once it is done: another one's next call would find memory that may be gone, and is refused. A
// group that the thread itself ends before that would take what is left of the call for its own, and ends the process.
#include <fcntl.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>
enum { SUCCESS = 0, INTERNAL = 3, INVALID = 4, REMOTE = 6, IN_PROGRESS = 7, F16 = 6, F32 = 7, BF16 = 9 };
enum { MEET, ALL_REDUCE, BROADCAST, ALL_GATHER, REDUCE_SCATTER, SPLIT };
enum { RANKS = 16, PATH = 4096 };
typedef struct { char bytes[128]; } Id;
struct Comm;
typedef struct { int kind, type, a, b; const void *from; void *to; size_t count; struct Comm **made; } Op;
typedef struct Group { Id id; int world, arrived; unsigned round; Op ops[RANKS]; struct Comm *comms[RANKS]; struct Group *next; } Group;
typedef struct Comm { Group *group; int rank, state, aborted, caller, held; Op op; } Comm;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static Group *groups;
static int serial, threads;
// The number of this thread, and what its next communicator fails with at once, if with anything.
static __thread int number, failing;
static int self(void) { if (!number) number = __atomic_add_fetch(&threads, 1, __ATOMIC_RELAXED); return number; }
// Whether calls wait for their end, whatever a communicator is made with.
static int blocking(void) { const char *v = getenv("NCCL_COMM_BLOCKING"); return v && strtoll(v, NULL, 0) == 1; }

// Where processes meet; nothing where ranks are threads.
static const char *folder(void) { const char *dir = getenv("FAKE_NCCL_DIR"); return dir && *dir ? dir : NULL; }
// A file of a rank of a group.
static void place(char *path, const Group *g, int rank, const char *what) {
  uint64_t hash = 14695981039346656037u;
  for (size_t i = 0; i < sizeof g->id; i++) hash = (hash ^ (unsigned char)g->id.bytes[i]) * 1099511628211u;
  snprintf(path, PATH, "%s/%016llx.%d.%s", folder(), (unsigned long long)hash, rank, what);
}
static void place_given(char *path, const Group *g, int rank, unsigned round) {
  char what[16];
  snprintf(what, sizeof what, "%u", round);
  place(path, g, rank, what);
}
// A process holds a lock on a file for each of its ranks: the system takes it away when the process ends, however it does.
static void come(const Group *g, int rank) {
  char path[PATH], part[PATH];
  place(path, g, rank, "alive"); place(part, g, rank, "coming");
  int file = open(part, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0 || flock(file, LOCK_EX) || rename(part, path)) abort();
}
static int gone(const Group *g, int rank) {
  char path[PATH];
  place(path, g, rank, "alive");
  int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return 0; // It has not come yet.
  int nobody = !flock(file, LOCK_EX | LOCK_NB);
  close(file);
  return nobody;
}

static Group *group(const Id *id, int world) {
  // Each rank of a process has a group to itself, if it has to do with other processes.
  if (!folder()) for (Group *g = groups; g; g = g->next)
    if (!memcmp(&g->id, id, sizeof *id)) return g;
  Group *g = calloc(1, sizeof *g);
  g->id = *id; g->world = world; g->next = groups; groups = g;
  return g;
}
static Comm *comm(Group *g, int rank) {
  Comm *c = calloc(1, sizeof *c);
  c->group = g; c->rank = rank; g->comms[rank] = c;
  if (folder()) come(g, rank);
  return c;
}
static size_t width(int type) { return type == F32 ? 4 : 2; }
static float get(const void *p, size_t i, int type) {
  if (type == F32) return ((const float *)p)[i];
  if (type == F16) return ((const _Float16 *)p)[i];
  uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16; float f; memcpy(&f, &bits, 4); return f;
}
static void put(void *p, size_t i, int type, float v) {
  if (type == F32) ((float *)p)[i] = v;
  else if (type == F16) ((_Float16 *)p)[i] = v;
  else { uint32_t bits; memcpy(&bits, &v, 4); ((uint16_t *)p)[i] = bits >> 16; }
}
// Everybody is here: gives the ranks from `begin` on and before `end` what is theirs.
static void carry_out(Group *g, int begin, int end) {
  Op *first = &g->ops[0];
  size_t n = first->count, w = width(first->type), all = first->kind == REDUCE_SCATTER ? n * g->world : n;
  float *sums = calloc(all ? all : 1, sizeof *sums);
  if (first->kind == ALL_REDUCE || first->kind == REDUCE_SCATTER)
    for (int r = 0; r < g->world; r++) for (size_t i = 0; i < all; i++) sums[i] += get(g->ops[r].from, i, first->type);
  for (int r = begin; r < end; r++) {
    Op *o = &g->ops[r];
    if (o->kind == ALL_REDUCE) for (size_t i = 0; i < n; i++) put(o->to, i, o->type, sums[i]);
    if (o->kind == REDUCE_SCATTER) for (size_t i = 0; i < n; i++) put(o->to, i, o->type, sums[r * n + i]);
    if (o->kind == BROADCAST) memmove(o->to, g->ops[o->a].from, n * w);
    if (o->kind == ALL_GATHER) for (int s = 0; s < g->world; s++) memmove((char *)o->to + s * n * w, g->ops[s].from, n * w);
    if (o->kind == SPLIT && o->a >= 0) {
      int world = 0, rank = 0;
      for (int s = 0; s < g->world; s++) if (g->ops[s].a == o->a) {
        world++;
        rank += g->ops[s].b < o->b || (g->ops[s].b == o->b && s < r);
      }
      Id id = g->id; memcpy(id.bytes + 8, &o->a, 4); memcpy(id.bytes + 12, &g->round, 4);
      *o->made = comm(group(&id, world), rank);
    }
  }
  free(sums);
}

// Bytes that a rank gives.
static size_t given(const Op *o, int world) {
  if (o->kind == MEET || o->kind == SPLIT) return 0;
  return o->count * width(o->type) * (o->kind == REDUCE_SCATTER ? world : 1);
}
// Leaves what a rank gives where the others find it. A file that is there is whole.
static void leave(const Comm *c) {
  Group *g = c->group;
  char path[PATH], part[PATH];
  place_given(path, g, c->rank, g->round); place(part, g, c->rank, "part");
  size_t bytes = given(&c->op, g->world);
  FILE *file = fopen(part, "wb");
  if (!file || fwrite(&c->op, sizeof c->op, 1, file) != 1 || fwrite(c->op.from, 1, bytes, file) != bytes || fclose(file)) abort();
  if (rename(part, path)) abort();
}
// Takes what another rank has left, if it has.
static int take(Group *g, int rank) {
  char path[PATH];
  place_given(path, g, rank, g->round);
  FILE *file = fopen(path, "rb");
  if (!file) return 0;
  Op *o = &g->ops[rank];
  if (fread(o, sizeof *o, 1, file) != 1) abort();
  size_t bytes = given(o, g->world);
  char *data = malloc(bytes + 1);
  if (fread(data, 1, bytes, file) != bytes) abort();
  fclose(file);
  o->from = data;
  return 1;
}
static int await(Comm *c, int rank) {
  for (;;) {
    // What it has left before it went is as good.
    int over = gone(c->group, rank);
    if (take(c->group, rank)) return SUCCESS;
    pthread_mutex_lock(&lock); over |= c->aborted; pthread_mutex_unlock(&lock);
    if (over) return REMOTE;
    usleep(200);
  }
}
static void *attend_elsewhere(Comm *c) {
  Group *g = c->group;
  int code = SUCCESS, taken[RANKS] = {0};
  for (int r = 0; r < g->world && code == SUCCESS; r++) if (r != c->rank) {
    code = await(c, r);
    taken[r] = code == SUCCESS;
  }
  pthread_mutex_lock(&lock);
  if (code == SUCCESS && !c->aborted) {
    g->ops[c->rank] = c->op;
    carry_out(g, c->rank, c->rank + 1);
    // All have come to this round: nobody reads the one before any more.
    if (g->round) { char path[PATH]; place_given(path, g, c->rank, g->round - 1); unlink(path); }
    g->round++;
  }
  for (int r = 0; r < g->world; r++) if (taken[r]) free((void *)g->ops[r].from);
  if (c->state == IN_PROGRESS) c->state = code;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
  return NULL;
}
static void *attend(void *arg) {
  Comm *c = arg; Group *g = c->group;
  if (folder()) return attend_elsewhere(c);
  pthread_mutex_lock(&lock);
  unsigned round = g->round;
  g->ops[c->rank] = c->op;
  if (++g->arrived == g->world) { carry_out(g, 0, g->world); g->arrived = 0; g->round++; pthread_cond_broadcast(&changed); }
  while (g->round == round && !c->aborted) pthread_cond_wait(&changed, &lock);
  // Who was aborted has never come: its memory may be somebody else's soon.
  if (g->round == round) g->arrived--;
  if (c->state == IN_PROGRESS) c->state = SUCCESS;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
  return NULL;
}
static int begin(Comm *c, Op op) {
  pthread_t t; pthread_mutex_lock(&lock);
  // One that has failed answers every call with what it has failed with.
  int state = c->state;
  if (state != SUCCESS && state != IN_PROGRESS) { pthread_mutex_unlock(&lock); return state; }
  if (c->caller && c->caller != self()) { pthread_mutex_unlock(&lock); return INTERNAL; }
  c->op = op; c->state = IN_PROGRESS; c->caller = self();
  if (folder()) leave(c);
  pthread_create(&t, NULL, attend, c); pthread_detach(t);
  if (blocking()) {
    while (c->state == IN_PROGRESS) pthread_cond_wait(&changed, &lock);
    c->caller = 0;
  }
  state = c->state;
  pthread_mutex_unlock(&lock);
  return state;
}
int ncclGetVersion(int *v) { const char *n = getenv("FAKE_NCCL_VERSION"); *v = n ? atoi(n) : 22706; return SUCCESS; }
const char *ncclGetErrorString(int code) { return code == REMOTE ? "remote process exited" : "fake error"; }
const char *ncclGetLastError(Comm *c) { return c ? "the last words" : ""; }
int ncclGetUniqueId(Id *id) {
  memset(id, 0, sizeof *id);
  int n = ++serial, process = getpid();
  memcpy(id, &n, 4); memcpy(id->bytes + 16, &process, 4); id->bytes[127] = -1;
  return SUCCESS;
}
static int meet(Comm **made, int world, const Id *id, int rank) {
  if (rank >= world || world > RANKS) return INVALID;
  pthread_mutex_lock(&lock); Comm *c = comm(group(id, world), rank); *made = c;
  c->state = failing; failing = SUCCESS; pthread_mutex_unlock(&lock);
  return begin(c, (Op){.kind = MEET});
}
// The configuration: its size, a magic number, the version of its layout, and whether it blocks.
typedef struct { size_t size; unsigned magic, version; int blocking; } Config;
static int sound(const Config *c) { return c->magic == 0xcafebeef && c->version == 23000 && c->size > 64 && !c->blocking; }
int ncclCommInitRankConfig(Comm **made, int world, Id id, int rank, const Config *config) {
  return sound(config) ? meet(made, world, &id, rank) : INVALID;
}
int ncclCommGetAsyncError(Comm *c, int *state) { pthread_mutex_lock(&lock); *state = c->state; pthread_mutex_unlock(&lock); return SUCCESS; }
int ncclCommFinalize(Comm *c) { return begin(c, (Op){.kind = MEET}); }
int ncclCommCount(Comm *c, int *count) {
  pthread_mutex_lock(&lock);
  int state = c->state;
  if (state == SUCCESS && c->caller == self()) c->caller = 0;
  *count = c->group->world;
  pthread_mutex_unlock(&lock);
  return state == IN_PROGRESS ? INVALID : state;
}
int ncclGroupStart(void) { return SUCCESS; }
int ncclGroupEnd(void) {
  pthread_mutex_lock(&lock);
  for (Group *g = groups; g; g = g->next)
    for (int r = 0; r < RANKS; r++)
      if (g->comms[r] && g->comms[r]->caller == self()) {
        fprintf(stderr, "a group ends on a thread that has not joined its last call\n");
        abort();
      }
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}
static int end(Comm *c, int aborted) {
  pthread_mutex_lock(&lock);
  c->aborted = aborted; c->caller = 0; pthread_cond_broadcast(&changed);
  while (c->held) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}
int ncclCommDestroy(Comm *c) { return end(c, 0); }
int ncclCommAbort(Comm *c) { return end(c, 1); }
int ncclCommSplit(Comm *c, int color, int key, Comm **made, const Config *config) {
  return sound(config) ? begin(c, (Op){.kind = SPLIT, .a = color, .b = key, .made = made}) : INVALID;
}
int ncclCommShrink(Comm *c, int *gone, int n, Comm **made, const Config *config, int flags) {
  (void)flags; if (!sound(config)) return INVALID;
  int rank = c->rank; for (int i = 0; i < n; i++) rank -= gone[i] < c->rank;
  Id id = c->group->id; id.bytes[64] = 1; return meet(made, c->group->world - n, &id, rank);
}
// Says to the driver beside this, if that is the one from here, which memory a stream uses.
static void uses(void *stream, const void *at) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  void (*tell)(void *, const void *) = driver ? (void (*)(void *, const void *))dlsym(driver, "fake_uses") : NULL;
  if (tell) tell(stream, at);
  if (driver) dlclose(driver);
}
int ncclAllReduce(const void *f, void *t, size_t n, int type, int op, Comm *c, void *s) {
  uses(s, f); uses(s, t);
  return op ? INVALID : begin(c, (Op){.kind = ALL_REDUCE, .type = type, .from = f, .to = t, .count = n});
}
int ncclReduceScatter(const void *f, void *t, size_t n, int type, int op, Comm *c, void *s) {
  (void)s; return op ? INVALID : begin(c, (Op){.kind = REDUCE_SCATTER, .type = type, .from = f, .to = t, .count = n});
}
int ncclBroadcast(const void *f, void *t, size_t n, int type, int root, Comm *c, void *s) {
  (void)s; return begin(c, (Op){.kind = BROADCAST, .type = type, .a = root, .from = f, .to = t, .count = n});
}
int ncclAllGather(const void *f, void *t, size_t n, int type, Comm *c, void *s) {
  (void)s; return begin(c, (Op){.kind = ALL_GATHER, .type = type, .from = f, .to = t, .count = n});
}
// For tests: a rank's communicator reports a failure.
void fakeFail(const Id *id, int rank, int code) {
  pthread_mutex_lock(&lock); group(id, 1)->comms[rank]->state = code; pthread_mutex_unlock(&lock);
}
// The next one of this thread has failed when the call that makes it returns.
void fakeFailNext(int code) { failing = code; }
// What ends a rank's communicator does not return.
void fakeHold(const Id *id, int rank) {
  pthread_mutex_lock(&lock); group(id, 1)->comms[rank]->held = 1; pthread_mutex_unlock(&lock);
}
// Whether a rank's communicator was aborted.
int fakeAborted(const Id *id, int rank) {
  pthread_mutex_lock(&lock); int aborted = group(id, 1)->comms[rank]->aborted; pthread_mutex_unlock(&lock);
  return aborted;
}
