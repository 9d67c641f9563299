/* Routing on a CPU without votes in memory: compiled on first use by capsbench.native, called by capsbench.routing.compiled. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

#define INLINE static inline __attribute__((always_inline))

#define LANES 8   /* numbers in a vector, and what J is padded to a multiple of */
#define SAMPLES 4 /* that share one reading of the weights in backward */

/* Any lanes of two vectors; where a compiler has no word for it, numbers are moved one by one. */
#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE __builtin_shufflevector
#endif
#endif

/* e^x in single precision, in a form that compilers turn into vector instructions: 2^n · e^r with |r| <= ln 2 / 2, e^r by
 * its Taylor series to r^7, whose next term is below 6e-9. Its argument is at most 0 here. NaN stays NaN. */
static inline float exp_of(float x) {
    x = x < -87 ? -87 : x;
    const float n = __builtin_rintf(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts, the first exact in products */
    float series = 1.f / 5040;
    series = series * r + 1.f / 720;
    series = series * r + 1.f / 120;
    series = series * r + 1.f / 24;
    series = series * r + 1.f / 6;
    series = series * r + 0.5f;
    series = series * r + 1;
    series = series * r + 1;
    union { int32_t bits; float value; } scale = {((int32_t)n + 127) << 23};
    return series * scale.value;
}

/* One call for each of the paper's layers, and one for all others: with K, D and P known, the compiler unrolls loops. */
#define SIZED(pass, ...)                   \
    if (K == 8 && D == 8 && P == 32)       \
        pass(__VA_ARGS__, 8, J, 8, 32);    \
    else if (K == 8 && D == 16 && P == 16) \
        pass(__VA_ARGS__, 8, J, 16, 16);   \
    else                                   \
        pass(__VA_ARGS__, K, J, D, P);
#define REAL float
#define TINY FLT_MIN
#define SQRT sqrtf
#define EXP exp_of
#define NAME(x) x##_float
#include "votes.inc"
#undef SIZED
#undef REAL
#undef TINY
#undef SQRT
#undef EXP
#undef NAME

#define SIZED(pass, ...) pass(__VA_ARGS__, K, J, D, P);
#define REAL double
#define TINY DBL_MIN
#define SQRT sqrt
#define EXP exp
#define NAME(x) x##_double
#include "votes.inc"
