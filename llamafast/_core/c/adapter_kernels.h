/* Rows of an adapter's weights times a row of floats, in the notation of simd/level.h. */

/* Four sums go on side by side; which columns meet in which is the same for all rows and lengths. */
TARGET static float K(dot)(enum ggml_type type, const void *weights, const float *x, int64_t n)
{
    const float *floats = weights;
    const uint16_t *halves = weights;
    vf sum[4] = {vset(0), vset(0), vset(0), vset(0)};
    int64_t k = 0;
    for (int i = 0; k + VL <= n; k += VL, i = (i + 1) % 4) {
        const vf w = type == GGML_TYPE_F32 ? vload(floats + k) : vhalf(halves + k);
        sum[i] = vfma(w, vload(x + k), sum[i]);
    }
    float result = vhsum(vadd(vadd(sum[0], sum[1]), vadd(sum[2], sum[3])));
    for (; k < n; k++) {
        result += (type == GGML_TYPE_F32 ? floats[k] : ggml_fp16_to_fp32(halves[k])) * x[k];
    }
    return result;
}
