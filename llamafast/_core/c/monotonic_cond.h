/* Conditions whose waits end after so many seconds, whatever becomes of the wall clock. */
#pragma once

#include <errno.h>
#include <pthread.h>
#include <time.h>

/* Like pthread_cond_init. */
static inline int monotonic_cond_init(pthread_cond_t *cond)
{
#if defined(__APPLE__)
    return pthread_cond_init(cond, NULL);       /* its waits are relative */
#else
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    const int code = pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
    return code;
#endif
}

/* Like pthread_cond_timedwait, for at most so many seconds; ETIMEDOUT for none. */
static inline int monotonic_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, double seconds)
{
    struct timespec t;
    if (!(seconds > 0)) {
        return ETIMEDOUT;
    }
    t.tv_sec = (time_t) seconds;
    t.tv_nsec = (long) ((seconds - (double) t.tv_sec) * 1e9);
#if defined(__APPLE__)
    return pthread_cond_timedwait_relative_np(cond, mutex, &t);
#else
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += t.tv_sec + (until.tv_nsec + t.tv_nsec) / 1000000000;
    until.tv_nsec = (until.tv_nsec + t.tv_nsec) % 1000000000;
    return pthread_cond_timedwait(cond, mutex, &until);
#endif
}
