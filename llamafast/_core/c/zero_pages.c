#define _DEFAULT_SOURCE
#include "zero_pages.h"

#if defined(__linux__)
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SPAN = 1 << 16 };                        /* bytes looked at together: a multiple of any page's */

static bool is_zero(const char *span)
{
    return span[0] == 0 && memcmp(span, span + 1, SPAN - 1) == 0;
}

int64_t zero_pages_release(void *base, size_t size)
{
    const uintptr_t begin = ((uintptr_t) base + SPAN - 1) / SPAN * SPAN, end = ((uintptr_t) base + size) / SPAN * SPAN;
    int64_t released = 0;
    if (SPAN % sysconf(_SC_PAGESIZE) != 0) {
        return 0;
    }
    for (uintptr_t at = begin; at < end;) {
        uintptr_t stop = at;
        while (stop < end && is_zero((const char *) stop)) {
            stop += SPAN;
        }
        if (stop > at && madvise((void *) at, stop - at, MADV_DONTNEED) == 0) {
            released += (int64_t) (stop - at);
        }
        at = stop + SPAN;
    }
    return released;
}
#else
int64_t zero_pages_release(void *base, size_t size)
{
    (void) base;
    (void) size;
    return 0;
}
#endif
