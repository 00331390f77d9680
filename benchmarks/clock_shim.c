/* The wall clock of a process, moved by the seconds that the file CLOCK_OFFSET_FILE holds (a 64-bit
 * integer that may change at any time). Preloaded; monotonic clocks are left alone, as they are
 * where somebody sets the clock of a machine. Absolute deadlines that are given to the kernel are
 * moved back, which nobody need do where the kernel's clock itself moves; one of a monotonic clock
 * is known by being small. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define REAL(name, ...) ((__typeof__(&name))find(#name, __VA_ARGS__))
#define FIRST_WALL_SECOND 1000000000 /* more than any machine has been up */

static volatile int64_t *offset;

__attribute__((constructor)) static void map_offset(void) {
  const char *path = getenv("CLOCK_OFFSET_FILE");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *found = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
  if (found != MAP_FAILED) offset = found;
  close(file);
}

static int64_t moved(void) { return offset ? *offset : 0; }

static void *find(const char *name, const char *version) {
  void *found = version ? dlvsym(RTLD_NEXT, name, version) : 0;
  return found ? found : dlsym(RTLD_NEXT, name);
}

static struct timespec at_kernel(const struct timespec *deadline) {
  struct timespec real = *deadline;
  if (real.tv_sec > FIRST_WALL_SECOND) real.tv_sec -= moved();
  return real;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static __typeof__(&clock_gettime) real;
  if (!real) real = REAL(clock_gettime, 0);
  int failed = real(clock, now);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += moved();
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec exact;
  int failed = clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec, now->tv_usec = exact.tv_nsec / 1000;
  return failed;
}

time_t time(time_t *kept) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (kept) *kept = now.tv_sec;
  return now.tv_sec;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict deadline) {
  struct timespec real = at_kernel(deadline);
  return REAL(sem_timedwait, 0)(semaphore, &real);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex,
                            const struct timespec *restrict deadline) {
  struct timespec real = at_kernel(deadline);
  return REAL(pthread_mutex_timedlock, 0)(mutex, &real);
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict deadline) {
  struct timespec real = at_kernel(deadline);
  /* x86-64 has an older one, too, which a plain dlsym may find. */
  return REAL(pthread_cond_timedwait, "GLIBC_2.3.2")(condition, mutex, &real);
}
