/* Moves the time of day of any process, a JVM too, by what 8 bytes of a file say: LD_PRELOAD this.

   WEIR_CLOCK_SHIFT names the file (see shifted_clock.py): nanoseconds, a little-endian int64, which may change at
   any time. Other clocks, so all durations and time-outs, go on undisturbed, as they do when a clock is set. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL

static volatile const int64_t *shift_ns;

__attribute__((constructor)) static void open_file(void) {
    const char *name = getenv("WEIR_CLOCK_SHIFT");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof *shift_ns, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) shift_ns = mapped;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *found) {
    /* Not the C library's own: that is what this replaces. */
    long failed = syscall(SYS_clock_gettime, clock, found);
    if (!failed && shift_ns && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = found->tv_sec * NS + found->tv_nsec + *shift_ns;
        found->tv_sec = ns / NS;
        found->tv_nsec = ns % NS;
    }
    return (int)failed;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *found) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return (time_t)-1;
    if (found) *found = now.tv_sec;
    return now.tv_sec;
}
