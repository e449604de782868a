/* The kernels, in the notation of simd/level.h. That comparisons with NaN are false keeps NaN out everywhere. */

/* From 2^t to LOGITS_BOUND times it, for -124 <= t <= 0: between two powers of 2 it is a straight line, which is what the
 * bits of a float are as an integer (Schraudolph: A fast, compact approximation of the exponential function. Neural
 * Computation 11, 1999). 0 far below and for NaN. The argument is relative to `max` and not yet scaled. */
TARGET static inline vf K(bound_exp)(vf x, vf max, vf scale)
{
    return vbits(vfma(vsub(x, max), scale, vset(BOUND_OF_1)));
}

TARGET static inline float K(whole_block_max)(const float *x)
{
    vf a = vset(-INFINITY), b = a, c = a, d = a;
    for (int i = 0; i < LOGITS_BLOCK; i += 4 * VL) {
        a = vmax(vload(x + i), a);
        b = vmax(vload(x + i + VL), b);
        c = vmax(vload(x + i + 2 * VL), c);
        d = vmax(vload(x + i + 3 * VL), d);
    }
    return vhmax(vmax(vmax(a, b), vmax(c, d)));
}

TARGET static void K(max)(const float *x, int32_t n, float *block_max)
{
    float tail[LOGITS_BLOCK];
    for (int32_t at = 0; at < n; at += LOGITS_BLOCK) {
        *block_max++ = K(whole_block_max)(whole_block(x, n, at, tail));
    }
}

/* Every block relative to its own maximum, so that one pass over memory is enough. */
TARGET static void K(sum_exp)(const float *x, int32_t n, float scale, float *block_max, float *block_sum)
{
    float tail[LOGITS_BLOCK];
    const vf s = vset(scale * LOG2_E);
    for (int32_t at = 0; at < n; at += LOGITS_BLOCK) {
        const float *block = whole_block(x, n, at, tail);
        const float max = K(whole_block_max)(block);
        const vf m = vset(max);
        vf a = vset(0), b = a;
        for (int i = 0; i < LOGITS_BLOCK; i += 2 * VL) {
            a = vadd(a, K(exp2)(vmul(vsub(vload(block + i), m), s)));
            b = vadd(b, K(exp2)(vmul(vsub(vload(block + i + VL), m), s)));
        }
        *block_max++ = max;
        *block_sum++ = vhsum(vadd(a, b));
    }
}

/* The same for bounds of the sums, at a third of the cost. */
TARGET static void K(bound_sum_exp)(const float *x, int32_t n, float scale, float *block_max, float *block_bound)
{
    float tail[LOGITS_BLOCK];
    const vf s = vset(scale * BITS_OF_E);
    for (int32_t at = 0; at < n; at += LOGITS_BLOCK) {
        const float *block = whole_block(x, n, at, tail);
        const float max = K(whole_block_max)(block);
        const vf m = vset(max);
        vf a = vset(0), b = a, c = a, d = a;
        for (int i = 0; i < LOGITS_BLOCK; i += 4 * VL) {
            a = vadd(a, K(bound_exp)(vload(block + i), m, s));
            b = vadd(b, K(bound_exp)(vload(block + i + VL), m, s));
            c = vadd(c, K(bound_exp)(vload(block + i + 2 * VL), m, s));
            d = vadd(d, K(bound_exp)(vload(block + i + 3 * VL), m, s));
        }
        *block_max++ = max;
        *block_bound++ = vhsum(vadd(vadd(a, b), vadd(c, d)));
    }
}

TARGET static double K(weights)(const float *x, int32_t n, float max, float scale, float *weight)
{
    float tail[LOGITS_BLOCK];
    double total = 0;
    const vf m = vset(max), s = vset(scale * LOG2_E);
    for (int32_t at = 0; at < n; at += LOGITS_BLOCK) {
        const float *block = whole_block(x, n, at, tail);
        const int length = n - at < LOGITS_BLOCK ? n - at : LOGITS_BLOCK;
        vf sum = vset(0);
        for (int i = 0; i < length; i += VL) {
            vf w = K(exp2)(vmul(vsub(vload(block + i), m), s));
            vstore(weight + at + i, w);
            sum = vadd(sum, w);
        }
        total += vhsum(sum);
    }
    return total;
}

/* Sum of exp(x[i] - max) over the entries <= limit of at most one block. */
TARGET static float K(weight_upto)(const float *x, int32_t n, float limit, float max)
{
    float tail[LOGITS_BLOCK];
    const vf m = vset(max), s = vset(LOG2_E), l = vset(limit);
    const float *block = whole_block(x, n, 0, tail);
    vf sum = vset(0);
    for (int i = 0; i < LOGITS_BLOCK; i += VL) {
        vf v = vload(block + i);
        sum = vadd(sum, vand(vge(l, v), K(exp2)(vmul(vsub(v, m), s))));
    }
    return vhsum(sum);
}

TARGET static float K(bound_upto)(const float *x, int32_t n, float limit, float max)
{
    float tail[LOGITS_BLOCK];
    const vf m = vset(max), s = vset(BITS_OF_E), l = vset(limit);
    const float *block = whole_block(x, n, 0, tail);
    vf a = vset(0), b = a;
    for (int i = 0; i < LOGITS_BLOCK; i += 2 * VL) {
        vf v = vload(block + i), w = vload(block + i + VL);
        a = vadd(a, vand(vge(l, v), K(bound_exp)(v, m, s)));
        b = vadd(b, vand(vge(l, w), K(bound_exp)(w, m, s)));
    }
    return vhsum(vadd(a, b));
}

TARGET static int32_t K(gather)(
    const float *x, int32_t n, const float *block_max, float threshold, float *value, int32_t *index)
{
    float tail[LOGITS_BLOCK];
    const vf t = vset(threshold);
    int32_t kept = 0;
    for (int32_t at = 0; at < n; at += LOGITS_BLOCK) {
        if (!(*block_max++ >= threshold)) {
            continue;
        }
        const float *block = whole_block(x, n, at, tail);
        for (int i = 0; i < LOGITS_BLOCK; i += VL) {
            vf v = vload(block + i);
            vm m = vge(v, t);
            vpack_index(index + kept, m, at + i);
            kept += vpack(value + kept, m, v);
        }
    }
    return kept;
}

TARGET static int32_t K(compact)(const float *key, int32_t n, float threshold, float *value, int32_t *index)
{
    const vf t = vset(threshold);
    int32_t kept = 0, i = 0;
    for (; i + VL <= n; i += VL) {
        vm m = vge(vload(key + i), t);
        vf v = vload(value + i);
        vpack(((float *) index) + kept, m, vload((const float *) index + i));
        kept += vpack(value + kept, m, v);
    }
    for (; i < n; i++) {
        if (key[i] >= threshold) {
            value[kept] = value[i];
            index[kept++] = index[i];
        }
    }
    return kept;
}

/* What the entries > pivot weigh together. */
TARGET static double K(above)(const float *x, int32_t n, float pivot, bool by_value)
{
    enum { CHUNK = 1024 }; /* a lane adds few enough floats to lose nothing */
    const vf p = vset(pivot), one = vset(1);
    double total = 0;
    int32_t i = 0;
    while (i + VL <= n) {
        const int32_t end = n - i < CHUNK ? n : i + CHUNK;
        vf sum = vset(0);
        for (; i + VL <= end; i += VL) {
            vf v = vload(x + i);
            sum = vadd(sum, vand(vgt(v, p), by_value ? v : one));
        }
        total += vhsum(sum);
    }
    for (; i < n; i++) {
        total += x[i] > pivot ? (by_value ? x[i] : 1) : 0;
    }
    return total;
}

/* Copy the entries on one side of the pivot; to == x will do. */
TARGET static int32_t K(narrow)(const float *x, int32_t n, float pivot, bool upper, float *to)
{
    const vf p = vset(pivot);
    int32_t kept = 0, i = 0;
    for (; i + VL <= n; i += VL) {
        vf v = vload(x + i);
        kept += vpack(to + kept, upper ? vgt(v, p) : vge(p, v), v);
    }
    for (; i < n; i++) {
        if (upper ? x[i] > pivot : x[i] <= pivot) {
            to[kept++] = x[i];
        }
    }
    return kept;
}

/* Of whole words of 32 bits. */
TARGET static void K(mask)(float *x, int32_t n_words, const uint32_t *allowed)
{
    const vf out = vset(-INFINITY);
    for (int32_t word = 0; word < n_words; word++, x += 32) {
        const uint32_t bits = allowed[word];
        if (bits == 0) {
            for (int i = 0; i < 32; i += VL) {
                vstore(x + i, out);
            }
        } else if (bits != UINT32_MAX) {
            for (int i = 0; i < 32; i += VL) {
                vstore(x + i, vselect(vlanes(bits >> i), vload(x + i), out));
            }
        }
    }
}

static const struct kernels K(kernels) = {
    K(max), K(sum_exp), K(bound_sum_exp), K(weights), K(weight_upto), K(bound_upto), K(gather), K(compact), K(above),
    K(narrow), K(mask),
};
