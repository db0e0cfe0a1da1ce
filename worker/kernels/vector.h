/* Vectors of 16 floats, as GCC and Clang have them on every processor, and what goes with them.
 *
 * Everything here is the same order of operations wherever a row lies: nothing depends on neighbours.
 */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define SHARED_SIZE 4096 /* elements that are worth waking a second thread for: 3 to 6 us */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES), aligned(2)));

static inline vec load_f32(const float *p) { return *(const vec *)p; }

static inline vec load_bf16(const uint16_t *p) {
    ivec wide = __builtin_convertvector(*(const hvec *)p, ivec) << 16;
    return (vec)wide;
}

static inline vec splat(float x) { return x - (vec){}; }

static inline vec choose(ivec mask, vec a, vec b) {
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}

static inline vec maximum(vec a, vec b) { return choose(a > b, a, b); }

#ifdef __clang__
#define SHUFFLED(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define SHUFFLED(v, ...) __builtin_shuffle(v, (ivec){__VA_ARGS__})
#endif
#define HALVES_SWAPPED(v) SHUFFLED(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define QUARTERS_SWAPPED(v) SHUFFLED(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define PAIRS_SWAPPED(v) SHUFFLED(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define LANES_SWAPPED(v) SHUFFLED(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)

static inline float sum(vec v) {
    v += HALVES_SWAPPED(v);
    v += QUARTERS_SWAPPED(v);
    v += PAIRS_SWAPPED(v);
    v += LANES_SWAPPED(v);
    return v[0];
}

static inline float greatest(vec v) {
    v = maximum(v, HALVES_SWAPPED(v));
    v = maximum(v, QUARTERS_SWAPPED(v));
    v = maximum(v, PAIRS_SWAPPED(v));
    v = maximum(v, LANES_SWAPPED(v));
    return v[0];
}

/* e^x for x <= 0, to 2 ulp: 2^n times a polynomial on [-ln2/2, ln2/2]; 0 below -87; NaN of a NaN. */
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
    return choose(x <= -87.0f, splat(0.0f), result);
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

/* Sixteen at once, as `put` does. */
static inline __attribute__((always_inline)) void store(char *p, int64_t i, vec x, int is_bf16) {
    if (!is_bf16) {
        *(vec *)((float *)p + i) = x;
        return;
    }
    uvec bits = (uvec)x;
    bits += 0x7fffu + ((bits >> 16) & 1);
    bits = (uvec)choose(x == x, (vec)bits, (vec)((uvec){} + 0x7fc00000u));
    *(hvec *)((uint16_t *)p + i) = __builtin_convertvector(bits >> 16, hvec);
}

static inline int64_t item_bytes(int is_bf16) { return is_bf16 ? 2 : 4; }
