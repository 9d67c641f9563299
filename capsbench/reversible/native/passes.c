/* Passes over memory of a reversible stack: compiled on first use by capsbench.native, called by capsbench.reversible.passes.
 *
 * The exact inverse has one each way. fixed_point.py and pair.py have the same steps as operators of torch, which are the
 * specification: both give the same bits.
 * x, v and the store are int64 [count], changed in place, x and v in units of 2^-50. A product with n/d keeps what it drops in the
 * store. */
#include <math.h>
#include <stdint.h>

#if defined(__AVX512DQ__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512") /* whole registers: gcc takes halves, for the sake of code with few vectors */
#endif

#define INLINE static inline __attribute__((always_inline))

/* a to the nearest whole number, halves to the even one, below 2^52 in magnitude by adding 2^52 · 1.5 and taking it off again; gcc
 * turns rint and a cast into a scalar instruction. The sum of a number below 2^51 with it has no bit below 1. */
INLINE double nearest(double a) { return (a + 0x1.8p52) - 0x1.8p52; }

/* A float64 in units, as torch's round and conversion. From 2^51 up, halves and quarters are not near: see nearest. */
INLINE int64_t whole(double a) {
    const double size = fabs(a), up = 0x1p52;
    const double near = size < up ? __builtin_copysign((size + up) - up, a) : a;
    return (int64_t)near;
}

/* floor(a / d), and the rest, for |a| < 2^63 and 2 <= d <= 2^16, in two steps of float64, which vectorise as a 64-bit division does
 * not; inverse = 1/d.
 *
 * First step: a, 1/d and their product are rounded, each by a factor of at most 1 + 2^-53, and |a/d| <= 2^62, so that the product
 * is off by less than 3.1 · 2^-53 · 2^62 < 1,600, and `rough` by 1 more. Hence |left| < 1,601·d < 2^27: it is exact, since integers
 * wrap round and the difference is small, and it is exact as a float64.
 * Second step: |left/d| < 1,601, so that the product is off by less than 2^-41, and |left - more·d| <= d/2 + 2^-25, which for an
 * integer is |left - more·d| <= d/2 < d. One correction makes it at least 0. */
INLINE int64_t divide(int64_t a, int64_t d, double inverse, int64_t *rest) {
    const int64_t rough = (int64_t)((double)a * inverse);
    const double left = (double)(int64_t)((uint64_t)a - (uint64_t)rough * (uint64_t)d), more = nearest(left * inverse);
    const double over = left - more * (double)d;
    *rest = (int64_t)(over < 0 ? over + (double)d : over);
    return rough + (int64_t)(over < 0 ? more - 1 : more);
}

/* As divide, where the divisor may be 1: `one` is a constant after inlining. */
INLINE int64_t divide_any(int64_t a, int64_t d, double inverse, int64_t *rest, int one) {
    *rest = 0;
    return one ? a : divide(a, d, inverse, rest);
}

/* Sums of values that leave the range wrap round; the caller sees by the peaks that they did. */
INLINE int64_t plus(int64_t a, int64_t b) { return (int64_t)((uint64_t)a + (uint64_t)b); }
INLINE int64_t minus(int64_t a, int64_t b) { return (int64_t)((uint64_t)a - (uint64_t)b); }
INLINE int64_t times(int64_t a, int64_t b) { return (int64_t)((uint64_t)a * (uint64_t)b); }

#define REAL float
#define ABS fabsf
#define NAME(x) x##_float
#include "passes.inc"
#undef REAL
#undef ABS
#undef NAME

#define REAL double
#define ABS fabs
#define NAME(x) x##_double
#include "passes.inc"
