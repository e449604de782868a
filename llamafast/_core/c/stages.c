#include "stages.h"

#include <math.h>
#include <string.h>

static int32_t keep(float *logit, int32_t *id, int32_t n, const float *key, float from, float to)
{
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i++) {
        if (key[i] >= from && key[i] <= to) {
            logit[kept] = logit[i];
            id[kept++] = id[i];
        }
    }
    return kept;
}

int32_t stage_top_n_sigma(float *logit, int32_t *id, int32_t n, float sigmas)
{
    double sum = 0, squares = 0;
    float largest = -INFINITY;
    for (int32_t i = 0; i < n; i++) {
        sum += logit[i];
        largest = logit[i] > largest ? logit[i] : largest;
    }
    const double mean = sum / n;
    for (int32_t i = 0; i < n; i++) {
        squares += (logit[i] - mean) * (logit[i] - mean);
    }
    return keep(logit, id, n, logit, (float) (largest - sigmas * sqrt(squares / n)), INFINITY);
}

/* The smallest score such that the entries up to it weigh more than `target`: a radix search, ten bits a pass, as scores
 * are not negative and floats that are not are ordered like their bits. */
static float quantile(const float *score, const float *weight, int32_t n, double target)
{
    enum { DIGITS = 1 << 11 };
    uint32_t found = 0;
    float value;
    for (int shift = 20; shift >= 0; shift -= 10) {
        const int above = shift + (shift == 20 ? 11 : 10);
        const uint32_t digits = shift == 20 ? DIGITS : DIGITS / 2;
        double mass[DIGITS] = {0};
        uint32_t digit = 0, last = 0;
        for (int32_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, score + i, sizeof bits);
            if (bits >> above == found) {
                mass[bits >> shift & (digits - 1)] += weight[i];
            }
        }
        for (; digit < digits; digit++) {
            if (mass[digit] > target) {
                break;
            }
            last = mass[digit] > 0 ? digit : last;
            target -= mass[digit];
        }
        if (digit == digits) { /* all of it weighs less, by rounding */
            digit = last;
            target = INFINITY;
        }
        found = found << (shift == 20 ? 11 : 10) | digit;
    }
    memcpy(&value, &found, sizeof value);
    return value;
}

/* In nats; the mean of ln(total) + largest - logit. */
static double entropy(const float *logit, int32_t n, float largest, const float *weight, double total)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += weight[i] * ((double) largest - logit[i]);
    }
    return log(total) + sum / total;
}

int32_t stage_typical_p(
    float *logit, int32_t *id, int32_t n, float p, float largest, const float *weight, double total, float *score)
{
    const double expected = entropy(logit, n, largest, weight, total) - log(total) - largest;
    for (int32_t i = 0; i < n; i++) {
        score[i] = (float) fabs(-(double) logit[i] - expected);
    }
    return keep(logit, id, n, score, 0, quantile(score, weight, n, p * total));
}

int32_t stage_xtc(float *logit, int32_t *id, int32_t n, float threshold, const float *weight, double total)
{
    int32_t least = -1, kept = 0;
    for (int32_t i = 0; i < n; i++) {
        if (weight[i] >= threshold * total && (least < 0 || weight[i] < weight[least])) {
            least = i;
        }
    }
    for (int32_t i = 0; i < n; i++) {
        if (weight[i] < threshold * total || i == least) {
            logit[kept] = logit[i];
            id[kept++] = id[i];
        }
    }
    return kept;
}

float stage_dynamic_temperature(
    const float *logit, int32_t n, float low, float high, float exponent, float largest, const float *weight,
    double total)
{
    const double share = n > 1 ? fmin(1, fmax(0, entropy(logit, n, largest, weight, total) / log(n))) : 0;
    return low + (high - low) * (float) pow(share, exponent);
}

int32_t stage_mirostat_k(const float *largest, int32_t m, int32_t n_vocab, float mu)
{
    double products = 0, squares = 0;
    for (int32_t i = 0; i + 1 < m; i++) {
        const double t = log((i + 2.0) / (i + 1.0));
        products += t * ((double) largest[i] - largest[i + 1]);
        squares += t * t;
    }
    const double s = products / squares, epsilon = s - 1;
    const double k = pow(epsilon * pow(2, mu) / (1 - pow(n_vocab, -epsilon)), 1 / s);
    return k >= 1 ? (k < n_vocab ? (int32_t) k : n_vocab) : isnan(k) ? n_vocab : 1;
}
