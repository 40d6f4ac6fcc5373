// What a kernel of CUDA's needs to be C++: a grid is a loop over its blocks, and the threads of a block are fibres that take
// turns. One yields at a barrier; between barriers they run forwards and backwards by turns, so that what needs a barrier and
// has none gives wrong numbers.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__ static
#define __forceinline__ inline
#define __shared__ static

struct Dim3 { unsigned x, y, z; };
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }

struct Fibre { ucontext_t context; std::vector<char> stack; int done; };
static ucontext_t turns;
static std::vector<Fibre> fibres;
static unsigned now;
static void (*body)(void *);
static void *what;

static inline void __syncthreads() { swapcontext(&fibres[now].context, &turns); }
static void fibre() { unsigned own = now; body(what); fibres[own].done = 1; }

static unsigned count() { return blockDim.x * blockDim.y * blockDim.z; }
static void at(unsigned i) {
  now = i;
  threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
}

// The threads of one block; false if some are at a barrier that others never come to.
static bool block(bool backwards) {
  unsigned n = count();
  if (fibres.size() < n) fibres.resize(n);
  for (unsigned i = 0; i < n; i++) {
    Fibre &f = fibres[i];
    f.stack.resize(1 << 16);
    f.done = 0;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = &turns;
    makecontext(&f.context, fibre, 0);
  }
  for (;; backwards = !backwards) {
    unsigned done = 0;
    for (unsigned k = 0; k < n; k++) {
      at(backwards ? n - 1 - k : k);
      swapcontext(&turns, &fibres[now].context);
      done += fibres[now].done;
    }
    if (done == n) return true;
    if (done) return false;
  }
}

template <class... A, size_t... I> static void call(void (*f)(A...), void **p, std::index_sequence<I...>) { f(*(A *)p[I]...); }

template <class... A> struct Call {
  void (*f)(A...);
  void **p;
  static void run(void *self) { call(((Call *)self)->f, ((Call *)self)->p, std::index_sequence_for<A...>{}); }
};

// The driver wants to know which memory what is asked of a stream uses: that of each pointer.
typedef void Uses(void *stream, const void *at);
template <class A> static void tell(Uses *uses, void *stream, void *p) {
  if constexpr (std::is_pointer_v<A>) uses(stream, *(A *)p);
}

template <class... A> static int launch(void (*f)(A...), const unsigned *shape, void **p, Uses *uses, void *stream) {
  void **at = p;
  (tell<A>(uses, stream, *at++), ...);
  Call<A...> self{f, p};
  body = Call<A...>::run;
  what = &self;
  gridDim = {shape[0], shape[1], shape[2]};
  blockDim = {shape[3], shape[4], shape[5]};
  unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
  for (unsigned b = 0; b < blocks; b++) {
    unsigned k = blocks - 1 - b;
    blockIdx = {k % gridDim.x, k / gridDim.x % gridDim.y, k / gridDim.x / gridDim.y};
    if (!block(b % 2)) return 719; // CUDA_ERROR_LAUNCH_FAILED
  }
  return 0;
}
