// Numbers and vectors: REAL is float unless the build says double; a Vector is the widest the machine adds at once.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE_ROWS 12  // 24 sums, 2 columns: 26 of 32 registers
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define TILE_ROWS 6  // 12 sums, 2 columns: 14 of 16 registers
#else
#define VECTOR_BYTES 16
#define TILE_ROWS 6
#endif

#define LANES ((int64_t)(VECTOR_BYTES / sizeof(REAL)))
#define INLINE static inline __attribute__((always_inline))

// Aligned like its elements: loads and stores may start anywhere.
typedef REAL Vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

// Whole numbers as wide as REAL.
typedef __typeof__(__builtin_choose_expr(sizeof(REAL) == 4, (int32_t)0, (int64_t)0)) Integer;
typedef Integer Integers __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef __typeof__(__builtin_choose_expr(sizeof(REAL) == 4, (uint32_t)0, (uint64_t)0)) Unsigned;
typedef Unsigned Naturals __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));

INLINE Vector load(const REAL* from) { return *(const Vector*)from; }
INLINE void store(REAL* to, Vector value) { *(Vector*)to = value; }
// Where condition > 0, value; else 0.
INLINE Vector where_positive(Vector condition, Vector value) {
  return (Vector)((Integers)value & (Integers)(condition > (Vector){0}));
}
INLINE Vector splat(REAL value) { return value - (Vector){0}; }

// `count` times `size` bytes of zeros; where there is no memory the process ends.
static void* zeros(int64_t count, size_t size) {
  void* memory = calloc(count, size);
  if (!memory && count) abort();
  return memory;
}

// Channels rounded up to whole vectors: the width of a row in scratch memory.
INLINE int64_t padded(int64_t channels) { return (channels + LANES - 1) / LANES * LANES; }
