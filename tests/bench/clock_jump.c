/* Preloaded into lmd and its workers: the wall clock is off by as many seconds as the file $LMD_CLOCK_OFFSET says.
   The monotonic clock goes on as it does when a real clock is set. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t zero;
static volatile int64_t *offset = &zero;

__attribute__((constructor)) static void find(void) {
    const char *path = getenv("LMD_CLOCK_OFFSET");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *page = mmap(0, sizeof zero, PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) offset = page;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec real;
    (void)zone;
    int failed = clock_gettime(CLOCK_REALTIME, &real);
    if (!failed) *now = (struct timeval){real.tv_sec, real.tv_nsec / 1000};
    return failed;
}

time_t time(time_t *store) {
    struct timespec real;
    clock_gettime(CLOCK_REALTIME, &real);
    if (store) *store = real.tv_sec;
    return real.tv_sec;
}
