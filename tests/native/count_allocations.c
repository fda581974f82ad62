/* Preloaded: counts what is allocated while the thread that gave the GIL back runs native code.
 *
 * Calls of malloc and its kin and of mmap, by any thread, between PyEval_SaveThread and PyEval_RestoreThread. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

static atomic_int inside;
static atomic_long calls, bytes;
static void* (*real_mmap)(void*, size_t, int, int, int, off_t);
static void* (*save_thread)(void);
static void (*restore_thread)(void*);

__attribute__((constructor)) static void find_real(void) {
  real_mmap = dlsym(RTLD_NEXT, "mmap");
  save_thread = dlsym(RTLD_NEXT, "PyEval_SaveThread");
  restore_thread = dlsym(RTLD_NEXT, "PyEval_RestoreThread");
}

static void count(size_t size) {
  if (!inside) return;
  calls += 1;
  bytes += (long)size;
}

/* Since the last time it was asked. */
long allocation_calls(void) { return atomic_exchange(&calls, 0); }
long allocated_bytes(void) { return atomic_exchange(&bytes, 0); }

void* PyEval_SaveThread(void) {
  void* state = save_thread();
  inside = 1;
  return state;
}

void PyEval_RestoreThread(void* state) {
  inside = 0;
  restore_thread(state);
}

void* malloc(size_t size) {
  count(size);
  return __libc_malloc(size);
}

void* calloc(size_t n, size_t size) {
  count(n * size);
  return __libc_calloc(n, size);
}

void* realloc(void* old, size_t size) {
  count(size);
  return __libc_realloc(old, size);
}

void* memalign(size_t alignment, size_t size) {
  count(size);
  return __libc_memalign(alignment, size);
}

void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void** result, size_t alignment, size_t size) {
  *result = memalign(alignment, size);
  return *result ? 0 : ENOMEM;
}

void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) {
  count(size);
  return real_mmap(address, size, protection, flags, file, offset);
}
