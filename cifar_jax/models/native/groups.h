// Weights laid out for the loops, and sums over a batch that do not depend on the number of threads: the images are dealt into
// groups, and each group's sums are added in their order.
#pragma once

#include "vectors.h"

enum { GROUPS = 32 };

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Group `group` of a batch has the images from here to where the next one's begin.
static int64_t first_image(int64_t group, int64_t batch) { return group * batch / min(GROUPS, batch); }

// Weights have rows of whole vectors, zeros at their ends.
// matrix (m x n) -> (m x width)
static REAL* widen(const REAL* matrix, int64_t m, int64_t n, int64_t width) {
  REAL* wide = zeros(m * width, sizeof(REAL));
  for (int64_t i = 0; i < m; i++) memcpy(wide + i * width, matrix + i * n, n * sizeof(REAL));
  return wide;
}

// matrix (m x n) -> its transpose (n x width)
static REAL* transpose(const REAL* matrix, int64_t m, int64_t n, int64_t width) {
  REAL* turned = zeros(n * width, sizeof(REAL));
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) turned[j * width + i] = matrix[i * n + j];
  return turned;
}

// The rows in reverse.
static REAL* reverse(const REAL* matrix, int64_t rows, int64_t width) {
  REAL* turned = zeros(rows * width, sizeof(REAL));
  for (int64_t i = 0; i < rows; i++) memcpy(turned + i * width, matrix + (rows - 1 - i) * width, width * sizeof(REAL));
  return turned;
}

// Adds the groups' sums: rows of `width` numbers, of which n count.
static void add_groups(REAL* to, const REAL* sums, int64_t groups, int64_t apart, int64_t m, int64_t n, int64_t width) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      REAL sum = 0;
      for (int64_t group = 0; group < groups; group++) sum += sums[group * apart + i * width + j];
      to[i * n + j] = sum;
    }
}
