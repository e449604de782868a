#include "patterns.h"

#include <string.h>

#include <exception>
#include <regex>

bool patterns_search(
    const char *pattern, const char *const *names, size_t n, bool *found, char *fault, size_t fault_size)
{
    try {
        const std::regex compiled(pattern);
        for (size_t i = 0; i < n; i++) {
            found[i] = std::regex_search(names[i], compiled);
        }
        return true;
    } catch (const std::exception &error) {
        strncpy(fault, error.what(), fault_size - 1);
        fault[fault_size - 1] = 0;
        return false;
    }
}
