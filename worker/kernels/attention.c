/* Paged attention on the CPU, row by row: one call for all rows of a layer, decode and prefill alike.
 *
 * A query's result is computed in the same order of operations whichever rows it shares a tile with:
 * its keys in blocks of 32, from the first that it sees to the last, with a running maximum and sum
 * (Milakov & Gimelshein, https://arxiv.org/abs/1805.02867). Tiles only share loads.
 *
 * Layouts: keys [block][kv head][head_dim][32], so that 32 keys' products are one vector operation for
 * each dimension; values [block][kv head][32][padded head_dim], padded to a multiple of 16.
 */

#include "kernels.h"
#include "vector.h"

#define BLOCK 32
#define MAX_TILE 8
#define MAX_DIM 512
#define LINE 64

/* Some queries of one sequence under one key-value head. */
typedef struct {
    float q[MAX_TILE][MAX_DIM]; /* scaled */
    float out[MAX_TILE][MAX_DIM];
    float greatest[MAX_TILE], total[MAX_TILE]; /* of the scores; of their exponentials */
    int32_t first[MAX_TILE], last[MAX_TILE]; /* keys that each sees */
} Tile;

static const ivec INDEX = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* A block of 32 keys and values as a tile sees it. */
typedef struct {
    const char *keys, *values, *next_keys;
    int begin[MAX_TILE], end[MAX_TILE]; /* which of them each query sees: none if end < begin */
    float weights[MAX_TILE][BLOCK];
} Block;

static inline __attribute__((always_inline)) void look_at(
    Block *block, const Tile *tile, int number, int count) {
    for (int i = 0; i < count; i++) {
        const int begin = tile->first[i] - number * BLOCK, end = tile->last[i] - number * BLOCK;
        block->begin[i] = begin > 0 ? begin : 0;
        block->end[i] = end < BLOCK ? end : BLOCK - 1;
    }
}

/* Every query times every key; values are fetched meanwhile, for a page's end stops the processor from
 * reading ahead. */
static inline __attribute__((always_inline)) void score(
    const Block *block, const Tile *tile, vec *low, vec *high, int dim, int64_t value_bytes, int count,
    int is_bf16) {
    for (int i = 0; i < count; i++) low[i] = high[i] = splat(0.0f);
    for (int d = 0; d < dim; d++) {
        if (d * (int64_t)LINE < value_bytes) __builtin_prefetch(block->values + d * LINE);
        const vec k_low = load(block->keys, d * BLOCK, is_bf16);
        const vec k_high = load(block->keys, d * BLOCK + LANES, is_bf16);
        for (int i = 0; i < count; i++) {
            low[i] += tile->q[i][d] * k_low;
            high[i] += tile->q[i][d] * k_high;
        }
    }
}

/* From query i's scores its weights, on the scale of the greatest score so far. A score that is NaN, or
 * +inf, makes its weight NaN, and so the query's result. */
static inline __attribute__((always_inline)) void weigh(
    Block *block, Tile *tile, vec low, vec high, int padded, int i) {
    const int begin = block->begin[i], end = block->end[i];
    if (end < begin) return;
    if (begin > 0 || end < BLOCK - 1) {
        const vec never = splat(-INFINITY);
        low = choose((INDEX >= begin) & (INDEX <= end), low, never);
        high = choose((INDEX + LANES >= begin) & (INDEX + LANES <= end), high, never);
    }
    const float here = greatest(maximum(low, high));
    const float before = tile->greatest[i], now = here > before ? here : before;
    const float base = now == -INFINITY ? 0.0f : now; /* no key has counted yet: none weighs anything */
    const float kept = exponential(splat(before - base))[0];
    const vec p_low = exponential(low - base), p_high = exponential(high - base);
    tile->greatest[i] = now;
    tile->total[i] = tile->total[i] * kept + sum(p_low + p_high);
    *(vec *)block->weights[i] = p_low;
    *(vec *)(block->weights[i] + LANES) = p_high;
    for (int d = 0; d < padded; d += LANES) *(vec *)(tile->out[i] + d) *= kept;
}

/* Weights times values. What a query doesn't see is left out, not taken times zero: a later token's
 * value may be no number. */
static inline __attribute__((always_inline)) void add_values_between(
    const Block *block, Tile *tile, int from, int to, int see_the_same, int padded, int count,
    int is_bf16) {
    for (int d = 0; d < padded; d += LANES) {
        vec sums[MAX_TILE];
        for (int i = 0; i < count; i++) sums[i] = *(vec *)(tile->out[i] + d);
        for (int j = from; j <= to; j++) {
            __builtin_prefetch(block->next_keys + (d / LANES * BLOCK + j) * (int64_t)LINE);
            const vec value = load(block->values, j * padded + d, is_bf16);
            for (int i = 0; i < count; i++)
                if (see_the_same || (j >= block->begin[i] && j <= block->end[i]))
                    sums[i] += block->weights[i][j] * value;
        }
        for (int i = 0; i < count; i++) *(vec *)(tile->out[i] + d) = sums[i];
    }
}

static inline __attribute__((always_inline)) void add_values(
    const Block *block, Tile *tile, int padded, int count, int is_bf16) {
    int from = BLOCK, to = -1, see_the_same = 1;
    for (int i = 0; i < count; i++) {
        const int begin = block->begin[i], end = block->end[i];
        see_the_same &= begin == block->begin[0] && end == block->end[0];
        if (end < begin) continue;
        from = begin < from ? begin : from;
        to = end > to ? end : to;
    }
    if (see_the_same) add_values_between(block, tile, from, to, 1, padded, count, is_bf16);
    else add_values_between(block, tile, from, to, 0, padded, count, is_bf16);
}

static inline __attribute__((always_inline)) void attend_tile(
    const Shape *shape, Tile *tile, const int32_t *table, int kv_head, const char *keys,
    const char *values, int count, int is_bf16) {
    const int dim = shape->head_dim, padded = shape->padded_dim;
    const int64_t bytes = item_bytes(is_bf16);
    const int64_t key_bytes = dim * BLOCK * bytes, value_bytes = padded * BLOCK * bytes;
    int32_t first = tile->first[0], last = tile->last[0];
    for (int i = 0; i < count; i++) {
        tile->greatest[i] = -INFINITY;
        tile->total[i] = 0.0f;
        memset(tile->out[i], 0, padded * sizeof(float));
        first = tile->first[i] < first ? tile->first[i] : first;
        last = tile->last[i] > last ? tile->last[i] : last;
    }
    for (int number = first / BLOCK; number <= last / BLOCK; number++) {
        const int64_t place = (int64_t)table[number] * shape->num_kv_heads + kv_head;
        const int next = table[number < last / BLOCK ? number + 1 : number];
        const int64_t next_place = (int64_t)next * shape->num_kv_heads + kv_head;
        Block block = {keys + place * key_bytes, values + place * value_bytes,
                       keys + next_place * key_bytes};
        vec low[MAX_TILE], high[MAX_TILE];
        look_at(&block, tile, number, count);
        score(&block, tile, low, high, dim, value_bytes, count, is_bf16);
        for (int i = 0; i < count; i++) weigh(&block, tile, low[i], high[i], padded, i);
        add_values(&block, tile, padded, count, is_bf16);
    }
    for (int i = 0; i < count; i++)
        for (int d = 0; d < padded; d += LANES) *(vec *)(tile->out[i] + d) /= tile->total[i];
}

static void attend_any(const Shape *shape, Tile *tile, const int32_t *table, int kv_head,
                       const char *keys, const char *values, int count, int is_bf16) {
#define CASE(n)                                                                              \
    case n:                                                                                  \
        if (is_bf16) attend_tile(shape, tile, table, kv_head, keys, values, n, 1);           \
        else attend_tile(shape, tile, table, kv_head, keys, values, n, 0);                   \
        return;
    switch (count) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
}

/* Causal attention of q [rows, num_heads, head_dim] into out, of the same shape and type; a row's
 * queries see `window` keys at most, themselves included (0: all). `items` are pairs of a segment and
 * the first of its rows [num_items]; each has up to `rows_per_item` rows. */
void attend(const Shape *shape, int is_bf16, int32_t window, const Segment *segments,
            const int32_t *items, int64_t num_items, int32_t rows_per_item, const int32_t *tables,
            const char *q, int64_t q_stride, const char *keys, const char *values, char *out) {
    const int dim = shape->head_dim, group = shape->num_heads / shape->num_kv_heads;
    const int64_t num_tasks = num_items * shape->num_kv_heads;
#pragma omp parallel for schedule(dynamic, 1) if (num_tasks > 1)
    for (int64_t task = 0; task < num_tasks; task++) {
        const int32_t *item = items + 2 * (task / shape->num_kv_heads);
        const int kv_head = task % shape->num_kv_heads;
        const Segment *segment = segments + item[0];
        int rows = segment->num_rows - item[1];
        rows = rows < rows_per_item ? rows : rows_per_item;
        const int num_queries = rows * group;
        Tile tile;
        for (int begin = 0; begin < num_queries; begin += MAX_TILE) {
            const int count = num_queries - begin < MAX_TILE ? num_queries - begin : MAX_TILE;
            for (int i = 0; i < count; i++) {
                const int row = item[1] + (begin + i) / group, head = (begin + i) % group;
                const int64_t at = (segment->start + row) * q_stride + (kv_head * group + head) * dim;
                for (int d = 0; d < dim; d++) tile.q[i][d] = element(q, at + d, is_bf16) * shape->scale;
                tile.last[i] = segment->position + row;
                tile.first[i] = window && tile.last[i] >= window ? tile.last[i] - window + 1 : 0;
            }
            attend_any(shape, &tile, tables + segment->table, kv_head, keys, values, count, is_bf16);
            for (int i = 0; i < count; i++) {
                const int row = item[1] + (begin + i) / group, head = (begin + i) % group;
                const int64_t at =
                    ((int64_t)(segment->start + row) * shape->num_heads + kv_head * group + head) * dim;
                for (int d = 0; d < dim; d++) put(out, at + d, tile.out[i][d], is_bf16);
            }
        }
    }
}

/* One row's key of one head, and its value, to a slot of the pools. */
static inline void write_slot(const Shape *shape, int64_t slot, int head, int64_t bytes, const char *key,
                              const char *value, char *keys, char *values) {
    const int dim = shape->head_dim;
    const int64_t place = slot / BLOCK * shape->num_kv_heads + head;
    const int offset = slot % BLOCK;
    char *to = keys + (place * dim * BLOCK + offset) * bytes;
    for (int d = 0; d < dim; d++) memcpy(to + (int64_t)d * BLOCK * bytes, key + d * bytes, bytes);
    memcpy(values + (place * BLOCK + offset) * shape->padded_dim * bytes, value, dim * bytes);
}

/* Keys and values, both [num_rows, num_kv_heads, head_dim] with rows a stride apart, to their slots. */
void write_kv(const Shape *shape, int is_bf16, const int64_t *slots, int64_t num_rows, const char *k,
              const char *v, int64_t k_stride, int64_t v_stride, char *keys, char *values) {
    const int64_t bytes = item_bytes(is_bf16);
#pragma omp parallel for if (num_rows > 32)
    for (int64_t row = 0; row < num_rows; row++)
        for (int head = 0; head < shape->num_kv_heads; head++) {
            const char *key = k + (row * k_stride + head * shape->head_dim) * bytes;
            const char *value = v + (row * v_stride + head * shape->head_dim) * bytes;
            write_slot(shape, slots[row], head, bytes, key, value, keys, values);
        }
}

/* The head x, normalised if it has a weight, rotated by the angles of its row, into out. */
static inline __attribute__((always_inline)) void rotate_head(
    int dim, const char *x, const char *weight, float eps, const float *cosines, const float *sines,
    char *out, int is_bf16) {
    float head[MAX_DIM];
    for (int d = 0; d < dim; d++) head[d] = element(x, d, is_bf16);
    if (weight) {
        float squares = 0.0f;
        for (int d = 0; d < dim; d++) squares += head[d] * head[d];
        const float factor = 1.0f / sqrtf(squares / dim + eps);
        for (int d = 0; d < dim; d++) head[d] *= factor * element(weight, d, is_bf16);
    }
    const int half = dim / 2;
    for (int d = 0; d < half; d++) {
        const float a = head[d], b = head[d + half];
        put(out, d, a * cosines[d] - b * sines[d], is_bf16);
        put(out, d + half, b * cosines[d] + a * sines[d], is_bf16);
    }
}

/* From a layer's projections [num_rows, num_heads + 2 * num_kv_heads, head_dim]: queries, rotated, into q
 * [num_rows, num_heads, head_dim]; keys, rotated, and values to their slots. Queries and keys are
 * normalised before if there is a weight [num_heads + num_kv_heads, head_dim]. `cosines` and `sines` are
 * of all positions [max_model_len, head_dim / 2]. */
void write_rotated(const Shape *shape, int is_bf16, int64_t num_rows, const char *qkv, const char *weight,
                   float eps, const float *cosines, const float *sines, const int64_t *positions,
                   const int64_t *slots, char *q, char *keys, char *values) {
    const int dim = shape->head_dim, num_heads = shape->num_heads, num_kv_heads = shape->num_kv_heads;
    const int64_t bytes = item_bytes(is_bf16), head_bytes = dim * bytes;
    const int64_t row_heads = num_heads + 2 * num_kv_heads;
#pragma omp parallel for if (num_rows * row_heads * dim >= SHARED_SIZE)
    for (int64_t row = 0; row < num_rows; row++) {
        const char *x = qkv + row * row_heads * head_bytes;
        const float *c = cosines + positions[row] * (dim / 2), *s = sines + positions[row] * (dim / 2);
        for (int head = 0; head < num_heads + num_kv_heads; head++) {
            float key[MAX_DIM];
            const int kv_head = head - num_heads;
            char *out = kv_head < 0 ? q + (row * num_heads + head) * head_bytes : (char *)key;
            const char *w = weight ? weight + head * head_bytes : 0;
            if (is_bf16) rotate_head(dim, x + head * head_bytes, w, eps, c, s, out, 1);
            else rotate_head(dim, x + head * head_bytes, w, eps, c, s, out, 0);
            const char *value = x + (head + num_kv_heads) * head_bytes;
            if (kv_head >= 0)
                write_slot(shape, slots[row], kv_head, bytes, (char *)key, value, keys, values);
        }
    }
}
