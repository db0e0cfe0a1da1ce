/* What these files know of one another; Python has the same structures, field by field. */

#pragma once

#include <stdint.h>

enum { FLOAT32, BFLOAT16, INT8 };

/* Of attention. */
typedef struct {
    int32_t num_heads, num_kv_heads, head_dim, padded_dim;
    float scale;
} Shape;

/* Rows of one sequence: `num_rows` queries from row `start` on, the first at `position`. */
typedef struct {
    int32_t start, num_rows, position, table; /* `table`: where its block ids begin */
} Segment;

/* A packed matrix, and what becomes of a sum: sum + bias, where there is a bias, in the inputs' type; or,
 * of unsigned bytes and signed ones, the float (sum - offset) * scale. */
typedef struct {
    int32_t kind, unit;
    int64_t num_outputs, row_bytes; /* of a row of inputs */
    const char *packed;
    const float *bias; /* [num_outputs], like those below; of bytes, it waits for `rescale_rows` */
    const int32_t *offsets;
    const float *scales;
} Matrix;

void rms_norm(int is_bf16, int64_t num_rows, int64_t size, char *x, const char *delta,
              const char *weight, float eps, char *out);
void silu_and_multiply(int is_bf16, int64_t num_rows, int64_t size, const char *gate_up, char *out);
void multiply(const Matrix *matrix, int64_t num_rows, const char *x, char *y);
void quantize_rows(int is_bf16, int64_t num_rows, int64_t size, int64_t stride, const char *x,
                   uint8_t *out, float *scales);
void rescale_rows(int is_bf16, int64_t num_rows, int64_t size, const float *y, const float *scales,
                  const float *bias, char *out);
void write_rotated(const Shape *shape, int is_bf16, int64_t num_rows, const char *qkv, const char *weight,
                   float eps, const float *cosines, const float *sines, const int64_t *positions,
                   const int64_t *slots, char *q, char *keys, char *values);
void attend(const Shape *shape, int is_bf16, int32_t window, const Segment *segments,
            const int32_t *items, int64_t num_items, int32_t rows_per_item, const int32_t *tables,
            const char *q, int64_t q_stride, const char *keys, const char *values, char *out);
