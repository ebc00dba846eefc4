/* A disk whose n-th call fails: preloaded before libc, so that SQLite and Python meet it where they meet the kernel.
 *
 * Only files below the folder that was armed count. Calls are told apart by a bit; every armed call is counted, the n-th
 * and `times` in all fail with `error`. Of a failed sync the inode is remembered: nobody should write into it any more.
 *
 *     gcc -shared -fPIC -O2 -o failing_disk.so failing_disk.c -ldl;  LD_PRELOAD=./failing_disk.so python ...
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { OPENED = 1, WRITTEN = 2, SYNCED = 4, CUT = 8, RENAMED = 16 };

static char folder[PATH_MAX];
static int calls, first, times, error_no, seen, failed;
static unsigned long unsynced[64];
static int unsynced_count;

void arm(const char *place, int which, int nth, int how_many, int error) {
    snprintf(folder, sizeof folder, "%s", place);
    calls = which; first = nth; times = how_many; error_no = error; seen = failed = unsynced_count = 0;
}
void disarm(void) { calls = 0; }
int counted(void) { return seen; }
int failures(void) { return failed; }
int is_unsynced(unsigned long inode) {
    for (int i = 0; i < unsynced_count; i++) if (unsynced[i] == inode) return 1;
    return 0;
}

static int path_fails(int which, const char *path) {
    if (!(calls & which) || !folder[0] || !path || strncmp(path, folder, strlen(folder))) return 0;
    seen++;
    if (seen < first || seen >= first + times) return 0;
    failed++;
    errno = error_no;
    return 1;
}

static int fails(int which, int fd) {
    if (!(calls & which)) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return path_fails(which, path);
}

#define REAL(name, type) static __typeof__(type) real; if (!real) real = (__typeof__(type))dlsym(RTLD_NEXT, name)

static int sync_fails(int fd) {
    if (!fails(SYNCED, fd)) return 0;
    struct stat about;
    if (!fstat(fd, &about) && unsynced_count < 64) unsynced[unsynced_count++] = about.st_ino;
    errno = error_no;
    return 1;
}

int fsync(int fd) { REAL("fsync", int (*)(int)); return sync_fails(fd) ? -1 : real(fd); }
int fdatasync(int fd) { REAL("fdatasync", int (*)(int)); return sync_fails(fd) ? -1 : real(fd); }

ssize_t write(int fd, const void *data, size_t size) {
    REAL("write", ssize_t (*)(int, const void *, size_t));
    return fails(WRITTEN, fd) ? -1 : real(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL("pwrite", ssize_t (*)(int, const void *, size_t, off_t));
    return fails(WRITTEN, fd) ? -1 : real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL("pwrite64", ssize_t (*)(int, const void *, size_t, off64_t));
    return fails(WRITTEN, fd) ? -1 : real(fd, data, size, at);
}
int ftruncate(int fd, off_t size) {
    REAL("ftruncate", int (*)(int, off_t));
    return fails(CUT, fd) ? -1 : real(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    REAL("ftruncate64", int (*)(int, off64_t));
    return fails(CUT, fd) ? -1 : real(fd, size);
}
int rename(const char *from, const char *to) {
    REAL("rename", int (*)(const char *, const char *));
    return path_fails(RENAMED, from) ? -1 : real(from, to);
}

#define OPEN(name)                                                                         \
    int name(const char *path, int flags, ...) {                                           \
        REAL(#name, int (*)(const char *, int, ...));                                      \
        mode_t mode = 0;                                                                   \
        if (flags & (O_CREAT | O_TMPFILE)) {                                               \
            va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); \
        }                                                                                  \
        return path_fails(OPENED, path) ? -1 : real(path, flags, mode);                    \
    }
OPEN(open)
OPEN(open64)
