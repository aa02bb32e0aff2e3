/* Preloaded into a process: kills it at, or fails, the n-th call that changes names of files.

   FAULT_AT is the number of the call, from 1; FAULT_ERRNO what it fails with, or 0 to kill the process before the call.
   FAULT_LACKS is 1 where there is to be no renameat2. FAULT_ONLY counts only calls with names that contain it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_int calls;

static long setting(const char *name) {
    const char *value = getenv(name);
    return value ? atol(value) : 0;
}

static int is_hit(const char *path) {
    const char *only = getenv("FAULT_ONLY");
    if (only && (!path || !strstr(path, only))) return 0;
    if (atomic_fetch_add(&calls, 1) + 1 != setting("FAULT_AT")) return 0;
    if (!setting("FAULT_ERRNO")) kill(getpid(), SIGKILL);
    errno = (int)setting("FAULT_ERRNO");
    return 1;
}

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, #name))

int rename(const char *from, const char *to) {
    return is_hit(from) ? -1 : NEXT(int (*)(const char *, const char *), rename)(from, to);
}

int renameat2(int one, const char *from, int two, const char *to, unsigned flags) {
    if (setting("FAULT_LACKS")) { errno = EINVAL; return -1; }
    return is_hit(from) ? -1 : NEXT(int (*)(int, const char *, int, const char *, unsigned), renameat2)(one, from, two, to, flags);
}

int link(const char *from, const char *to) {
    return is_hit(from) ? -1 : NEXT(int (*)(const char *, const char *), link)(from, to);
}

int linkat(int one, const char *from, int two, const char *to, int flags) {
    return is_hit(from) ? -1 : NEXT(int (*)(int, const char *, int, const char *, int), linkat)(one, from, two, to, flags);
}

int unlink(const char *path) {
    return is_hit(path) ? -1 : NEXT(int (*)(const char *), unlink)(path);
}

int unlinkat(int at, const char *path, int flags) {
    return is_hit(path) ? -1 : NEXT(int (*)(int, const char *, int), unlinkat)(at, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    return is_hit(path) ? -1 : NEXT(int (*)(const char *, mode_t), mkdir)(path, mode);
}

int rmdir(const char *path) {
    return is_hit(path) ? -1 : NEXT(int (*)(const char *), rmdir)(path);
}
