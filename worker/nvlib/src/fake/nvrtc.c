// A compiler of kernels that needs no GPU, for tests: they become C++, with `kernel.h`, and the machine's compiler makes a
// library of them. The "cubin" is its path, which is what the driver beside this opens.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
enum { SUCCESS = 0, INVALID_INPUT = 3, INVALID_OPTION = 5, COMPILATION = 6, BUILTIN = 7 };
typedef struct { char *source, *log; char path[600]; } Program;
static int serial;

static void folder(char *out, size_t size) {
  Dl_info info;
  dladdr((void *)folder, &info);
  snprintf(out, size, "%s", info.dli_fname);
  char *slash = strrchr(out, '/');
  if (slash) *slash = 0;
}
int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return SUCCESS; }
const char *nvrtcGetErrorString(int code) { (void)code; return "NVRTC_ERROR_FAKE"; }
int nvrtcCreateProgram(Program **made, const char *source, const char *name, int headers, const char **texts, const char **names) {
  (void)name; (void)texts; (void)names;
  if (headers) return INVALID_INPUT;
  *made = calloc(1, sizeof **made);
  (*made)->source = strdup(source);
  (*made)->log = strdup("");
  return SUCCESS;
}
int nvrtcDestroyProgram(Program **p) { free((*p)->source); free((*p)->log); free(*p); *p = NULL; return SUCCESS; }
static char *whole(const char *path) {
  FILE *f = fopen(path, "r");
  char *text = calloc(1, 1 << 16);
  if (f) { size_t n = fread(text, 1, (1 << 16) - 1, f); text[n] = 0; fclose(f); }
  return text;
}
static unsigned long long hash(const char *text, unsigned long long h) {
  for (; *text; text++) h = (h ^ (unsigned char)*text) * 1099511628211ull;
  return h;
}
// It has the rest of itself opened by name, and does not say where that lies: nor does NVIDIA's 13.0.
int fake_has_rest(void) { return dlopen("libnvrtc-builtins.so.13.0", RTLD_NOW | RTLD_LOCAL) != NULL; }
int nvrtcCompileProgram(Program *p, int count, const char **options) {
  // A test may want nothing compiled.
  if (getenv("FAKE_NVRTC_CLOSED")) return COMPILATION;
  if (!fake_has_rest()) {
    free(p->log);
    p->log = strdup("nvrtc: error: failed to open libnvrtc-builtins.so.13.0.");
    return BUILTIN;
  }
  // What bits depend on must be asked for.
  int arch = 0, exact = 0;
  for (int i = 0; i < count; i++) {
    arch |= !strcmp(options[i], "--gpu-architecture=sm_90");
    exact |= !strcmp(options[i], "--fmad=false");
  }
  if (!arch || !exact) return INVALID_OPTION;
  char dir[400], base[500], own[600], line[2500];
  folder(dir, sizeof dir);
  snprintf(base, sizeof base, "%s/kernel.h", dir);
  char *shim = whole(base);
  // What was compiled before, by this process or another one, is as good.
  snprintf(base, sizeof base, "%s/%016llx", dir, hash(p->source, hash(shim, 14695981039346656037ull)));
  free(shim);
  snprintf(p->path, sizeof p->path, "%s.so", base);
  if (!access(p->path, R_OK)) return SUCCESS;
  snprintf(own, sizeof own, "%s.%d.%d", base, (int)getpid(), __sync_add_and_fetch(&serial, 1));
  FILE *f = fopen(own, "w");
  if (!f) return COMPILATION;
  fprintf(f, "#include \"%s/kernel.h\"\n%s\n", dir, p->source);
  for (const char *at = p->source; (at = strstr(at, "__global__ void ")); ) {
    at += strlen("__global__ void ");
    int len = (int)strcspn(at, "( \n");
    fprintf(f, "extern \"C\" int launch_%.*s(const unsigned *shape, void **p, Uses *uses, void *stream) {"
               " return launch(%.*s, shape, p, uses, stream); }\n", len, at, len, at);
  }
  fclose(f);
  const char *cxx = getenv("CXX");
  snprintf(line, sizeof line, "%s -std=c++17 -shared -fPIC -O1 -ffp-contract=off -w -x c++ -o '%s.so' '%s' 2>'%s.log'", cxx ? cxx : "c++", own, own, own);
  int failed = system(line);
  snprintf(line, sizeof line, "%s.log", own);
  free(p->log);
  p->log = whole(line);
  unlink(line);
  unlink(own);
  snprintf(line, sizeof line, "%s.so", own);
  return failed || rename(line, p->path) ? COMPILATION : SUCCESS;
}
int nvrtcGetProgramLogSize(Program *p, size_t *n) { *n = strlen(p->log) + 1; return SUCCESS; }
int nvrtcGetProgramLog(Program *p, char *out) { strcpy(out, p->log); return SUCCESS; }
int nvrtcGetCUBINSize(Program *p, size_t *n) { *n = strlen(p->path) + 1; return SUCCESS; }
int nvrtcGetCUBIN(Program *p, char *out) { strcpy(out, p->path); return SUCCESS; }
