// Numbers as XLA's arrays hold images and their gradients: REAL or, where the build says so, bfloat16. All arithmetic is of REAL
// but that of matrix products, where the machine has instructions for them (gemm.h); weights and sums are REAL always. Those
// instructions take a number below 1e-38 for 0, by which rows of bfloat16 may differ at their ends.
#pragma once

#include "vectors.h"

#ifdef BFLOAT16

typedef uint16_t STORED;  // the upper half of a float
typedef STORED Halves __attribute__((vector_size(VECTOR_BYTES / 2), aligned(sizeof(STORED)), may_alias));

INLINE REAL read_one(STORED value) {
  const uint32_t bits = (uint32_t)value << 16;
  REAL number;
  memcpy(&number, &bits, sizeof number);
  return number;
}
// The nearest, of two the even one; a NaN stays one.
INLINE STORED write_one(REAL value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return (bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : nearest;
}

INLINE Vector read(const STORED* from) { return (Vector)(__builtin_convertvector(*(const Halves*)from, Naturals) << 16); }
#ifdef __AVX512BF16__
#include <immintrin.h>
INLINE void write(STORED* to, Vector value) { *(Halves*)to = (Halves)_mm512_cvtneps_pbh((__m512)value); }
#else
INLINE void write(STORED* to, Vector value) {
  const Naturals bits = (Naturals)value, nan = (Naturals)((bits & 0x7fffffff) > 0x7f800000);
  const Naturals nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  *(Halves*)to = __builtin_convertvector((nan & (bits >> 16 | 0x40)) | (~nan & nearest), Halves);
}
#endif

INLINE void read_row(REAL* to, const STORED* from, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(to + i, read(from + i));
  for (; i < count; i++) to[i] = read_one(from[i]);
}
INLINE void write_row(STORED* to, const REAL* from, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) write(to + i, load(from + i));
  for (; i < count; i++) to[i] = write_one(from[i]);
}

#else

typedef REAL STORED;

INLINE Vector read(const STORED* from) { return load(from); }
INLINE REAL read_one(STORED value) { return value; }
INLINE STORED write_one(REAL value) { return value; }
INLINE void read_row(REAL* to, const STORED* from, int64_t count) { memcpy(to, from, count * sizeof(REAL)); }
INLINE void write_row(STORED* to, const REAL* from, int64_t count) { memcpy(to, from, count * sizeof(REAL)); }

#endif
