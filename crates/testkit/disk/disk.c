/*
 * A disk that forgets what was not synced, for one process and the files below one directory. Loaded with LD_PRELOAD.
 *
 * Files are written as always, so that a process that is killed loses nothing. Beside them stands what a power loss
 * needs to go back: how long each file was when it was synced last, what stood in synced places that were overwritten
 * since, and which names were made, moved or removed since a directory was synced last. `testkit::disk` reads that and
 * takes the disk back. Nothing is really synced here: this machine keeps its power, and the tests their speed.
 *
 * Names are durable in the order in which they changed, as on file systems with a journal: a sync of any directory
 * makes all earlier changes durable. A sync of a file does not make its name durable, which most file systems would.
 *
 * Environment: LOCKSTEP_DISK_ROOT, the directory, as the process names it; LOCKSTEP_DISK_NOTES, a directory on the same
 * file system and outside the first, with the files `control` (64 bytes) and `files` (FILES slots of 16 bytes).
 *
 * Not seen: writes through memory maps, io_uring, and other processes. RocksDB and SQLite use none of them for what
 * has to last.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FILES 65536
#define FDS 65536
#define STRIPES 64
#define CHUNK 65536

/* What the test sets while the process runs. Same order in disk.rs. */
struct control {
    _Atomic uint64_t sync_delay_us; /* every sync takes this much longer */
    _Atomic uint64_t full;          /* no room: writes that make a file longer, and new names, fail */
    _Atomic uint64_t fail_syncs;    /* every sync fails */
    _Atomic uint64_t ignore_syncs;  /* every sync succeeds and does nothing, as if the process had never asked */
    _Atomic int64_t clock_off_ms;   /* the wall clock is wrong by this much */
    _Atomic uint64_t syncs;         /* counted here */
    _Atomic uint64_t read_delay_us; /* every read takes this much longer */
    _Atomic uint64_t unused[1];
};

/* A file that was opened for writing. */
struct slot {
    _Atomic uint64_t inode; /* 0: free */
    _Atomic uint64_t synced_bytes;
};

enum { UNKNOWN = 0, FILE_BELOW = 1, DIRECTORY_BELOW = 2 };

static struct control *control;
static struct slot *files;
static char root[PATH_MAX], notes[PATH_MAX];
static size_t root_length;
static int names = -1;
static uint64_t saved_first, saved_next;
static _Atomic uint8_t kinds[FDS];
static pthread_mutex_t stripes[STRIPES];
static pthread_mutex_t names_lock = PTHREAD_MUTEX_INITIALIZER;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

static void die(const char *what) {
    char text[256];
    int length = snprintf(text, sizeof text, "the disk of the tests: %s: %s\n", what, strerror(errno));
    syscall(SYS_write, 2, text, length);
    _exit(70);
}

static void *map(const char *name, size_t bytes) {
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/%s", notes, name);
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    struct stat stat;
    if (fd < 0 || fstat(fd, &stat) != 0 || (size_t)stat.st_size < bytes) die(path);
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) die("mmap");
    syscall(SYS_close, fd);
    return mapped;
}

__attribute__((constructor)) static void begin(void) {
    *(void **)&real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    const char *below = getenv("LOCKSTEP_DISK_ROOT"), *beside = getenv("LOCKSTEP_DISK_NOTES");
    if (!below || !beside) return;
    snprintf(root, sizeof root, "%s", below);
    snprintf(notes, sizeof notes, "%s", beside);
    for (int n = 0; n < STRIPES; n++) pthread_mutex_init(&stripes[n], NULL);
    control = map("control", sizeof *control);
    files = map("files", FILES * sizeof *files);
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/names", notes);
    names = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (names < 0) die(path);
    /* Numbers of saved files go on where an earlier life of the process left them. */
    char line[PATH_MAX * 2 + 64];
    FILE *earlier = fdopen(dup(names), "r");
    if (!earlier) die(path);
    rewind(earlier);
    while (fgets(line, sizeof line, earlier)) {
        uint64_t number = 0;
        char *tab = strchr(line, '\t');
        if (tab && sscanf(tab + 1, "%lu", &number) == 1 && number >= saved_next) saved_next = number + 1;
    }
    fclose(earlier);
    saved_first = 0;
    root_length = strlen(root);
}

static int is_below(const char *path) {
    return root_length && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || !path[root_length]);
}

/* The path as an absolute one. */
static void absolute(int directory, const char *path, char *out) {
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    char base[PATH_MAX] = "";
    if (directory == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) base[0] = 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t length = readlink(link, base, sizeof base - 1);
        base[length > 0 ? length : 0] = 0;
    }
    int length = snprintf(out, PATH_MAX, "%s/%s", base, path);
    if (length < 0 || length >= PATH_MAX) out[0] = 0;
}

static struct slot *slot_of(uint64_t inode, int make) {
    for (size_t n = 0, at = (inode * 0x9e3779b97f4a7c15ull) >> 48; n < FILES; n++, at++) {
        struct slot *slot = &files[at % FILES];
        uint64_t found = slot->inode;
        if (found == inode) return slot;
        if (found == 0) {
            if (!make) return NULL;
            uint64_t expected = 0;
            if (atomic_compare_exchange_strong(&slot->inode, &expected, inode) || expected == inode) return slot;
        }
    }
    die("too many files");
    return NULL;
}

static pthread_mutex_t *lock_of(uint64_t inode) {
    pthread_mutex_t *lock = &stripes[inode % STRIPES];
    pthread_mutex_lock(lock);
    return lock;
}

static void undo_path(uint64_t inode, char *out) {
    snprintf(out, PATH_MAX + 32, "%s/undo-%lu", notes, inode);
}

/* Keeps what stands in synced places that are about to change; -1 where there is no room for it. */
static int keep(int fd, uint64_t inode, uint64_t from, uint64_t to) {
    char path[PATH_MAX + 32], bytes[CHUNK];
    undo_path(inode, path);
    int undo = -1, reader = -1, result = 0;
    while (from < to) {
        size_t wanted = to - from < CHUNK ? to - from : CHUNK;
        ssize_t count = syscall(SYS_pread64, fd, bytes, wanted, from);
        if (count < 0 && errno == EBADF && reader < 0) {
            /* Opened for writing only. */
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            reader = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
            if (reader < 0) die("a file cannot be read");
            fd = reader;
            continue;
        }
        if (count <= 0) break;
        if (undo < 0) undo = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        uint64_t head[2] = {from, count};
        struct iovec parts[2] = {{head, sizeof head}, {bytes, count}};
        off_t end = undo < 0 ? 0 : lseek(undo, 0, SEEK_END);
        if (undo < 0 || syscall(SYS_writev, undo, parts, 2) != (ssize_t)(sizeof head + count)) {
            /* A half entry would hide the next ones. */
            if (undo >= 0) syscall(SYS_ftruncate, undo, end);
            result = -1;
            break;
        }
        from += count;
    }
    if (undo >= 0) syscall(SYS_close, undo);
    if (reader >= 0) syscall(SYS_close, reader);
    if (result < 0) errno = ENOSPC;
    return result;
}

/* Writes one line about a change of names, before it happens; -1 where there is no room for it. */
static int note(char what, uint64_t saved, uint64_t inode, const char *one, const char *other) {
    char line[PATH_MAX * 2 + 64];
    int length = snprintf(line, sizeof line, "%c\t%lu\t%lu\t%s\t%s\n", what, saved, inode, one, other);
    off_t end = lseek(names, 0, SEEK_END);
    if (syscall(SYS_write, names, line, length) == length) return 0;
    syscall(SYS_ftruncate, names, end);
    errno = ENOSPC;
    return -1;
}

static void saved_path(uint64_t number, char *out) {
    snprintf(out, PATH_MAX + 32, "%s/saved-%lu", notes, number);
}

/* A second name for what is about to lose its own. */
static uint64_t save(const char *path) {
    char saved[PATH_MAX + 32];
    uint64_t number = saved_next++;
    saved_path(number, saved);
    syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, saved, 0);
    return number;
}

static void names_are_durable(void) {
    pthread_mutex_lock(&names_lock);
    if (syscall(SYS_ftruncate, names, 0) != 0) die("names");
    char saved[PATH_MAX + 32];
    for (; saved_first < saved_next; saved_first++) {
        saved_path(saved_first, saved);
        syscall(SYS_unlinkat, AT_FDCWD, saved, 0);
    }
    pthread_mutex_unlock(&names_lock);
}

static int is_full(void) {
    if (!control->full) return 0;
    errno = ENOSPC;
    return 1;
}

static int open_any(int directory, const char *path, int flags, mode_t mode) {
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    if (!control || (!writes && !(flags & O_DIRECTORY) && !(flags & O_CREAT))) {
        int fd = syscall(SYS_openat, directory, path, flags, mode);
        /* Directories are opened to be synced, and files too: whoever may read one may sync it. */
        struct stat stat;
        if (control && fd >= 0 && fd < FDS) {
            char full_path[PATH_MAX];
            absolute(directory, path, full_path);
            int known = is_below(full_path) && fstat(fd, &stat) == 0;
            kinds[fd] = !known ? UNKNOWN : S_ISDIR(stat.st_mode) ? DIRECTORY_BELOW : S_ISREG(stat.st_mode) ? FILE_BELOW : UNKNOWN;
        }
        return fd;
    }
    char full_path[PATH_MAX];
    absolute(directory, path, full_path);
    if (!is_below(full_path)) {
        int fd = syscall(SYS_openat, directory, path, flags, mode);
        if (fd >= 0 && fd < FDS) kinds[fd] = UNKNOWN;
        return fd;
    }
    struct stat stat;
    int was_there = syscall(SYS_newfstatat, directory, path, &stat, 0) == 0;
    int creates = !was_there && (flags & O_CREAT);
    if (creates) {
        if (is_full()) return -1;
        pthread_mutex_lock(&names_lock);
    }
    /* Its number is not known yet: whatever has this name then is meant. */
    if (creates && note('c', 0, 0, full_path, "") != 0) {
        pthread_mutex_unlock(&names_lock);
        errno = ENOSPC;
        return -1;
    }
    int cuts = was_there && S_ISREG(stat.st_mode) && (flags & O_TRUNC) && writes;
    /* It is cut below, where what it had can be kept. */
    int fd = syscall(SYS_openat, directory, path, cuts ? flags & ~O_TRUNC : flags, mode);
    if (fd < 0 || fd >= FDS || fstat(fd, &stat) != 0) {
        if (creates) pthread_mutex_unlock(&names_lock);
        return fd;
    }
    if (creates) {
        /* The number may have been another file's. */
        char undo[PATH_MAX + 32];
        undo_path(stat.st_ino, undo);
        syscall(SYS_unlinkat, AT_FDCWD, undo, 0);
        slot_of(stat.st_ino, 1)->synced_bytes = 0;
        pthread_mutex_unlock(&names_lock);
    } else if (S_ISREG(stat.st_mode) && writes && !slot_of(stat.st_ino, 0)) {
        slot_of(stat.st_ino, 1)->synced_bytes = stat.st_size;
    }
    kinds[fd] = S_ISDIR(stat.st_mode) ? DIRECTORY_BELOW : S_ISREG(stat.st_mode) ? FILE_BELOW : UNKNOWN;
    if (cuts && ftruncate(fd, 0) != 0) {
        int error = errno;
        kinds[fd] = UNKNOWN;
        syscall(SYS_close, fd);
        errno = error;
        return -1;
    }
    return fd;
}

#define MODE_OF(flags, mode)                               \
    mode_t mode = 0;                                       \
    if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
        va_list rest;                                      \
        va_start(rest, flags);                             \
        mode = va_arg(rest, mode_t);                       \
        va_end(rest);                                      \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return open_any(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return open_any(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int directory, const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return open_any(directory, path, flags, mode);
}
int openat64(int directory, const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return open_any(directory, path, flags | O_LARGEFILE, mode);
}
int creat(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }

int close(int fd) {
    if (fd >= 0 && fd < FDS) kinds[fd] = UNKNOWN;
    return syscall(SYS_close, fd);
}

/* A second number for the same file. */
static int same_as(int fd, int other) {
    if (other >= 0 && other < FDS) kinds[other] = fd >= 0 && fd < FDS ? kinds[fd] : UNKNOWN;
    return other;
}
int dup(int fd) { return same_as(fd, syscall(SYS_dup, fd)); }
int dup2(int fd, int to) { return fd == to ? syscall(SYS_dup2, fd, to) : same_as(fd, syscall(SYS_dup2, fd, to)); }
int dup3(int fd, int to, int flags) { return same_as(fd, syscall(SYS_dup3, fd, to, flags)); }
static int fcntl_any(int fd, int command, long what) {
    int result = syscall(SYS_fcntl, fd, command, what);
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? same_as(fd, result) : result;
}
#define WHAT_OF(command)            \
    va_list rest;                   \
    va_start(rest, command);        \
    long what = va_arg(rest, long); \
    va_end(rest);
int fcntl(int fd, int command, ...) {
    WHAT_OF(command)
    return fcntl_any(fd, command, what);
}
int fcntl64(int fd, int command, ...) {
    WHAT_OF(command)
    return fcntl_any(fd, command, what);
}

static int is_file(int fd, struct stat *stat) {
    return control && fd >= 0 && fd < FDS && kinds[fd] == FILE_BELOW && fstat(fd, stat) == 0 && S_ISREG(stat->st_mode);
}

/* Before `bytes` are written; -1 for the place is the file's own position. Holds the file's lock where it says yes. */
static int before_write(int fd, off_t at, size_t bytes, pthread_mutex_t **lock) {
    struct stat stat;
    if (!is_file(fd, &stat)) return 0;
    *lock = lock_of(stat.st_ino);
    if (fstat(fd, &stat) != 0) return 0;
    if (at < 0) at = fcntl(fd, F_GETFL) & O_APPEND ? stat.st_size : lseek(fd, 0, SEEK_CUR);
    struct slot *slot = slot_of(stat.st_ino, 1);
    uint64_t from = at, to = from + bytes, synced = slot->synced_bytes;
    int kept = from < synced ? keep(fd, stat.st_ino, from, to < synced ? to : synced) : 0;
    if (kept != 0 || (to > (uint64_t)stat.st_size && is_full())) {
        pthread_mutex_unlock(*lock);
        errno = ENOSPC;
        return -1;
    }
    return 1;
}

#define WRITING(fd, at, bytes, call)                          \
    pthread_mutex_t *lock = NULL;                             \
    int held = before_write(fd, at, bytes, &lock);            \
    if (held < 0) return -1;                                  \
    ssize_t count = call;                                     \
    if (lock) {                                               \
        int error = errno;                                    \
        pthread_mutex_unlock(lock);                           \
        errno = error;                                        \
    }                                                         \
    return count;

static size_t bytes_of(const struct iovec *parts, int count) {
    size_t bytes = 0;
    for (int n = 0; n < count; n++) bytes += parts[n].iov_len;
    return bytes;
}

ssize_t write(int fd, const void *bytes, size_t count_) {
    WRITING(fd, -1, count_, syscall(SYS_write, fd, bytes, count_))
}
ssize_t pwrite(int fd, const void *bytes, size_t count_, off_t at) {
    WRITING(fd, at, count_, syscall(SYS_pwrite64, fd, bytes, count_, at))
}
ssize_t pwrite64(int fd, const void *bytes, size_t count_, off_t at) {
    WRITING(fd, at, count_, syscall(SYS_pwrite64, fd, bytes, count_, at))
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    WRITING(fd, -1, bytes_of(parts, n), syscall(SYS_writev, fd, parts, n))
}
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) {
    WRITING(fd, at, bytes_of(parts, n), syscall(SYS_pwritev, fd, parts, n, at, 0))
}
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off_t at) {
    WRITING(fd, at, bytes_of(parts, n), syscall(SYS_pwritev, fd, parts, n, at, 0))
}

/* Copies by the kernel: whoever asks falls back to reading and writing. */
ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t bytes, unsigned flags) {
    struct stat stat;
    if (is_file(out, &stat)) {
        errno = ENOSYS;
        return -1;
    }
    return syscall(SYS_copy_file_range, in, in_at, out, out_at, bytes, flags);
}
static ssize_t send_any(int out, int in, off_t *at, size_t bytes) {
    struct stat stat;
    if (is_file(out, &stat)) {
        errno = EINVAL;
        return -1;
    }
    return syscall(SYS_sendfile, out, in, at, bytes);
}
ssize_t sendfile(int out, int in, off_t *at, size_t bytes) { return send_any(out, in, at, bytes); }
ssize_t sendfile64(int out, int in, off64_t *at, size_t bytes) { return send_any(out, in, at, bytes); }

static void before_read(int fd) {
    struct stat stat;
    if (control && control->read_delay_us && is_file(fd, &stat)) usleep(control->read_delay_us);
}
ssize_t read(int fd, void *bytes, size_t count) {
    before_read(fd);
    return syscall(SYS_read, fd, bytes, count);
}
ssize_t pread(int fd, void *bytes, size_t count, off_t at) {
    before_read(fd);
    return syscall(SYS_pread64, fd, bytes, count, at);
}
ssize_t pread64(int fd, void *bytes, size_t count, off64_t at) {
    before_read(fd);
    return syscall(SYS_pread64, fd, bytes, count, at);
}
ssize_t readv(int fd, const struct iovec *parts, int n) {
    before_read(fd);
    return syscall(SYS_readv, fd, parts, n);
}
ssize_t preadv(int fd, const struct iovec *parts, int n, off_t at) {
    before_read(fd);
    return syscall(SYS_preadv, fd, parts, n, at, 0);
}
ssize_t preadv64(int fd, const struct iovec *parts, int n, off64_t at) {
    before_read(fd);
    return syscall(SYS_preadv, fd, parts, n, at, 0);
}

int ftruncate(int fd, off_t bytes) {
    struct stat stat;
    if (!is_file(fd, &stat)) return syscall(SYS_ftruncate, fd, bytes);
    pthread_mutex_t *lock = lock_of(stat.st_ino);
    struct slot *slot = slot_of(stat.st_ino, 1);
    int kept = (uint64_t)bytes < slot->synced_bytes ? keep(fd, stat.st_ino, bytes, slot->synced_bytes) : 0;
    int result = kept != 0 ? -1 : (int)syscall(SYS_ftruncate, fd, bytes), error = errno;
    pthread_mutex_unlock(lock);
    errno = error;
    return result;
}
int ftruncate64(int fd, off64_t bytes) { return ftruncate(fd, bytes); }

static int sync_any(int fd, int number) {
    struct stat stat;
    int kind = control && fd >= 0 && fd < FDS ? kinds[fd] : UNKNOWN;
    if (kind == UNKNOWN || fstat(fd, &stat) != 0) return syscall(number, fd);
    control->syncs++;
    if (control->sync_delay_us) usleep(control->sync_delay_us);
    if (control->fail_syncs) {
        errno = EIO;
        return -1;
    }
    if (control->ignore_syncs) return 0;
    if (kind == DIRECTORY_BELOW) {
        names_are_durable();
        return 0;
    }
    pthread_mutex_t *lock = lock_of(stat.st_ino);
    if (fstat(fd, &stat) == 0) {
        char undo[PATH_MAX + 32];
        undo_path(stat.st_ino, undo);
        /* Length first: whoever stops between the two goes back less far than it could. */
        slot_of(stat.st_ino, 1)->synced_bytes = stat.st_size;
        syscall(SYS_unlinkat, AT_FDCWD, undo, 0);
    }
    pthread_mutex_unlock(lock);
    return 0;
}
int fsync(int fd) { return sync_any(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_any(fd, SYS_fdatasync); }

/* Starts writeback and promises nothing. */
int sync_file_range(int fd, off64_t from, off64_t bytes, unsigned flags) {
    struct stat stat;
    if (is_file(fd, &stat)) return 0;
    return syscall(SYS_sync_file_range, fd, from, bytes, flags);
}

static int unlink_any(int directory, const char *path, int flags) {
    char full_path[PATH_MAX];
    if (!control) return syscall(SYS_unlinkat, directory, path, flags);
    absolute(directory, path, full_path);
    struct stat stat;
    if (!is_below(full_path) || lstat(full_path, &stat) != 0) return syscall(SYS_unlinkat, directory, path, flags);
    pthread_mutex_lock(&names_lock);
    int removes = flags & AT_REMOVEDIR;
    int noted = note(removes ? 'd' : 'u', removes ? 0 : save(full_path), stat.st_ino, full_path, "");
    int result = noted != 0 ? -1 : (int)syscall(SYS_unlinkat, directory, path, flags), error = errno;
    pthread_mutex_unlock(&names_lock);
    errno = error;
    return result;
}
int unlink(const char *path) { return unlink_any(AT_FDCWD, path, 0); }
int unlinkat(int directory, const char *path, int flags) { return unlink_any(directory, path, flags); }
int rmdir(const char *path) { return unlink_any(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    struct stat stat;
    return unlink_any(AT_FDCWD, path, lstat(path, &stat) == 0 && S_ISDIR(stat.st_mode) ? AT_REMOVEDIR : 0);
}

static int rename_any(int from_directory, const char *from, int to_directory, const char *to, unsigned flags) {
    char one[PATH_MAX], other[PATH_MAX];
    struct stat stat, replaced;
    if (!control) return syscall(SYS_renameat2, from_directory, from, to_directory, to, flags);
    absolute(from_directory, from, one);
    absolute(to_directory, to, other);
    if ((!is_below(one) && !is_below(other)) || lstat(one, &stat) != 0) {
        return syscall(SYS_renameat2, from_directory, from, to_directory, to, flags);
    }
    pthread_mutex_lock(&names_lock);
    int replaces = lstat(other, &replaced) == 0 && S_ISREG(replaced.st_mode);
    /* 'R': something of that name was there, and is saved. */
    int noted = note(replaces ? 'R' : 'r', replaces ? save(other) : 0, stat.st_ino, one, other);
    int result = noted != 0 ? -1 : (int)syscall(SYS_renameat2, from_directory, from, to_directory, to, flags);
    int error = errno;
    pthread_mutex_unlock(&names_lock);
    errno = error;
    return result;
}
int rename(const char *from, const char *to) { return rename_any(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return rename_any(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    return rename_any(a, from, b, to, flags);
}

static int link_any(int a, const char *from, int b, const char *to, int flags) {
    char other[PATH_MAX];
    struct stat stat;
    if (!control) return syscall(SYS_linkat, a, from, b, to, flags);
    absolute(b, to, other);
    if (!is_below(other)) return syscall(SYS_linkat, a, from, b, to, flags);
    if (is_full()) return -1;
    pthread_mutex_lock(&names_lock);
    int noted = lstat(other, &stat) == 0 ? 0 : note('c', 0, 0, other, "");
    int result = noted != 0 ? -1 : (int)syscall(SYS_linkat, a, from, b, to, flags), error = errno;
    pthread_mutex_unlock(&names_lock);
    errno = error;
    return result;
}
int link(const char *from, const char *to) { return link_any(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return link_any(a, from, b, to, flags); }

static int mkdir_any(int directory, const char *path, mode_t mode) {
    char full_path[PATH_MAX];
    struct stat stat;
    if (!control) return syscall(SYS_mkdirat, directory, path, mode);
    absolute(directory, path, full_path);
    if (!is_below(full_path)) return syscall(SYS_mkdirat, directory, path, mode);
    if (is_full()) return -1;
    pthread_mutex_lock(&names_lock);
    int noted = lstat(full_path, &stat) == 0 ? 0 : note('m', 0, 0, full_path, "");
    int result = noted != 0 ? -1 : (int)syscall(SYS_mkdirat, directory, path, mode), error = errno;
    pthread_mutex_unlock(&names_lock);
    errno = error;
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdir_any(AT_FDCWD, path, mode); }
int mkdirat(int directory, const char *path, mode_t mode) { return mkdir_any(directory, path, mode); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = real_clock_gettime ? real_clock_gettime(clock, now) : (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && control && control->clock_off_ms) {
        int64_t ns = now->tv_nsec + (control->clock_off_ms % 1000) * 1000000;
        now->tv_sec += control->clock_off_ms / 1000 + (ns < 0 ? -1 : ns / 1000000000);
        now->tv_nsec = ns < 0 ? ns + 1000000000 : ns % 1000000000;
    }
    return result;
}
