/* Patterns of tensors' names, read as llama.cpp reads those of its overrides: std::regex, found anywhere in a name. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Which of `n` names have the pattern in them. False, with the reason in `fault`, where it is none or nobody can tell;
 * no exception leaves. */
bool patterns_search(
    const char *pattern, const char *const *names, size_t n, bool *found, char *fault, size_t fault_size);

#ifdef __cplusplus
}
#endif
