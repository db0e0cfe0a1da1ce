/* Rows of activations to 8 bits and products back to the model's type, for models/int8_linear.py.
 *
 * Every element is made by correctly rounded operations that no compiler can fuse into others, so that
 * torch computes the same bits (models/row_quantizer.py).
 */

#include "kernels.h"
#include "vector.h"

#define ZERO_POINT 128
#define LIMIT 127.0f
#define LEAST 0x1p-100f /* a row below it counts as zeros: LIMIT / LEAST is still finite */

typedef uint8_t bvec __attribute__((vector_size(LANES), aligned(1)));
typedef double dvec __attribute__((vector_size(8 * LANES), aligned(8)));

/* The greatest |x|; NaN or infinity if one is in the row, for their bits are the greatest. */
static inline __attribute__((always_inline)) float greatest_magnitude(
    const char *x, int64_t size, int is_bf16) {
    ivec most = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        ivec bits = (ivec)load(x, i, is_bf16) & INT32_MAX;
        ivec is_more = bits > most;
        most = (is_more & bits) | (~is_more & most);
    }
    int32_t greatest_bits = 0;
    for (int lane = 0; lane < LANES; lane++)
        greatest_bits = most[lane] > greatest_bits ? most[lane] : greatest_bits;
    for (; i < size; i++) {
        const float value = fabsf(element(x, i, is_bf16));
        int32_t bits;
        memcpy(&bits, &value, sizeof bits);
        greatest_bits = bits > greatest_bits ? bits : greatest_bits;
    }
    float result;
    memcpy(&result, &greatest_bits, sizeof result);
    return result;
}

static inline __attribute__((always_inline)) float quantize_row(
    const char *x, int64_t size, uint8_t *out, int is_bf16) {
    const float greatest = greatest_magnitude(x, size, is_bf16);
    if (!(greatest >= LEAST && greatest < INFINITY)) {
        memset(out, ZERO_POINT, size);
        return greatest < LEAST ? 0.0f : NAN;
    }
    const float inverse = LIMIT / greatest;
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        vec scaled = load(x, i, is_bf16) * inverse;
        for (int lane = 0; lane < LANES; lane++) scaled[lane] = rintf(scaled[lane]);
        ivec integers = __builtin_convertvector(scaled, ivec) + ZERO_POINT;
        *(bvec *)(out + i) = __builtin_convertvector(integers, bvec);
    }
    for (; i < size; i++) out[i] = (uint8_t)((int)rintf(element(x, i, is_bf16) * inverse) + ZERO_POINT);
    return greatest / LIMIT;
}

/* x [num_rows, size] with `stride` elements from row to row: about x = (out - 128) * scale. A row that
 * is not finite gets a scale that is NaN. */
void quantize_rows(int is_bf16, int64_t num_rows, int64_t size, int64_t stride, const char *x,
                   uint8_t *out, float *scales) {
    const int64_t row_bytes = stride * item_bytes(is_bf16);
#pragma omp parallel for if (num_rows * size >= SHARED_SIZE)
    for (int64_t row = 0; row < num_rows; row++) {
        const char *from = x + row * row_bytes;
        uint8_t *to = out + row * size;
        scales[row] = is_bf16 ? quantize_row(from, size, to, 1) : quantize_row(from, size, to, 0);
    }
}

/* In double the product is exact, so that it is the same whether it is fused with the sum or not. */
static inline vec scaled_and_biased(vec y, float scale, const float *bias) {
    dvec wide = __builtin_convertvector(y, dvec) * (double)scale;
    return __builtin_convertvector(wide + __builtin_convertvector(load_f32(bias), dvec), vec);
}

static inline __attribute__((always_inline)) void rescale_row(
    const float *y, int64_t size, float scale, const float *bias, char *out, int is_bf16) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        vec value = load_f32(y + i);
        value = bias ? scaled_and_biased(value, scale, bias + i) : value * scale;
        store(out, i, value, is_bf16);
    }
    for (; i < size; i++) {
        const float value = bias ? (float)((double)y[i] * scale + bias[i]) : y[i] * scale;
        put(out, i, value, is_bf16);
    }
}

/* out [num_rows, size] = y * its row's scale + bias, which may be NULL; out may be y. */
void rescale_rows(int is_bf16, int64_t num_rows, int64_t size, const float *y, const float *scales,
                  const float *bias, char *out) {
    const int64_t row_bytes = size * item_bytes(is_bf16);
#pragma omp parallel for if (num_rows * size >= SHARED_SIZE)
    for (int64_t row = 0; row < num_rows; row++) {
        const float *from = y + row * size;
        char *to = out + row * row_bytes;
        if (is_bf16) rescale_row(from, size, scales[row], bias, to, 1);
        else rescale_row(from, size, scales[row], bias, to, 0);
    }
}
