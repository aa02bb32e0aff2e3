/* Preloaded into a process: disturbs it at the n-th call that changes the names of files.

   FAULT_AT is the number of the call, counted from 1 in every process, 0 for none. FAULT_SIGNAL is sent to the process
   before the call; without it the call fails with FAULT_ERRNO, and with FAULT_ALL so do those after it. FAULT_LACKS
   stands for a system without renameat2. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int calls;
static pid_t counted;

/* How many there were in this process. */
int faults_counted(void) {
    return counted == getpid() ? calls : 0;
}

static int setting(const char *name) {
    const char *value = getenv(name);
    return value ? atoi(value) : 0;
}

static int is_failing(void) {
    if (counted != getpid()) {
        counted = getpid();
        calls = 0;
    }
    int at = setting("FAULT_AT");
    calls += 1;
    if (!at || (setting("FAULT_ALL") ? calls < at : calls != at)) return 0;
    if (setting("FAULT_SIGNAL")) {
        kill(getpid(), setting("FAULT_SIGNAL"));
        return 0;
    }
    errno = setting("FAULT_ERRNO");
    return 1;
}

#define CALL(name, types, values) \
    int name types { \
        int (*next) types = dlsym(RTLD_NEXT, #name); \
        return is_failing() ? -1 : next values; \
    }

CALL(rename, (const char *from, const char *to), (from, to))
CALL(link, (const char *from, const char *to), (from, to))
CALL(linkat, (int one, const char *from, int two, const char *to, int flags), (one, from, two, to, flags))
CALL(unlink, (const char *path), (path))
CALL(unlinkat, (int at, const char *path, int flags), (at, path, flags))
CALL(mkdir, (const char *path, mode_t mode), (path, mode))
CALL(rmdir, (const char *path), (path))

int renameat2(int one, const char *from, int two, const char *to, unsigned flags) {
    int (*next)(int, const char *, int, const char *, unsigned) = dlsym(RTLD_NEXT, "renameat2");
    if (setting("FAULT_LACKS")) {
        errno = EINVAL;
        return -1;
    }
    return is_failing() ? -1 : next(one, from, two, to, flags);
}
