/* Tokenising that costs the caller's stack nothing and lets no C++ exception out.
 *
 * Where llama.cpp has no splitter of its own for a pre-tokenizer it uses std::regex, and libstdc++'s matcher calls itself
 * once a character: a long run of letters overflows the stack of any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct llama_vocab;

enum {
    TOKENIZE_NO_MEMORY = INT32_MIN + 1,
    TOKENIZE_THREW = INT32_MIN + 2,             /* the vocabulary has no token for some of the text */
};

/* How many bytes of stack one more byte of a run takes at most, over runs of many kinds and with something to spare; 0
 * where the splitter does not call itself. Negative: no memory to find out. */
int32_t tokenize_depth(const struct llama_vocab *vocab);

/* The most bytes of text that tokenize_apart may be given for a vocabulary of this depth. */
int32_t tokenize_limit(int32_t depth);

/* llama_tokenize, for long texts on a thread whose stack holds them; or one of the codes above. Of vocabularies whose
 * splitter calls itself one large text is tokenised at a time, so that there is one large stack. */
int32_t tokenize_apart(
    const struct llama_vocab *vocab, const char *text, int32_t length, int32_t *tokens, int32_t capacity,
    bool add_special, bool parse_special, int32_t depth);

/* In place of llama_tokenize where nobody looks for an error: text beyond the limit is tokenised in pieces, and what
 * cannot be tokenised gives no tokens. */
int32_t tokenize_all(
    const struct llama_vocab *vocab, const char *text, int32_t length, int32_t *tokens, int32_t capacity,
    bool add_special, bool parse_special);

/* CPU seconds that threads have spent for this one. */
double tokenize_seconds(void);

#ifdef __cplusplus
}
#endif
