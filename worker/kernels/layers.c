/* All layers of a decoder over one ragged batch, in one call: what PlainLayers of models/decoder.py does,
 * kernel for kernel. Between two of them Python and torch took 20 to 30 us, for the matrices drive their
 * code out of the caches.
 */

#include "kernels.h"
#include "vector.h"

typedef struct {
    const char *input_norm, *post_attention_norm; /* [hidden_size] */
    const char *qk_norm;                          /* [num_heads + num_kv_heads, head_dim], or NULL */
    float qk_eps;
    int32_t window; /* keys that a query sees at most; 0: all */
    const Matrix *qkv, *output, *gate_up, *down;
    char *keys, *values; /* the pools */
} Layer;

typedef struct {
    int32_t is_bf16, rows_per_item;
    Shape shape;
    float eps;
    int64_t hidden_size, intermediate_size, num_layers;
    const Layer *layers;
    const char *norm;               /* after the last */
    const float *cosines, *sines;   /* [max_model_len, head_dim / 2] */
} Model;

/* What the layers of a step share. */
typedef struct {
    int64_t num_rows, num_real_rows; /* with the padding, which comes last, and without */
    const int64_t *positions, *slots;
    const Segment *segments;
    const int32_t *items, *tables;
    int64_t num_items;
} Step;

/* Room for what lies between two kernels, [num_rows, size] each. */
typedef struct {
    char *normed, *delta;     /* hidden_size */
    char *q, *attended;       /* num_heads * head_dim */
    char *wide;               /* as the projections to queries, keys and values, or gates and ups */
    char *gated;              /* intermediate_size */
    uint8_t *bytes;           /* as the widest inputs; this and the next for matrices of bytes */
    float *row_scales, *sums; /* 1; as the widest outputs */
} Room;

static void project(const Matrix *matrix, const Model *model, const Room *room, int64_t num_rows,
                    const char *x, char *y) {
    if (matrix->kind != INT8) {
        multiply(matrix, num_rows, x, y);
        return;
    }
    const int64_t size = matrix->row_bytes;
    quantize_rows(model->is_bf16, num_rows, size, size, x, room->bytes, room->row_scales);
    multiply(matrix, num_rows, (const char *)room->bytes, (char *)room->sums);
    rescale_rows(model->is_bf16, num_rows, matrix->num_outputs, room->sums, room->row_scales, matrix->bias,
                 y);
}

/* x [num_rows, hidden_size], which changes, through all layers; normed, into out of the same shape. */
void run_layers(const Model *model, const Step *step, const Room *room, char *x, char *out) {
    const int is_bf16 = model->is_bf16;
    const int64_t rows = step->num_rows, size = model->hidden_size;
    const int64_t q_size = (int64_t)model->shape.num_heads * model->shape.head_dim;
    const int64_t q_bytes = q_size * item_bytes(is_bf16);
    const char *delta = 0; /* what the last part of a layer adds to x */
    memset(room->attended + step->num_real_rows * q_bytes, 0, (rows - step->num_real_rows) * q_bytes);
    for (const Layer *layer = model->layers; layer < model->layers + model->num_layers; layer++) {
        rms_norm(is_bf16, rows, size, x, delta, layer->input_norm, model->eps, room->normed);
        project(layer->qkv, model, room, rows, room->normed, room->wide);
        write_rotated(&model->shape, is_bf16, rows, room->wide, layer->qk_norm, layer->qk_eps,
                      model->cosines, model->sines, step->positions, step->slots, room->q, layer->keys,
                      layer->values);
        attend(&model->shape, is_bf16, layer->window, step->segments, step->items, step->num_items,
               model->rows_per_item, step->tables, room->q, q_size, layer->keys, layer->values,
               room->attended);
        project(layer->output, model, room, rows, room->attended, room->delta);
        rms_norm(is_bf16, rows, size, x, room->delta, layer->post_attention_norm, model->eps, room->normed);
        project(layer->gate_up, model, room, rows, room->normed, room->wide);
        silu_and_multiply(is_bf16, rows, model->intermediate_size, room->wide, room->gated);
        project(layer->down, model, room, rows, room->gated, room->delta);
        delta = room->delta;
    }
    rms_norm(is_bf16, rows, size, x, delta, model->norm, model->eps, out);
}
