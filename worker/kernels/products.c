/* Products of rows and a packed matrix on processors with tiles (Intel AMX): one instruction multiplies
 * 16 rows of 32 bfloat16 or of 64 bytes with 16 of a matrix's outputs.
 *
 * A product is summed over the inputs tile by tile, from the first to the last, however many rows there
 * are: a row's result has the same bits in any company.
 *
 * Packed is a matrix as tiles read it: [outputs / 16][row_bytes / 4][16][4 bytes], the outputs filled up
 * with zeros to a multiple of 32. A row of inputs has `row_bytes`, a multiple of 64.
 */

#include "vector.h"

#define TILE_ROWS 16
#define LINE 64 /* bytes of a tile's row */
#define TILE (TILE_ROWS * LINE)
#define PAIR 32    /* outputs, of two tiles side by side: products that don't wait for each other */
#define AHEAD 2048 /* bytes of the matrix to fetch early: 1.2 times as fast as without, at 1 to 16 rows */

/* What a sum becomes: bfloat16(sum + bias), where there is a bias; or, of unsigned bytes and signed ones,
 * the float (sum - offset) * scale. */
typedef struct {
    const float *bias, *scales; /* [outputs] */
    const int32_t *offsets;
} Finish;

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

/* The tiles: sums of the first 16 rows and of the next, their inputs, and the matrix's two. */
#define SUMS 0
#define SUMS_RIGHT 1
#define LOWER_SUMS 2
#define LOWER_SUMS_RIGHT 3
#define ROWS 4
#define LOWER_ROWS 5
#define MATRIX 6
#define MATRIX_RIGHT 7

/* Whether there are tiles, and the system lets this process use them. */
void ask_for_tiles(int32_t *are_there) {
    *are_there = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* `upper` of the first 16 rows and `lower` of the next 16. */
static void configure(int upper, int lower) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) tiles.row_bytes[i] = LINE;
    tiles.rows[SUMS] = tiles.rows[SUMS_RIGHT] = tiles.rows[ROWS] = upper;
    tiles.rows[LOWER_SUMS] = tiles.rows[LOWER_SUMS_RIGHT] = tiles.rows[LOWER_ROWS] = lower ? lower : 1;
    tiles.rows[MATRIX] = tiles.rows[MATRIX_RIGHT] = TILE_ROWS;
    _tile_loadconfig(&tiles);
}

static inline __attribute__((always_inline)) void fetch(const char *tile) {
    for (int line = 0; line < TILE; line += LINE) __builtin_prefetch(tile + AHEAD + line);
}

#define MULTIPLY(sums, rows, matrix)                   \
    if (is_bf16) _tile_dpbf16ps(sums, rows, matrix);   \
    else _tile_dpbusd(sums, rows, matrix)

/* Up to 32 rows times 32 outputs, into the tiles of sums. */
static inline __attribute__((always_inline)) void multiply_pair(
    int64_t row_bytes, const char *x, const char *matrix, int has_lower, int is_first, int is_bf16) {
    const char *right = matrix + row_bytes * TILE_ROWS;
    _tile_zero(SUMS);
    _tile_zero(SUMS_RIGHT);
    if (has_lower) _tile_zero(LOWER_SUMS);
    if (has_lower) _tile_zero(LOWER_SUMS_RIGHT);
    for (int64_t at = 0; at < row_bytes; at += LINE) {
        if (is_first) fetch(matrix + at * TILE_ROWS);
        _tile_loadd(ROWS, x + at, row_bytes);
        _tile_loadd(MATRIX, matrix + at * TILE_ROWS, LINE);
        MULTIPLY(SUMS, ROWS, MATRIX);
        if (is_first) fetch(right + at * TILE_ROWS);
        _tile_loadd(MATRIX_RIGHT, right + at * TILE_ROWS, LINE);
        MULTIPLY(SUMS_RIGHT, ROWS, MATRIX_RIGHT);
        if (!has_lower) continue;
        _tile_loadd(LOWER_ROWS, x + TILE_ROWS * row_bytes + at, row_bytes);
        MULTIPLY(LOWER_SUMS, LOWER_ROWS, MATRIX);
        MULTIPLY(LOWER_SUMS_RIGHT, LOWER_ROWS, MATRIX_RIGHT);
    }
}

/* Sums [rows, 16], finished, into up to 16 columns of y [rows, num_outputs] from `first` on. */
static inline __attribute__((always_inline)) void write_sums(
    const char *sums, int rows, int64_t first, int64_t num_outputs, const Finish *finish, char *y,
    int is_bf16) {
    const int64_t row_bytes = num_outputs * item_bytes(is_bf16), left = num_outputs - first;
    const size_t count = left < LANES ? left : LANES;
    vec bias = {}, scale = {};
    ivec offset = {};
    if (is_bf16 && finish->bias) memcpy(&bias, finish->bias + first, count * sizeof(float));
    if (!is_bf16) memcpy(&scale, finish->scales + first, count * sizeof(float));
    if (!is_bf16) memcpy(&offset, finish->offsets + first, count * sizeof(int32_t));
    for (int row = 0; row < rows; row++, sums += LINE, y += row_bytes) {
        const vec result = is_bf16
            ? *(const vec *)sums + bias
            : __builtin_convertvector(*(const ivec *)sums - offset, vec) * scale;
        if (count == LANES) store(y, first, result, is_bf16);
        else for (size_t i = 0; i < count; i++) put(y, first + i, result[i], is_bf16);
    }
}

/* What each thread does with a pair of the matrix's tiles, it does for all rows: the matrix is read from
 * memory once. */
static inline __attribute__((always_inline)) void multiply(
    int64_t num_rows, int64_t num_outputs, int64_t row_bytes, const char *x, const char *packed,
    Finish finish, char *y, int is_bf16) {
#pragma omp parallel
    {
        char sums[4][TILE] __attribute__((aligned(LINE)));
        int configured = 0;
#pragma omp for schedule(static) nowait
        for (int64_t output = 0; output < num_outputs; output += PAIR)
            for (int64_t row = 0; row < num_rows; row += 2 * TILE_ROWS) {
                const int64_t left = num_rows - row;
                const int upper = left < TILE_ROWS ? left : TILE_ROWS;
                const int lower = left - upper < TILE_ROWS ? left - upper : TILE_ROWS;
                if (configured != upper + lower) configure(upper, lower);
                configured = upper + lower;
                const char *rows = x + row * row_bytes, *matrix = packed + output * row_bytes;
                if (lower) multiply_pair(row_bytes, rows, matrix, 1, row == 0, is_bf16);
                else multiply_pair(row_bytes, rows, matrix, 0, row == 0, is_bf16);
                _tile_stored(SUMS, sums[0], LINE);
                _tile_stored(SUMS_RIGHT, sums[1], LINE);
                if (lower) _tile_stored(LOWER_SUMS, sums[2], LINE);
                if (lower) _tile_stored(LOWER_SUMS_RIGHT, sums[3], LINE);
                for (int part = 0; part < (lower ? 4 : 2); part++) {
                    const int64_t first = output + part % 2 * LANES, to = row + part / 2 * TILE_ROWS;
                    if (first >= num_outputs) continue;
                    write_sums(sums[part], part < 2 ? upper : lower, first, num_outputs, &finish,
                               y + to * num_outputs * item_bytes(is_bf16), is_bf16);
                }
            }
        _tile_release();
    }
}

/* x [num_rows, inputs] times the packed matrix plus the bias, if there is one, into y [num_rows,
 * num_outputs], in bfloat16. */
void multiply_bf16(int64_t num_rows, int64_t num_outputs, int64_t row_bytes, const char *x,
                   const char *packed, const float *bias, char *y) {
    multiply(num_rows, num_outputs, row_bytes, x, packed, (Finish){.bias = bias}, y, 1);
}

/* The same of unsigned bytes and a matrix of signed ones, into floats: (sums - offsets) * scales. */
void multiply_int8(int64_t num_rows, int64_t num_outputs, int64_t row_bytes, const char *x,
                   const char *packed, const int32_t *offsets, const float *scales, char *y) {
    const Finish finish = {.offsets = offsets, .scales = scales};
    multiply(num_rows, num_outputs, row_bytes, x, packed, finish, y, 0);
}

#else

void ask_for_tiles(int32_t *are_there) { *are_there = 0; }

void multiply_bf16(int64_t num_rows, int64_t num_outputs, int64_t row_bytes, const char *x,
                   const char *packed, const float *bias, char *y) {}

void multiply_int8(int64_t num_rows, int64_t num_outputs, int64_t row_bytes, const char *x,
                   const char *packed, const int32_t *offsets, const float *scales, char *y) {}

#endif

/* A matrix [num_outputs, row_bytes] as the products read it. */
void pack_matrix(int64_t num_outputs, int64_t row_bytes, const char *matrix, char *packed) {
    const int64_t filled = (num_outputs + PAIR - 1) / PAIR * PAIR;
#pragma omp parallel for
    for (int64_t output = 0; output < filled; output += TILE_ROWS)
        for (int64_t at = 0; at < row_bytes; at += 4)
            for (int64_t i = 0; i < TILE_ROWS; i++) {
                char *to = packed + output * row_bytes + at * TILE_ROWS + i * 4;
                if (output + i < num_outputs) memcpy(to, matrix + (output + i) * row_bytes + at, 4);
                else memset(to, 0, 4);
            }
}
