/* Fails, shortens, kills or interrupts at the n-th call that a process makes on files below one directory, or lets the
 * disk be full from there on. Which ranges of which files were written and not brought to the disk since is noted, for
 * whoever cuts the power.
 *
 * Loaded before the C library (LD_PRELOAD), it counts calls whose path, or whose descriptor's path, lies below the
 * directory that fault_arm names; relative paths count as below it. Nothing happens before fault_arm. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL_BEFORE, KILL_AFTER, FAIL, SHORT, SIGNAL, FULL };
enum { MOST_DIRTY = 1 << 16 };
struct dirty { unsigned long device, inode; long begin, end, serial; };
struct shared { long count; char hit[64]; int lock; long num_dirty, serial; struct dirty dirty[MOST_DIRTY]; };

static struct shared *shared;
static char root[PATH_MAX];
static size_t root_length;
static int mode = OFF, value, log_fd = -1;
static long target;

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void prepare(void) {
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

/* What the parent reads when the armed child has ended. */
long fault_count(void) { return shared->count; }
const char *fault_hit(void) { return shared->hit; }

void fault_arm(const char *directory, int how, long number, int what, int log) {
  strncpy(root, directory, sizeof root - 1);
  root_length = strlen(root);
  target = number;
  value = what;
  log_fd = log;
  shared->count = shared->lock = 0;
  memset(shared->hit, 0, sizeof shared->hit);
  __atomic_store_n(&mode, how, __ATOMIC_SEQ_CST);
}

void fault_disarm(void) { __atomic_store_n(&mode, OFF, __ATOMIC_SEQ_CST); }

static int below_path(const char *path) {
  if (!path || !*path) return 0;
  if (path[0] != '/') return 1;
  return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int below_fd(int fd) {
  static ssize_t (*real)(const char *, char *, size_t);
  char link[64], found[PATH_MAX];
  if (!real) real = dlsym(RTLD_NEXT, "readlink");
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = real(link, found, sizeof found - 1);
  if (length <= 0 || found[0] != '/') return 0;
  found[length] = 0;
  return below_path(found);
}

static int below_at(int fd, const char *path) {
  if (path && path[0] == '/') return below_path(path);
  return fd == AT_FDCWD ? below_path(path) : below_fd(fd);
}

/* Calls that need room, which a full disk refuses. */
static int takes_room(const char *name) {
  return strstr(name, "write") || !strncmp(name, "mkdir", 5) || !strncmp(name, "sendfile", 8) || !strcmp(name, "copy_file_range");
}

/* Counts a call; the verdict of this one: 0 go on, FAIL, SHORT or KILL_AFTER. */
static int counted(const char *name, int is_below) {
  int saved = errno, verdict = 0;
  if (mode == OFF || !is_below) return 0;
  long number = __atomic_add_fetch(&shared->count, 1, __ATOMIC_SEQ_CST);
  if (log_fd >= 0) {
    static ssize_t (*real)(int, const void *, size_t);
    char line[80];
    if (!real) real = dlsym(RTLD_NEXT, "write");
    int length = snprintf(line, sizeof line, "%s\n", name);
    if (real(log_fd, line, length) < 0) abort();
  }
  if (number == target) {
    strncpy(shared->hit, name, sizeof shared->hit - 1);
    if (mode == KILL_BEFORE) kill(getpid(), SIGKILL);
    else if (mode == SIGNAL) kill(getpid(), value);
    else if (mode != COUNT && mode != FULL) verdict = mode;
  }
  if (mode == FULL && number >= target && takes_room(name)) verdict = FAIL;
  errno = saved;
  return verdict;
}

static void locked(int is_wanted) {
  if (is_wanted) while (__atomic_test_and_set(&shared->lock, __ATOMIC_ACQUIRE)) usleep(10);
  else __atomic_clear(&shared->lock, __ATOMIC_RELEASE);
}

static int status_of(int fd, struct stat *found) {
  static int (*real)(int, struct stat *);
  if (!real) real = dlsym(RTLD_NEXT, "fstat");
  return real(fd, found);
}

/* Bytes of a file that end here, or at the place of its descriptor, are written, but may not be on the disk. */
static void note_written(int fd, long end, long count) {
  struct stat found;
  int saved = errno;
  if (mode != OFF && count > 0 && below_fd(fd) && !status_of(fd, &found)) {
    if (end < 0) end = lseek(fd, 0, SEEK_CUR);
    locked(1);
    if (shared->num_dirty == MOST_DIRTY) abort();
    shared->dirty[shared->num_dirty++] = (struct dirty){found.st_dev, found.st_ino, end - count, end, ++shared->serial};
    locked(0);
  }
  errno = saved;
}

/* What was written of a file until then is on the disk. */
static void note_synced(int fd, long then) {
  struct stat found;
  int saved = errno;
  if (!status_of(fd, &found)) {
    locked(1);
    long kept = 0;
    for (long n = 0; n < shared->num_dirty; n++) {
      struct dirty *one = &shared->dirty[n];
      if (one->serial > then || one->device != found.st_dev || one->inode != found.st_ino) shared->dirty[kept++] = *one;
    }
    shared->num_dirty = kept;
    locked(0);
  }
  errno = saved;
}

/* How many ranges are not on the disk, and each of them; a process that was killed may have held the lock. */
long dirty_count(void) { return shared->num_dirty; }
const struct dirty *dirty_ranges(void) { locked(0); return shared->dirty; }
void dirty_forget(void) { locked(0); shared->num_dirty = 0; }

static long done(int verdict, long result) {
  if (verdict == KILL_AFTER) kill(getpid(), SIGKILL);
  return result;
}

#define REFUSED(verdict) if ((verdict) == FAIL) { errno = value; return -1; }

/* Calls on a path or on a descriptor that have no length. */
#define CALL(type, name, below, parameters, arguments) \
  type name parameters { \
    REAL(name); \
    if (mode == OFF) return real arguments; \
    int verdict = counted(#name, below); \
    REFUSED(verdict) \
    return done(verdict, real arguments); \
  }

/* Calls that may do a part of what they are asked for. */
#define PART(type, name, fd, length, parameters, arguments, wrote) \
  type name parameters { \
    REAL(name); \
    if (mode == OFF) return real arguments; \
    int verdict = counted(#name, below_fd(fd)); \
    REFUSED(verdict) \
    if (verdict == SHORT && length > 1) length /= 2; \
    long result = real arguments; \
    wrote; \
    return done(verdict, result); \
  }
#define AT(fd, place) note_written(fd, (place) + result, result)
#define HERE(fd) note_written(fd, -1, result)

#define OPEN(name, below, parameters, arguments, last) \
  int name parameters { \
    REAL(name); \
    mode_t mask = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, last); mask = va_arg(list, mode_t); va_end(list); } \
    if (mode == OFF) return real arguments; \
    int verdict = counted(#name, below); \
    REFUSED(verdict) \
    return done(verdict, real arguments); \
  }

OPEN(open, below_path(path), (const char *path, int flags, ...), (path, flags, mask), flags)
OPEN(open64, below_path(path), (const char *path, int flags, ...), (path, flags, mask), flags)
OPEN(openat, below_at(fd, path), (int fd, const char *path, int flags, ...), (fd, path, flags, mask), flags)
OPEN(openat64, below_at(fd, path), (int fd, const char *path, int flags, ...), (fd, path, flags, mask), flags)

PART(ssize_t, read, fd, count, (int fd, void *data, size_t count), (fd, data, count), )
PART(ssize_t, pread, fd, count, (int fd, void *data, size_t count, off_t at), (fd, data, count, at), )
PART(ssize_t, pread64, fd, count, (int fd, void *data, size_t count, off64_t at), (fd, data, count, at), )
PART(ssize_t, write, fd, count, (int fd, const void *data, size_t count), (fd, data, count), HERE(fd))
PART(ssize_t, pwrite, fd, count, (int fd, const void *data, size_t count, off_t at), (fd, data, count, at), AT(fd, at))
PART(ssize_t, pwrite64, fd, count, (int fd, const void *data, size_t count, off64_t at), (fd, data, count, at),
     AT(fd, at))
PART(ssize_t, copy_file_range, to, count,
     (int from, off64_t *start, int to, off64_t *place, size_t count, unsigned flags),
     (from, start, to, place, count, flags), note_written(to, place ? *place : -1, result))
PART(ssize_t, sendfile, to, count, (int to, int from, off_t *start, size_t count), (to, from, start, count), HERE(to))
PART(ssize_t, sendfile64, to, count, (int to, int from, off64_t *start, size_t count), (to, from, start, count),
     HERE(to))

/* Of several buffers the first half is read, rounded up. */
#define VECTOR(name, parameters, arguments, wrote) \
  ssize_t name parameters { \
    REAL(name); \
    if (mode == OFF) return real arguments; \
    int verdict = counted(#name, below_fd(fd)); \
    REFUSED(verdict) \
    struct iovec half; \
    if (verdict == SHORT) { half = *parts; half.iov_len = (half.iov_len + 1) / 2; parts = &half; count = 1; } \
    long result = real arguments; \
    wrote; \
    return done(verdict, result); \
  }
VECTOR(preadv, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at), )
VECTOR(preadv64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at), )
VECTOR(preadv2, (int fd, const struct iovec *parts, int count, off_t at, int flags), (fd, parts, count, at, flags), )
VECTOR(preadv64v2, (int fd, const struct iovec *parts, int count, off64_t at, int flags),
       (fd, parts, count, at, flags), )
VECTOR(pwritev, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at), AT(fd, at))
VECTOR(pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at), AT(fd, at))

#define SYNC(name) \
  int name(int fd) { \
    REAL(name); \
    if (mode == OFF) return real(fd); \
    int verdict = counted(#name, below_fd(fd)); \
    REFUSED(verdict) \
    long then = shared->serial; \
    int result = real(fd); \
    if (!result) note_synced(fd, then); \
    return done(verdict, result); \
  }
SYNC(fsync)
SYNC(fdatasync)
CALL(int, ftruncate, below_fd(fd), (int fd, off_t length), (fd, length))
CALL(int, ftruncate64, below_fd(fd), (int fd, off64_t length), (fd, length))
CALL(int, flock, below_fd(fd), (int fd, int operation), (fd, operation))
CALL(int, rename, below_path(from), (const char *from, const char *to), (from, to))
CALL(int, renameat, below_at(a, from), (int a, const char *from, int b, const char *to), (a, from, b, to))
CALL(int, renameat2, below_at(a, from), (int a, const char *from, int b, const char *to, unsigned flags),
     (a, from, b, to, flags))
CALL(int, link, below_path(from), (const char *from, const char *to), (from, to))
CALL(int, linkat, below_at(a, from), (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags))
CALL(int, symlink, below_path(to), (const char *from, const char *to), (from, to))
CALL(int, unlink, below_path(path), (const char *path), (path))
CALL(int, unlinkat, below_at(fd, path), (int fd, const char *path, int flags), (fd, path, flags))
CALL(int, rmdir, below_path(path), (const char *path), (path))
CALL(int, mkdir, below_path(path), (const char *path, mode_t mask), (path, mask))
CALL(int, mkdirat, below_at(fd, path), (int fd, const char *path, mode_t mask), (fd, path, mask))
CALL(int, chmod, below_path(path), (const char *path, mode_t mask), (path, mask))
CALL(int, fchmod, below_fd(fd), (int fd, mode_t mask), (fd, mask))
CALL(int, stat, below_path(path), (const char *path, struct stat *found), (path, found))
CALL(int, stat64, below_path(path), (const char *path, struct stat64 *found), (path, found))
CALL(int, lstat, below_path(path), (const char *path, struct stat *found), (path, found))
CALL(int, lstat64, below_path(path), (const char *path, struct stat64 *found), (path, found))
CALL(int, fstat, below_fd(fd), (int fd, struct stat *found), (fd, found))
CALL(int, fstat64, below_fd(fd), (int fd, struct stat64 *found), (fd, found))
CALL(int, fstatat, below_at(fd, path), (int fd, const char *path, struct stat *found, int flags), (fd, path, found, flags))
CALL(int, fstatat64, below_at(fd, path), (int fd, const char *path, struct stat64 *found, int flags),
     (fd, path, found, flags))
CALL(int, statvfs, below_path(path), (const char *path, struct statvfs *found), (path, found))
CALL(int, statvfs64, below_path(path), (const char *path, struct statvfs64 *found), (path, found))
CALL(int, access, below_path(path), (const char *path, int how), (path, how))

/* A descriptor that refuses to close is closed all the same, as on Linux. */
int close(int fd) {
  REAL(close);
  if (mode == OFF) return real(fd);
  int verdict = counted("close", below_fd(fd));
  int result = real(fd);
  REFUSED(verdict)
  return done(verdict, result);
}

DIR *opendir(const char *path) {
  REAL(opendir);
  if (mode == OFF) return real(path);
  int verdict = counted("opendir", below_path(path));
  if (verdict == FAIL) { errno = value; return NULL; }
  DIR *found = real(path);
  done(verdict, 0);
  return found;
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset) {
  REAL(mmap64);
  if (mode == OFF || fd < 0) return real(address, length, protection, flags, fd, offset);
  int verdict = counted("mmap64", below_fd(fd));
  if (verdict == FAIL) { errno = value; return MAP_FAILED; }
  void *found = real(address, length, protection, flags, fd, offset);
  done(verdict, 0);
  return found;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
  REAL(pthread_create);
  if (mode == OFF) return real(thread, attributes, start, argument);
  Dl_info caller;  /* threads of libraries, which may take such a failure for their end, are left alone */
  int is_python = dladdr(__builtin_return_address(0), &caller) && caller.dli_fname && strstr(caller.dli_fname, "python") &&
                  !strstr(caller.dli_fname, "-packages");
  int verdict = is_python ? counted("pthread_create", 1) : 0;
  if (verdict == FAIL) return EAGAIN;
  return done(verdict, real(thread, attributes, start, argument));
}
