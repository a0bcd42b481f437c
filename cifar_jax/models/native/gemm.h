// Matrix products of operands that lie in cache.
#pragma once

#include "vectors.h"

// rows x (columns * LANES) sums held in registers; `rows` and `columns` are constants where this is inlined.
INLINE void gemm_tile(int rows, int columns, int64_t depth, const REAL* a, int64_t a_row, int64_t a_depth,
                      const REAL* b, int64_t b_depth, REAL* c, int64_t c_row, int add) {
  Vector sums[TILE_ROWS][2];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int j = 0; j < columns; j++) sums[i][j] = add ? load(c + i * c_row + j * LANES) : (Vector){0};
  for (int64_t k = 0; k < depth; k++, a += a_depth, b += b_depth) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
      for (int j = 0; j < columns; j++) sums[i][j] += splat(a[i * a_row]) * load(b + j * LANES);
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int j = 0; j < columns; j++) store(c + i * c_row + j * LANES, sums[i][j]);
}

INLINE void gemm_columns(int columns, int64_t m, int64_t depth, const REAL* a, int64_t a_row, int64_t a_depth,
                         const REAL* b, int64_t b_depth, REAL* c, int64_t c_row, int add) {
  int64_t i = 0;
  for (; i + TILE_ROWS <= m; i += TILE_ROWS)
    gemm_tile(TILE_ROWS, columns, depth, a + i * a_row, a_row, a_depth, b, b_depth, c + i * c_row, c_row, add);
  for (; i + 4 <= m; i += 4)
    gemm_tile(4, columns, depth, a + i * a_row, a_row, a_depth, b, b_depth, c + i * c_row, c_row, add);
  for (; i < m; i++)
    gemm_tile(1, columns, depth, a + i * a_row, a_row, a_depth, b, b_depth, c + i * c_row, c_row, add);
}

// c (m x n) = or += a (m x depth) b (depth x n), n a multiple of LANES. a may lie by rows or by columns.
static void gemm(int64_t m, int64_t n, int64_t depth, const REAL* a, int64_t a_row, int64_t a_depth,
                 const REAL* b, int64_t b_depth, REAL* c, int64_t c_row, int add) {
  int64_t j = 0;
  for (; j + 2 * LANES <= n; j += 2 * LANES)
    gemm_columns(2, m, depth, a, a_row, a_depth, b + j, b_depth, c + j, c_row, add);
  if (j < n) gemm_columns(1, m, depth, a, a_row, a_depth, b + j, b_depth, c + j, c_row, add);
}
