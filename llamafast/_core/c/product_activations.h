/* Rows of floats → what products multiply, in the notation of simd/level.h. The numbers are those of ggml's
 * quantize_row_* on x86, so that products differ from ggml's in the order of their sums only. A row with a number that is
 * not finite gets a scale that is NaN. */

/* 127 / x for the largest magnitude, but 0 for 0. */
#define INVERSE(x) ((x) != 0 ? 127 / (x) : 0)

/* n floats times `inverse`, as integers; returns their sum. */
TARGET static inline int32_t K(quantise)(const float *x, int n, float inverse, int8_t *to)
{
    vi sum = vi_set(0);
    for (int i = 0; i < n; i += VL) {
        const vi v = vi_round(vmul(vload(x + i), vset(inverse)));
        vi_pack(to + i, v);
        sum = vi_add(sum, v);
    }
    return vi_sum(sum);
}

/* The largest magnitude of n floats; *zero is no longer zero where one of them is not finite. */
TARGET static inline float K(largest)(const float *x, int n, vf *zero)
{
    vf most = vset(0);
    for (int i = 0; i < n; i += VL) {
        const vf v = vload(x + i);
        most = vmax(v, vmax(vsub(vset(0), v), most));
        *zero = vfma(v, vset(0), *zero);
    }
    return vhmax(most);
}

TARGET static void K(quantise_32_sums)(const float *x, int64_t n, void *to)
{
    struct chunk_sums *chunk = to;
    vf zero = vset(0);
    for (int64_t at = 0; at < n; at += 32) {
        const int block = (int) (at / 32 % 8);
        const float most = K(largest)(x + at, 32, &zero), scale = most / 127;
        const int32_t sum = K(quantise)(x + at, 32, INVERSE(most), chunk->value + 32 * block);
        chunk->scale[block] = vhalf_of(scale);
        chunk->sum[block] = vhalf_of(scale * (float) sum);
        chunk += block == 7;
    }
    ((struct chunk_sums *) to)->scale[0] += vhsum(zero);
}

TARGET static void K(quantise_32)(const float *x, int64_t n, void *to)
{
    struct chunk_offsets *chunk = to;
    vf zero = vset(0);
    for (int64_t at = 0; at < n; at += 32) {
        const int block = (int) (at / 32 % 8);
        const float most = K(largest)(x + at, 32, &zero), inverse = INVERSE(most);
        int8_t *value = chunk->value + 32 * block;
        const int32_t first = K(quantise)(x + at, 16, inverse, value);
        const int32_t second = K(quantise)(x + at + 16, 16, inverse, value + 16), sum = first + second;
        chunk->scale[block] = vhalf_of(most / 127);
        chunk->start_half[2 * block] = -16 * first;
        chunk->start_half[2 * block + 1] = -16 * second;
        chunk->start[OFFSET_8][block] = -8 * sum;
        chunk->start[OFFSET_16][block] = -16 * sum;
        chunk->start[OFFSET_WIDE][block] = -WIDE_OFFSET * sum;
        chunk += block == 7;
    }
    ((struct chunk_offsets *) to)->scale[0] += vhsum(zero);
}

TARGET static void K(quantise_256)(const float *x, int64_t n, void *to)
{
    struct chunk_k *chunk = to;
    vf zero = vset(0);
    for (int64_t at = 0; at < n; at += 256, chunk++) {
        float most = K(largest)(x + at, 256, &zero);
        for (int i = 0; i < 256; i++) {
            if (fabsf(x[at + i]) == most) {
                /* the first one's sign */
                most = x[at + i];
                break;
            }
        }
        const float inverse = most != 0 ? -127 / most : 0;
        chunk->scale = most != 0 ? 1 / inverse : 0;
        for (int block = 0; block < 16; block++) {
            const int32_t sum = K(quantise)(x + at + 16 * block, 16, inverse, chunk->value + 16 * block);
            chunk->sum[block] = (int16_t) sum;
            chunk->start[block] = -32 * sum;
        }
        chunk->start_wide_all = 0;
        for (int block = 0; block < 8; block++) {
            chunk->pair_sum[block] = (int16_t) (chunk->sum[2 * block] + chunk->sum[2 * block + 1]);
            chunk->start_wide[block] = -WIDE_OFFSET * chunk->pair_sum[block];
            chunk->start_wide_all += chunk->start_wide[block];
        }
    }
    ((struct chunk_k *) to)->scale += vhsum(zero);
}

#undef INVERSE
