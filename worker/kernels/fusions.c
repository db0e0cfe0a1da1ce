/* What a decoder computes between matrix products, each in one pass over a row.
 *
 * A row is one thread's, and computed in the same order of operations whichever others there are.
 */

#include "kernels.h"
#include "vector.h"

/* The last of a row's elements that don't fill a vector, one by one. */
#define TAIL(i, start, size) for (int64_t i = (start); i < (size); i++)

static inline __attribute__((always_inline)) void norm_row(
    int64_t size, char *x, const char *delta, const char *weight, float eps, char *out, int is_bf16) {
    const int64_t whole = size - size % LANES;
    vec squares = splat(0.0f);
    float rest = 0.0f;
    for (int64_t i = 0; i < whole; i += LANES) {
        vec a = load(x, i, is_bf16);
        if (delta) {
            store(x, i, a + load(delta, i, is_bf16), is_bf16);
            a = load(x, i, is_bf16); /* as rounded: what later layers see */
        }
        squares += a * a;
    }
    TAIL(i, whole, size) {
        if (delta) put(x, i, element(x, i, is_bf16) + element(delta, i, is_bf16), is_bf16);
        const float a = element(x, i, is_bf16);
        rest += a * a;
    }
    const float factor = 1.0f / sqrtf((sum(squares) + rest) / size + eps);
    for (int64_t i = 0; i < whole; i += LANES)
        store(out, i, load(x, i, is_bf16) * factor * load(weight, i, is_bf16), is_bf16);
    TAIL(i, whole, size)
        put(out, i, element(x, i, is_bf16) * factor * element(weight, i, is_bf16), is_bf16);
}

/* Root-mean-square norm (Zhang & Sennrich, https://arxiv.org/abs/1910.07467) of x [num_rows, size] into
 * out; if there is a delta of the same shape, x += delta before. */
void rms_norm(int is_bf16, int64_t num_rows, int64_t size, char *x, const char *delta,
              const char *weight, float eps, char *out) {
    const int64_t bytes = size * item_bytes(is_bf16);
#pragma omp parallel for if (num_rows * size >= SHARED_SIZE)
    for (int64_t row = 0; row < num_rows; row++) {
        const int64_t at = row * bytes;
        const char *d = delta ? delta + at : 0;
        if (is_bf16) norm_row(size, x + at, d, weight, eps, out + at, 1);
        else norm_row(size, x + at, d, weight, eps, out + at, 0);
    }
}

/* x / (1 + e^-x), by way of e^-|x| */
static inline vec silu(vec x) {
    const vec e = exponential(choose(x < 0.0f, x, -x));
    const vec gate = choose(x < 0.0f, e, splat(1.0f)) / (1.0f + e);
    return x * gate;
}

static inline __attribute__((always_inline)) void silu_row(
    int64_t size, const char *gate, const char *up, char *out, int is_bf16) {
    const int64_t whole = size - size % LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        store(out, i, silu(load(gate, i, is_bf16)) * load(up, i, is_bf16), is_bf16);
    TAIL(i, whole, size)
        put(out, i, silu(splat(element(gate, i, is_bf16)))[0] * element(up, i, is_bf16), is_bf16);
}

/* silu(gates) * ups (SwiGLU, Shazeer, https://arxiv.org/abs/2002.05202) of [num_rows, 2 * size], gates
 * first, into out [num_rows, size]. */
void silu_and_multiply(int is_bf16, int64_t num_rows, int64_t size, const char *gate_up, char *out) {
    const int64_t bytes = size * item_bytes(is_bf16);
#pragma omp parallel for if (num_rows * size >= SHARED_SIZE)
    for (int64_t row = 0; row < num_rows; row++) {
        const char *gate = gate_up + 2 * row * bytes;
        if (is_bf16) silu_row(size, gate, gate + bytes, out + row * bytes, 1);
        else silu_row(size, gate, gate + bytes, out + row * bytes, 0);
    }
}
