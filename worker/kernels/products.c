/* Products of rows and a packed matrix, in float32, bfloat16 or bytes.
 *
 * By tiles (Intel AMX: 16 rows times 64 bytes of them times 16 outputs in one instruction) or by vectors
 * (AVX-512: the same four bytes of a row times 16 outputs). Either way a product is summed over the
 * inputs from the first to the last, however many rows there are: a row's result has the same bits in any
 * company.
 *
 * With few rows the matrix comes from memory hardly faster than it is multiplied. Vectors take it a slice
 * at a time, for all rows, and each pass over a slice fetches its part of the next: so memory and
 * arithmetic are both busy all the time.
 *
 * Packed is a matrix as both read it: [outputs / 32][row_bytes / 4][32][4 bytes], the outputs filled up
 * with zeros to a multiple of 32. A row of inputs has `row_bytes`, for tiles a multiple of 64.
 */

#include "kernels.h"
#include "vector.h"

#define PAIR 32 /* outputs that are computed together, of two vectors or tiles side by side */
#define LINE 64
#define TILE_ROWS 16
#define TILES_ROWS (2 * TILE_ROWS)  /* that are computed together by tiles */
#define VECTOR_ROWS 12              /* by vectors: times two of sums they fit into the registers */
#define MOST_ROWS (4 * VECTOR_ROWS) /* by either; of more, memory has time enough for the matrix */
#define AHEAD 4096 /* bytes of the matrix to fetch early, for tiles */

enum { VECTORS, TILES };

#ifdef __AVX512BF16__
#define HAS_BF16_VECTORS 1
#else
#define HAS_BF16_VECTORS 0
#endif
#ifdef __AVX512VNNI__
#define HAS_INT8_VECTORS 1
#else
#define HAS_INT8_VECTORS 0
#endif

#ifdef __AVX512F__
#define HAS_VECTORS 1
#include <immintrin.h>

#define SLICE 256 /* bytes of each row; 64 to 1,024 are slower at 16 rows of 1,792 */

/* Bytes are summed as integers. Cast in C, the sums would be moved about in every turn of the loop. */
static inline __attribute__((always_inline)) __m512 add_products(
    __m512 sums, __m512i x, __m512i matrix, int kind) {
#ifdef __AVX512BF16__
    if (kind == BFLOAT16) return _mm512_dpbf16_ps(sums, (__m512bh)x, (__m512bh)matrix);
#endif
#ifdef __AVX512VNNI__
    if (kind == INT8) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(matrix));
        return sums;
    }
#endif
    return _mm512_fmadd_ps((__m512)x, (__m512)matrix, sums);
}

/* A pass: `count` rows times 32 outputs, `bytes` of each row, added to sums [count, 32]. In each turn two
 * lines are fetched from `next` on, which goes on by `stride`. The loops over rows have to be unrolled,
 * or the compiler keeps the sums in memory. */
static inline __attribute__((always_inline)) void add_rows(
    int64_t row_bytes, int64_t bytes, const char *x, const char *matrix, const char *next, int64_t stride,
    float *sums, int count, int kind) {
    __m512 left[VECTOR_ROWS], right[VECTOR_ROWS];
#pragma GCC unroll 12
    for (int i = 0; i < count; i++) {
        left[i] = _mm512_load_ps(sums + i * PAIR);
        right[i] = _mm512_load_ps(sums + i * PAIR + LANES);
    }
    /* From these the other rows are at most three away: addresses for which there are registers. */
    const char *fifth = x + (count > 4 ? 4 : 0) * row_bytes, *ninth = x + (count > 8 ? 8 : 0) * row_bytes;
    for (int64_t at = 0; at < bytes; at += 4, matrix += 2 * LINE, next += stride) {
        __builtin_prefetch(next, 0, 2);
        __builtin_prefetch(next + LINE, 0, 2);
        const __m512i m_left = _mm512_loadu_si512(matrix), m_right = _mm512_loadu_si512(matrix + LINE);
#pragma GCC unroll 12
        for (int i = 0; i < count; i++) {
            int32_t four_bytes;
            const char *row = (i < 4 ? x : i < 8 ? fifth : ninth) + i % 4 * row_bytes;
            memcpy(&four_bytes, row + at, 4);
            const __m512i x_i = _mm512_set1_epi32(four_bytes);
            left[i] = add_products(left[i], x_i, m_left, kind);
            right[i] = add_products(right[i], x_i, m_right, kind);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < count; i++) {
        _mm512_store_ps(sums + i * PAIR, left[i]);
        _mm512_store_ps(sums + i * PAIR + LANES, right[i]);
    }
}

static void pass(int64_t row_bytes, int64_t bytes, const char *x, const char *matrix, const char *next,
                 int64_t stride, float *sums, int count, int kind) {
#define ROWS(n, kind) add_rows(row_bytes, bytes, x, matrix, next, stride, sums, n, kind)
#define CASE(n)                                   \
    case n:                                       \
        if (kind == FLOAT32) ROWS(n, FLOAT32);    \
        else if (kind == INT8) ROWS(n, INT8);     \
        else ROWS(n, BFLOAT16);                   \
        return;
    switch (count) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
    }
#undef CASE
#undef ROWS
}

/* `count` rows times 32 outputs, into sums [count, 32]. */
static void multiply_by_vectors(int64_t row_bytes, const char *x, const char *matrix, int32_t *sums,
                                int count, int kind) {
    const int64_t passes = (count + VECTOR_ROWS - 1) / VECTOR_ROWS, slice = passes > 1 ? SLICE : row_bytes;
    memset(sums, 0, count * PAIR * sizeof *sums);
    for (int64_t from = 0; from < row_bytes; from += slice, matrix += slice * PAIR)
        for (int64_t i = 0; i < passes; i++) {
            const int64_t left = row_bytes - from, row = count * i / passes, end = count * (i + 1) / passes;
            const char *next = matrix + SLICE * PAIR * (passes + i) / passes;
            pass(row_bytes, left < slice ? left : slice, x + row * row_bytes + from, matrix, next,
                 2 * LINE / passes, (float *)sums + row * PAIR, end - row, kind);
        }
}

#else
#define HAS_VECTORS 0
static void multiply_by_vectors(int64_t row_bytes, const char *x, const char *matrix, int32_t *sums,
                                int count, int kind) {}
#endif

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

static int has_tiles(void) { return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0; }

/* The tiles: sums of the first 16 rows and of the next, their inputs, and the matrix's two. */
#define LEFT 0
#define RIGHT 1
#define LOWER_LEFT 2
#define LOWER_RIGHT 3
#define UPPER_ROWS 4
#define LOWER_ROWS 5
#define MATRIX_LEFT 6
#define MATRIX_RIGHT 7

/* For `upper` of the first 16 rows and `lower` of the next 16. */
static void configure(int upper, int lower) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) tiles.row_bytes[i] = LINE;
    tiles.rows[LEFT] = tiles.rows[RIGHT] = tiles.rows[UPPER_ROWS] = upper;
    tiles.rows[LOWER_LEFT] = tiles.rows[LOWER_RIGHT] = tiles.rows[LOWER_ROWS] = lower ? lower : 1;
    tiles.rows[MATRIX_LEFT] = tiles.rows[MATRIX_RIGHT] = TILE_ROWS;
    _Static_assert(sizeof tiles == LINE, "what the instruction reads");
    __asm__ volatile("ldtilecfg %0" ::"m"(tiles)); /* GCC 12's own says that it reads 8 bytes of them */
}

static void release_tiles(void) { _tile_release(); }

static inline __attribute__((always_inline)) void fetch(const char *matrix, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += LINE) __builtin_prefetch(matrix + AHEAD + at);
}

#define MULTIPLY(sums, rows, matrix)                          \
    if (kind == BFLOAT16) _tile_dpbf16ps(sums, rows, matrix); \
    else _tile_dpbusd(sums, rows, matrix)

static inline __attribute__((always_inline)) void multiply_tiles(
    int64_t row_bytes, const char *x, const char *matrix, int32_t *sums, int has_lower, int kind) {
    _tile_zero(LEFT);
    _tile_zero(RIGHT);
    if (has_lower) _tile_zero(LOWER_LEFT);
    if (has_lower) _tile_zero(LOWER_RIGHT);
    for (int64_t at = 0; at < row_bytes; at += LINE, matrix += 2 * TILE_ROWS * LINE) {
        _tile_loadd(UPPER_ROWS, x + at, row_bytes);
        fetch(matrix, TILE_ROWS * LINE);
        _tile_loadd(MATRIX_LEFT, matrix, 2 * LINE);
        MULTIPLY(LEFT, UPPER_ROWS, MATRIX_LEFT);
        fetch(matrix + TILE_ROWS * LINE, TILE_ROWS * LINE);
        _tile_loadd(MATRIX_RIGHT, matrix + LINE, 2 * LINE);
        MULTIPLY(RIGHT, UPPER_ROWS, MATRIX_RIGHT);
        if (!has_lower) continue;
        _tile_loadd(LOWER_ROWS, x + TILE_ROWS * row_bytes + at, row_bytes);
        MULTIPLY(LOWER_LEFT, LOWER_ROWS, MATRIX_LEFT);
        MULTIPLY(LOWER_RIGHT, LOWER_ROWS, MATRIX_RIGHT);
    }
    _tile_stored(LEFT, sums, 2 * LINE);
    _tile_stored(RIGHT, sums + LANES, 2 * LINE);
    if (has_lower) _tile_stored(LOWER_LEFT, sums + TILE_ROWS * PAIR, 2 * LINE);
    if (has_lower) _tile_stored(LOWER_RIGHT, sums + TILE_ROWS * PAIR + LANES, 2 * LINE);
}

static void multiply_by_tiles(int64_t row_bytes, const char *x, const char *matrix, int32_t *sums,
                              int has_lower, int kind) {
    if (kind == INT8 && has_lower) multiply_tiles(row_bytes, x, matrix, sums, 1, INT8);
    else if (kind == INT8) multiply_tiles(row_bytes, x, matrix, sums, 0, INT8);
    else if (has_lower) multiply_tiles(row_bytes, x, matrix, sums, 1, BFLOAT16);
    else multiply_tiles(row_bytes, x, matrix, sums, 0, BFLOAT16);
}

#else
static int has_tiles(void) { return 0; }
static void configure(int upper, int lower) {}
static void release_tiles(void) {}
static void multiply_by_tiles(int64_t row_bytes, const char *x, const char *matrix, int32_t *sums,
                              int has_lower, int kind) {}
#endif

/* Sums [count, 32], finished, into the columns of y [count, num_outputs] from `first` on. */
static void finish_sums(const Matrix *matrix, const int32_t *sums, int count, int64_t first, char *y) {
    const int64_t num_outputs = matrix->num_outputs;
    const int kind = matrix->kind, is_bf16 = kind == BFLOAT16;
    for (int half = 0; half < 2 && first < num_outputs; half++, first += LANES, sums += LANES) {
        const int64_t left = num_outputs - first, width = left < LANES ? left : LANES;
        vec bias = {}, scale = {};
        uvec offset = {}; /* sums and offsets may overflow: what is left of both fits */
        if (matrix->bias) memcpy(&bias, matrix->bias + first, width * sizeof(float));
        if (kind == INT8) memcpy(&scale, matrix->scales + first, width * sizeof(float));
        if (kind == INT8) memcpy(&offset, matrix->offsets + first, width * sizeof(int32_t));
        for (int row = 0; row < count; row++) {
            const int32_t *sum = sums + row * PAIR;
            char *to = y + row * num_outputs * item_bytes(is_bf16);
            const vec result = kind == INT8
                ? __builtin_convertvector((ivec)(*(const uvec *)sum - offset), vec) * scale
                : *(const vec *)sum + bias;
            if (width == LANES) store(to, first, result, is_bf16);
            else for (int i = 0; i < width; i++) put(to, first + i, result[i], is_bf16);
        }
    }
}

/* Which kinds each unit multiplies on this processor, as far as the system lets this process: [2][3]. */
void find_units(int32_t *takes) {
    const int32_t tiles = has_tiles();
    const int32_t found[] = {HAS_VECTORS, HAS_BF16_VECTORS, HAS_INT8_VECTORS, 0, tiles, tiles};
    memcpy(takes, found, sizeof found);
}

/* x [num_rows, row_bytes] times the matrix, finished, into y [num_rows, num_outputs]: floats, or bfloat16
 * where x is. What a thread does with 32 outputs, it does for all rows: the matrix is read from memory
 * once. */
void multiply(const Matrix *matrix, int64_t num_rows, const char *x, char *y) {
    const int kind = matrix->kind, unit = matrix->unit;
    const int64_t row_bytes = matrix->row_bytes;
    const int64_t out_bytes = matrix->num_outputs * item_bytes(kind == BFLOAT16);
    const int64_t num_blocks = num_rows > MOST_ROWS ? (num_rows + VECTOR_ROWS - 1) / VECTOR_ROWS : 1;
    if (num_rows == 0) return;
    const int64_t block = unit == TILES ? TILES_ROWS : (num_rows + num_blocks - 1) / num_blocks;
#pragma omp parallel
    {
        int32_t sums[MOST_ROWS * PAIR] __attribute__((aligned(LINE)));
        int configured = 0;
#pragma omp for schedule(static) nowait
        for (int64_t output = 0; output < matrix->num_outputs; output += PAIR)
            for (int64_t row = 0; row < num_rows; row += block) {
                const int count = num_rows - row < block ? num_rows - row : block;
                const int lower = count > TILE_ROWS ? count - TILE_ROWS : 0;
                const char *rows = x + row * row_bytes, *packed = matrix->packed + output * row_bytes;
                if (unit == TILES && configured != count) configure(count - lower, lower);
                configured = count;
                if (unit == TILES) multiply_by_tiles(row_bytes, rows, packed, sums, lower > 0, kind);
                else multiply_by_vectors(row_bytes, rows, packed, sums, count, kind);
                finish_sums(matrix, sums, count, output, y + row * out_bytes);
            }
        if (unit == TILES) release_tiles();
    }
}

/* A matrix [num_outputs, row_bytes] as the products read it. */
void pack_matrix(int64_t num_outputs, int64_t row_bytes, const char *matrix, char *packed) {
#pragma omp parallel for
    for (int64_t output = 0; output < num_outputs; output += PAIR)
        for (int64_t at = 0; at < row_bytes; at += 4)
            for (int64_t i = 0; i < PAIR; i++) {
                char *to = packed + output * row_bytes + at * PAIR + i * 4;
                if (output + i < num_outputs) memcpy(to, matrix + (output + i) * row_bytes + at, 4);
                else memset(to, 0, 4);
            }
}
