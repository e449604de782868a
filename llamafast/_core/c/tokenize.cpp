#include "tokenize.h"

#include <llama.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <new>
#include <string>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace {

constexpr size_t MAX_STACK = (size_t) 1 << 30;
constexpr size_t LARGE_STACK = (size_t) 64 << 20;       /* more than this: one at a time */
constexpr size_t FIXED_STACK = (size_t) 512 << 10;      /* whatever does not grow with the text */
constexpr int32_t SHORT = 1024;                         /* bytes that any thread's stack holds */
/* GCC's matcher takes 300 to 400 bytes of stack a character. What was measured gets half of it on top. */
constexpr int32_t LEAST_DEPTH = 512;
constexpr int32_t PROBES[] = {64, 320};                 /* bytes */
constexpr size_t PROBE_STACK = (size_t) 4 << 20;
constexpr int32_t FLAT = 16;                            /* less is noise */

/* A run of each kind that a splitter may take as one: what is repeated. */
const char *const RUNS[] = {
    "a", "A", "aA", "\u00e9", "\u0416", "\u4e2d", "\u3042", "\ud55c", "\u0301", "0", "\u0663", " ", "\n", "\t", " \n",
    "\u3000", "!", "$", "!$", "\u2014", "\u20ac", "a1", "a ", "' ",
};

/* Of the vocabularies that were measured, for texts of which nobody says whose they are. */
std::atomic<int32_t> deepest{LEAST_DEPTH};

thread_local double seconds_apart;
pthread_mutex_t large = PTHREAD_MUTEX_INITIALIZER;

struct call {
    const llama_vocab *vocab;
    const char *text;
    int32_t length;
    int32_t *tokens;
    int32_t capacity;
    bool add_special, parse_special;
    int32_t result;
    double seconds;
};

int32_t tokenize_here(const call &c) noexcept
{
    try {
        return llama_tokenize(c.vocab, c.text, c.length, c.tokens, c.capacity, c.add_special, c.parse_special);
    } catch (const std::bad_alloc &) {
        return TOKENIZE_NO_MEMORY;
    } catch (...) {
        return TOKENIZE_THREW;
    }
}

void *run(void *argument)
{
    call &c = *static_cast<call *>(argument);
    timespec t;
    c.result = tokenize_here(c);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    c.seconds = (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
    return nullptr;
}

/* Memory for a stack below which a page is forbidden. Pages that are never reached cost nothing. */
class Stack {
public:
    explicit Stack(size_t wanted)
    {
        const size_t page = (size_t) sysconf(_SC_PAGESIZE);
        size = (wanted + page - 1) / page * page + page;
        void *memory = mmap(
            nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
        if (memory != MAP_FAILED) {
            low = static_cast<char *>(memory);
            guard = mprotect(low, page, PROT_NONE) == 0 ? page : 0;
        }
    }
    Stack(const Stack &) = delete;
    ~Stack()
    {
        if (low != nullptr) {
            munmap(low, size);
        }
    }

    /* Whether `c` was run, on this stack. */
    bool run_on(call &c)
    {
        pthread_attr_t attributes;
        pthread_t thread;
        if (low == nullptr || pthread_attr_init(&attributes) != 0) {
            return false;
        }
        const bool started = pthread_attr_setstack(&attributes, low + guard, size - guard) == 0
            && pthread_create(&thread, &attributes, run, &c) == 0;
        pthread_attr_destroy(&attributes);
        return started && pthread_join(thread, nullptr) == 0;
    }

    /* How many bytes of it have been used. */
    size_t depth() const
    {
        const uint64_t *at = reinterpret_cast<const uint64_t *>(low + guard);
        const uint64_t *const end = reinterpret_cast<const uint64_t *>(low + size);
        while (at < end && *at == 0) {
            at++;
        }
        return (size_t) (end - at) * sizeof *at;
    }

private:
    char *low = nullptr;
    size_t size = 0, guard = 0;
};

size_t stack_for(int32_t length, int32_t depth)
{
    /* what does not grow may still be that noise */
    return FIXED_STACK + (size_t) length * (size_t) (depth == 0 ? FLAT : std::max(depth, LEAST_DEPTH));
}

} /* namespace */

int32_t tokenize_depth(const llama_vocab *vocab)
{
    size_t used[2] = {0, 0};
    for (int probe = 0; probe < 2; probe++) {
        Stack stack(PROBE_STACK);
        for (const char *unit : RUNS) {
            std::string text;
            int32_t tokens[PROBES[1] + 8];
            while (text.size() + strlen(unit) <= (size_t) PROBES[probe]) {
                text += unit;
            }
            call c = {vocab, text.data(), (int32_t) text.size(), tokens, PROBES[1] + 8, false, false, 0, 0};
            if (!stack.run_on(c)) {
                return -1;
            }
        }
        used[probe] = stack.depth();
    }
    const size_t grown = used[1] > used[0] ? used[1] - used[0] : 0;
    const int32_t depth = (int32_t) (grown / (size_t) (PROBES[1] - PROBES[0]));
    if (depth < FLAT) {
        return 0;
    }
    const int32_t needed = std::max(LEAST_DEPTH, depth + depth / 2);
    for (int32_t known = deepest; known < needed && !deepest.compare_exchange_weak(known, needed);) {
    }
    return needed;
}

int32_t tokenize_limit(int32_t depth)
{
    return depth == 0 ? 0x7FFFFFF0 : (int32_t) (MAX_STACK / (size_t) depth);
}

int32_t tokenize_apart(
    const llama_vocab *vocab, const char *text, int32_t length, int32_t *tokens, int32_t capacity, bool add_special,
    bool parse_special, int32_t depth)
{
    call c = {vocab, text, length, tokens, capacity, add_special, parse_special, TOKENIZE_NO_MEMORY, 0};
    if (length <= SHORT) {
        return tokenize_here(c);
    }
    const size_t size = std::min(stack_for(length, depth), FIXED_STACK + MAX_STACK);
    const bool alone = depth != 0 && size > LARGE_STACK;
    if (alone) {
        pthread_mutex_lock(&large);
    }
    {
        Stack stack(size);
        if (stack.run_on(c)) {
            seconds_apart += c.seconds;
        }
    }
    if (alone) {
        pthread_mutex_unlock(&large);
    }
    return c.result;
}

int32_t tokenize_all(
    const llama_vocab *vocab, const char *text, int32_t length, int32_t *tokens, int32_t capacity, bool add_special,
    bool parse_special)
{
    int32_t n = 0;
    const int32_t depth = deepest;
    for (int32_t start = 0, end; start < length; start = end) {
        end = start + std::min(length - start, tokenize_limit(depth));
        for (int32_t back = 0; end < length && back < 3 && ((unsigned char) text[end] & 0xC0) == 0x80; back++) {
            end--;
        }
        const int32_t left = std::max(0, capacity - n);
        const int32_t more = tokenize_apart(
            vocab, text + start, end - start, tokens + (capacity - left), left, add_special, parse_special, depth);
        if (more > TOKENIZE_THREW) {
            n += more < 0 ? -more : more;
        }
    }
    return n > capacity ? -n : n;
}

double tokenize_seconds(void)
{
    return seconds_apart;
}
