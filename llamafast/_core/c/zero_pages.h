/* Memory that holds nothing but zeros is given back to the system, which gives zeros again when it is touched. */
#ifndef LLAMAFAST_ZERO_PAGES_H
#define LLAMAFAST_ZERO_PAGES_H

#include <stddef.h>
#include <stdint.h>

/* Give back what is zero of `size` bytes at `base`, which is private memory of this process that nobody writes to
 * meanwhile: how many bytes. Nothing where the system has no such call. */
int64_t zero_pages_release(void *base, size_t size);

#endif
