/* Vectors of 16 floats, as GCC and Clang have them on every processor, and what goes with them.
 *
 * Everything here is the same order of operations wherever a row lies: nothing depends on neighbours.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES), aligned(2)));

static inline vec load_f32(const float *p) { return *(const vec *)p; }

static inline vec load_bf16(const uint16_t *p) {
    ivec wide = __builtin_convertvector(*(const hvec *)p, ivec) << 16;
    return (vec)wide;
}

static inline vec splat(float x) { return x - (vec){}; }

static inline vec select(ivec mask, vec a, vec b) {
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}

static inline vec maximum(vec a, vec b) { return select(a > b, a, b); }

static inline float sum(vec v) {
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++) v[i] += v[i + step];
    return v[0];
}

static inline float greatest(vec v) {
    float m = v[0];
    for (int i = 1; i < LANES; i++) m = v[i] > m ? v[i] : m;
    return m;
}

/* e^x for x <= 0, to 2 ulp: 2^n times a polynomial on [-ln2/2, ln2/2]; 0 below -87. */
static inline vec exponential(vec x) {
    vec n = x * 1.44269504088896341f;
    vec rounded = (n + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: to the nearest integer */
    vec r = x - rounded * 0.693359375f + rounded * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec power = (__builtin_convertvector(rounded, ivec) + 127) << 23;
    vec result = p * (vec)power;
    return select(x > -87.0f, result, splat(0.0f));
}

static inline __attribute__((always_inline)) vec load(const char *p, int64_t i, int is_bf16) {
    return is_bf16 ? load_bf16((const uint16_t *)p + i) : load_f32((const float *)p + i);
}

static inline float element(const char *p, int64_t i, int is_bf16) {
    if (!is_bf16) return ((const float *)p)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline void put(char *p, int64_t i, float x, int is_bf16) {
    if (!is_bf16) {
        ((float *)p)[i] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) bits = 0x7fc00000u;
    else bits += 0x7fffu + ((bits >> 16) & 1); /* to the nearest, ties to even */
    ((uint16_t *)p)[i] = (uint16_t)(bits >> 16);
}
