#ifndef LLAMAFAST_XXH3_H
#define LLAMAFAST_XXH3_H

#include <stdint.h>

/* XXH3-64 of 72 bytes, seed 0: the case "17 to 128 bytes" of the published specification, of which 72 bytes take three
   rounds. */

enum { XXH3_WORDS = 9 };

static inline uint64_t xxh3_fold(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128) a * b;
    return (uint64_t) product ^ (uint64_t) (product >> 64);
}

/* ``words`` are the 72 bytes read as nine little-endian numbers, so that a digest is the same on every machine. */
static inline uint64_t xxh3_72_bytes(const uint64_t words[XXH3_WORDS]) {
    /* the first 96 bytes of the specification's default secret, read likewise */
    static const uint64_t secret[12] = {
        0xBE4BA423396CFEB8u, 0x1CAD21F72C81017Cu, 0xDB979083E96DD4DEu, 0x1F67B3B7A4A44072u,
        0x78E5C0CC4EE679CBu, 0x2172FFCC7DD05A82u, 0x8E2443F7744608B8u, 0x4C263A81E69035E0u,
        0xCB00C391BB52283Cu, 0xA32E531B8B65D088u, 0x4EF90DA297486471u, 0xD8ACDEA946EF1938u,
    };
    uint64_t hash = XXH3_WORDS * 8 * 0x9E3779B185EBCA87u;
    /* round k takes 16 bytes at 16 k from the front and as many from the end, the innermost first */
    for (int k = 2; k >= 0; k--) {
        const uint64_t *front = words + 2 * k, *back = words + XXH3_WORDS - 2 - 2 * k, *with = secret + 4 * k;
        hash += xxh3_fold(front[0] ^ with[0], front[1] ^ with[1]);
        hash += xxh3_fold(back[0] ^ with[2], back[1] ^ with[3]);
    }
    hash = (hash ^ hash >> 37) * 0x165667919E3779F9u;
    return hash ^ hash >> 32;
}

#endif
