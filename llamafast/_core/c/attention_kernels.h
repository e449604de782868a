/* Attention of a few queries to a block of cells, in the notation of simd/level.h. TILE queries at most are taken
 * together; that their number is a constant wherever these functions are inlined keeps sums in registers. */

#define INLINE static inline __attribute__((always_inline))

/* score[i][c] = the product of query i with key c, for four keys. */
TARGET INLINE void K(multiply_keys)(
    int n_queries, const float *const *query, const ggml_fp16_t *const *key, int64_t size, float *score)
{
    vf sum[TILE][4];
    for (int i = 0; i < n_queries; i++) {
        sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = vset(0);
    }
    for (int64_t d = 0; d < size; d += VL) {
        const vf a = vhalf(key[0] + d), b = vhalf(key[1] + d), c = vhalf(key[2] + d), e = vhalf(key[3] + d);
        for (int i = 0; i < n_queries; i++) {
            const vf q = vload(query[i] + d);
            sum[i][0] = vfma(q, a, sum[i][0]);
            sum[i][1] = vfma(q, b, sum[i][1]);
            sum[i][2] = vfma(q, c, sum[i][2]);
            sum[i][3] = vfma(q, e, sum[i][3]);
        }
    }
    for (int i = 0; i < n_queries; i++) {
        vsum4(score + i * BLOCK, sum[i]);
    }
}

/* Products become weights 2^(score - max); returns what everything before has to be multiplied by. The rest of the last
 * vector is no product. One that is not finite makes the total NaN, as it gets no weight itself. */
TARGET static inline float K(weigh)(float *score, const float *bias, int n, float scale, float *max, float *total)
{
    vf top = vset(-INFINITY), sum = vset(0), zero = vset(0);
    for (int c = n; c % VL != 0; c++) {
        score[c] = score[n - 1];
    }
    for (int c = 0; c < n; c += VL) {
        vf s = vmul(vload(score + c), vset(scale));
        zero = vfma(s, vset(0), zero);
        if (bias != NULL) {
            s = vadd(s, vload(bias + c));
        }
        vstore(score + c, s);
        top = vmax(s, top);
    }
    for (int c = n; c % VL != 0; c++) {
        score[c] = -INFINITY;
    }
    const float before = *max, now = fmaxf(before, vhmax(top));
    *total += vhsum(zero);
    if (now == -INFINITY) {
        memset(score, 0, (size_t) n * sizeof *score);
        return 1;
    }
    for (int c = 0; c < n; c += VL) {
        const vf weight = K(exp2)(vsub(vload(score + c), vset(now)));
        vstore(score + c, weight);
        sum = vadd(sum, weight);
    }
    const float rescale = exp2f(before - now);
    *max = now;
    *total = *total * rescale + vhsum(sum);
    return rescale;
}

/* mixed[i] = mixed[i] * rescale[i] + the weighted sum of the values, for `width` vectors from dimension d on. */
TARGET INLINE void K(mix_values)(
    int n_queries, int width, const float *weight, const float *rescale, const ggml_fp16_t *const *value, int n, int64_t d,
    float *mixed, int64_t size)
{
    vf sum[TILE][WIDTH];
    for (int i = 0; i < n_queries; i++) {
        for (int j = 0; j < width; j++) {
            sum[i][j] = vmul(vload(mixed + i * size + d + j * VL), vset(rescale[i]));
        }
    }
    for (int c = 0; c < n; c++) {
        vf v[WIDTH];
        for (int j = 0; j < width; j++) {
            v[j] = vhalf(value[c] + d + j * VL);
        }
        for (int i = 0; i < n_queries; i++) {
            const vf w = vset(weight[i * BLOCK + c]);
            for (int j = 0; j < width; j++) {
                sum[i][j] = vfma(w, v[j], sum[i][j]);
            }
        }
    }
    for (int i = 0; i < n_queries; i++) {
        for (int j = 0; j < width; j++) {
            vstore(mixed + i * size + d + j * VL, sum[i][j]);
        }
    }
}

TARGET INLINE void K(tile)(int n_queries, int first, const struct block *block, struct queries *queries)
{
    float score[TILE * BLOCK], rescale[TILE];
    float *mixed = queries->mixed + first * block->value_size;
    int64_t d = 0;
    for (int c = 0; c < block->n; c += 4) {
        K(multiply_keys)(n_queries, queries->query + first, block->key + c, block->key_size, score + c);
    }
    for (int i = 0; i < n_queries; i++) {
        const float *bias = block->biased ? block->bias[(first + i) / queries->n_heads] : NULL;
        rescale[i] = K(weigh)(
            score + i * BLOCK, bias, block->n, block->scale, &queries->max[first + i], &queries->total[first + i]);
    }
    for (; d + WIDTH * VL <= block->value_size; d += WIDTH * VL) {
        K(mix_values)(n_queries, WIDTH, score, rescale, block->value, block->n, d, mixed, block->value_size);
    }
    for (; d < block->value_size; d += VL) {
        K(mix_values)(n_queries, 1, score, rescale, block->value, block->n, d, mixed, block->value_size);
    }
}

TARGET static void K(attend)(const struct block *block, struct queries *queries)
{
    int first = 0;
    for (; first + TILE <= queries->n; first += TILE) {
        K(tile)(TILE, first, block, queries);
    }
    switch (queries->n - first) {
    case 1:
        K(tile)(1, first, block, queries);
        break;
#if TILE > 2
    case 2:
        K(tile)(2, first, block, queries);
        break;
    case 3:
        K(tile)(3, first, block, queries);
        break;
#endif
    }
}

#undef INLINE
