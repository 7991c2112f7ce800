// Float vectors over float or bfloat16 in memory, ragged ends included: simd.h as the steps of generation use it.
#pragma once
#include <cmath>

#include "simd.h"
#include "vmath.h"

namespace {

using bf16 = quatrain::BF16;
using F = quatrain::Vec<float>;
constexpr int W = quatrain::lanes<float>;
typedef uint32_t U __attribute__((vector_size(4 * W)));

template <class T> QT_INLINE float get(const T* p) { return quatrain::get<float>(p); }
template <class T> QT_INLINE void set(T* p, float x) { quatrain::put<float>(p, x); }
QT_INLINE F all(float x) { return quatrain::splat(x); }

template <class T> QT_INLINE F load(const T* p) { return quatrain::load_as<float>(p); }
template <class T> QT_INLINE void store(T* p, F x) { quatrain::store_as<float>(p, x); }
template <class T> QT_INLINE F load(const T* p, int64_t left) {  // the rest is 0
    if (left >= W) return load(p);
    T part[W] = {};
    for (int64_t i = 0; i < left; ++i) part[i] = p[i];
    return load(part);
}
template <class T> QT_INLINE void store(T* p, F x, int64_t left) {
    if (left >= W) return store(p, x);
    T part[W];
    store(part, x);
    for (int64_t i = 0; i < left; ++i) p[i] = part[i];
}

// Halves added to halves.
typedef float F4 __attribute__((vector_size(16)));
typedef float F8 __attribute__((vector_size(32)));
QT_INLINE float sum(F4 x) {
    const F4 two = x + __builtin_shufflevector(x, x, 2, 3, 0, 1);
    return two[0] + two[1];
}
#if QT_BYTES >= 32
QT_INLINE float sum(F8 x) {
    return sum(__builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7));
}
#endif
#if QT_BYTES >= 64
QT_INLINE float sum(F x) {
    return sum(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
}
#endif

QT_INLINE F exp(F x) { return quatrain::vexp<float>(x); }
QT_INLINE F silu(F x) {
    const F e = exp(-quatrain::vabs<float>(x));  // never too large
    return x * ((x < 0.f ? e : all(1)) / (1.f + e));
}
QT_INLINE F softplus(F x) { return quatrain::vsoftplus<float>(x); }

}  // namespace
