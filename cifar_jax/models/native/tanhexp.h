// TanhExp, value * tanh(exp(value)) (arXiv:2003.09855), in vectors. Relative errors of exp and tanh, for values from -85 to 4:
// 3 units in the last place of a float, 14 of a double; 43 where the machine has no fused multiply-add, most of them below -30.
#pragma once

#include "vectors.h"

enum { IS_FLOAT = sizeof(REAL) == 4, MANTISSA = IS_FLOAT ? 23 : 52, BIAS = IS_FLOAT ? 127 : 1023, TERMS = IS_FLOAT ? 7 : 13 };

// A compiler that may take sums in any order must not see through this.
#if defined(__x86_64__)
#define KEEP(value) __asm__("" : "+v"(value))
#elif defined(__aarch64__)
#define KEEP(value) __asm__("" : "+w"(value))
#else
#define KEEP(value) __asm__("" : "+m"(value))
#endif

INLINE Vector choose(Integers condition, Vector yes, Vector no) {
  return (Vector)((condition & (Integers)yes) | (~condition & (Integers)no));
}

// exp(x) as scale * (1 + rest), for x from -86 to 88: scale is a power of 2, |rest| < 0.42. A NaN gives a rest of NaN.
INLINE void split_exp(Vector x, Vector* scale, Vector* rest) {
  enum { OFFSET = 128 };  // makes what is cut off to an integer positive
  const Integers shifted = __builtin_convertvector(x * (REAL)1.4426950408889634 + (REAL)(OFFSET + 0.5), Integers);
  const Naturals power = (Naturals)shifted - OFFSET;  // unsigned: a NaN's may be any
  const Vector r = x - __builtin_convertvector((Integers)power, Vector) * (REAL)0.6931471805599453;
  Vector sum = splat(1);
#pragma GCC unroll 16
  for (int n = TERMS; n > 1; n--) sum = 1 + sum * r * (REAL)(1.0 / n);  // Taylor's series
  *rest = sum * r;
  *scale = (Vector)((power + BIAS) << MANTISSA);
}

// exp(value), limited to where tanh of it is 1, and tanh(exp(value)).
INLINE void tanh_exp(Vector value, Vector* exp, Vector* factor) {
  const REAL lowest = -85, highest = 4;  // exp of less is taken for 0: for -88 a float's is no normal number
  Vector limited = choose((Integers)(value > highest), splat(highest), value), scale, rest;
  limited = choose((Integers)(limited < lowest), splat(lowest), limited);
  split_exp(limited, &scale, &rest);
  *exp = choose((Integers)(value < lowest), (Vector){0}, scale + scale * rest);
  const REAL most = 40;  // tanh(20) is 1
  const Vector twice = *exp + *exp;
  split_exp(choose((Integers)(twice > most), splat(most), twice), &scale, &rest);
  Vector less = scale - 1;
  KEEP(less);
  const Vector minus_one = less + scale * rest;  // exp(2 exp(value)) - 1, exact where that is small
  *factor = minus_one / (minus_one + 2);
}
