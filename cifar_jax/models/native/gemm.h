// Matrix products of operands that lie in cache: of REAL or, in a build for bfloat16, of pairs of bfloat16 with sums of REAL.
//
// A pair, two neighbours along the depth, takes the place of a REAL, so that rows keep their distance and half as many are left.
#pragma once

#include "stored.h"

#if defined(BFLOAT16) && defined(__AVX512BF16__)

INLINE int64_t pairs(int64_t depth) { return (depth + 1) / 2; }

// sum + a b, of the pair at `a` and each one at `b`.
INLINE Vector multiply_add(Vector sum, const REAL* a, const REAL* b) {
  int32_t pair;
  memcpy(&pair, a, sizeof pair);
  return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)load(b));
}

INLINE __m512 load_some(const REAL* from, int64_t count) {
  return _mm512_maskz_loadu_ps(count >= LANES ? 0xffff : count < 1 ? 0 : (1 << count) - 1, from);
}

// Operands whose depth runs along the rows: `count` rows of `depth` numbers, `apart` from each other; `to` may be `rows`.
static const REAL* pair_along(const REAL* rows, int64_t count, int64_t depth, int64_t apart, REAL* to) {
  for (int64_t n = 0; n < count; n++)
    for (int64_t i = 0; i < depth; i += 2 * LANES) {
      const REAL* from = rows + n * apart + i;
      const __m512bh both = _mm512_cvtne2ps_pbh(load_some(from + LANES, depth - i - LANES), load_some(from, depth - i));
      _mm512_mask_storeu_ps(to + n * apart + i / 2, depth - i > LANES ? 0xffff : 0xff, (__m512)both);
    }
  return to;
}

// Operands whose depth runs across the rows: `depth` rows of `width` numbers, whole vectors; `to` may be `rows`.
static const REAL* pair_across(const REAL* rows, int64_t depth, int64_t width, REAL* to) {
  for (int64_t n = 0; n < depth; n += 2)
    for (int64_t i = 0; i < width; i += LANES) {
      const REAL* from = rows + n * width + i;
      const __m512 next = n + 1 < depth ? (__m512)load(from + width) : _mm512_setzero_ps();
      const __m512i first = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load(from)));
      const __m512i second = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(next));
      store(to + n / 2 * width + i, (Vector)_mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
    }
  return to;
}

#else

INLINE int64_t pairs(int64_t depth) { return depth; }
INLINE Vector multiply_add(Vector sum, const REAL* a, const REAL* b) { return sum + splat(*a) * load(b); }
INLINE const REAL* pair_along(const REAL* rows, int64_t count, int64_t depth, int64_t apart, REAL* to) { return rows; }
INLINE const REAL* pair_across(const REAL* rows, int64_t depth, int64_t width, REAL* to) { return rows; }

#endif

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
      for (int j = 0; j < columns; j++) sums[i][j] = multiply_add(sums[i][j], a + i * a_row, b + j * LANES);
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

// c (m x n) = or += a (m x depth) b (depth x n), n a multiple of LANES. a may lie by rows or by columns. Operands whose depth runs
// along rows have gone through pair_along, the others through pair_across.
static void gemm(int64_t m, int64_t n, int64_t depth, const REAL* a, int64_t a_row, int64_t a_depth,
                 const REAL* b, int64_t b_depth, REAL* c, int64_t c_row, int add) {
  depth = pairs(depth);
  int64_t j = 0;
  for (; j + 2 * LANES <= n; j += 2 * LANES)
    gemm_columns(2, m, depth, a, a_row, a_depth, b + j, b_depth, c + j, c_row, add);
  if (j < n) gemm_columns(1, m, depth, a, a_row, a_depth, b + j, b_depth, c + j, c_row, add);
}
