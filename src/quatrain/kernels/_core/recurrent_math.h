// Data, sigmoid and tanh of the recurrent cells.
#pragma once
#include <type_traits>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "simd.h"

namespace {

using quatrain::lanes;
using quatrain::load;
using quatrain::store;
using quatrain::Vec;
using bf16 = quatrain::BF16;

template <class T> QT_INLINE Vec<T> all(T x) { return quatrain::splat<T>(x); }
QT_INLINE float widen(bf16 x) { return quatrain::widen_bf16(x.bits); }
// Rounded to bfloat16.
QT_INLINE Vec<float> rounded_bf16(Vec<float> v) {
    bf16 part[lanes<float>];
    quatrain::narrow_all(part, v);
    return quatrain::widen_all(part);
}

// Data of type IO as compute type T; count < lanes leaves the rest 0 or untouched.
template <class T, class IO> struct Data {
    static QT_INLINE Vec<T> get(const IO* p) { return quatrain::load_as<T, IO>(p); }
    static QT_INLINE void put(IO* p, Vec<T> v) { quatrain::store_as<T, IO>(p, v); }
};
template <class T, class IO> QT_INLINE Vec<T> get(const IO* p, int64_t count) {
    if (__builtin_expect(count >= lanes<T>, 1)) return Data<T, IO>::get(p);
    IO part[lanes<T>] = {};
    for (int64_t i = 0; i < count; ++i) part[i] = p[i];
    return Data<T, IO>::get(part);
}
template <class T, class IO> QT_INLINE void put(IO* p, Vec<T> v, int64_t count) {
    if (__builtin_expect(count >= lanes<T>, 1)) return Data<T, IO>::put(p, v);
    IO part[lanes<T>];
    Data<T, IO>::put(part, v);
    for (int64_t i = 0; i < count; ++i) p[i] = part[i];
}

QT_INLINE Vec<double> reciprocal(Vec<double> d) { return 1.0 / d; }
QT_INLINE Vec<float> reciprocal(Vec<float> d) {
#if defined(__AVX512F__)
    Vec<float> r = (Vec<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)d);
    return r * (2.0f - d * r);  // 14 bits, then 28
#else
    return 1.0f / d;
#endif
}

// e^r - 1 for |r| <= ln(2) / 2, by its Taylor series.
QT_INLINE Vec<float> exp_tail(Vec<float> r) {
    Vec<float> p = r * (1.f / 5040) + 1.f / 720;
    p = p * r + 1.f / 120;
    p = p * r + 1.f / 24;
    p = p * r + 1.f / 6;
    p = p * r + 0.5f;
    return p * (r * r) + r;
}
QT_INLINE Vec<double> exp_tail(Vec<double> r) {
    Vec<double> p = r * (1. / 6227020800) + 1. / 479001600;
    p = p * r + 1. / 39916800;
    p = p * r + 1. / 3628800;
    p = p * r + 1. / 362880;
    p = p * r + 1. / 40320;
    p = p * r + 1. / 5040;
    p = p * r + 1. / 720;
    p = p * r + 1. / 120;
    p = p * r + 1. / 24;
    p = p * r + 1. / 6;
    p = p * r + 0.5;
    return p * (r * r) + r;
}
template <class T> struct Float;
template <> struct Float<float> {
    static constexpr float magic = 12582912.f, high = 0.693359375f, low = -2.12194440e-4f, limit = 80.f;
    static constexpr int shift = 23;
};
template <> struct Float<double> {
    static constexpr double magic = 6755399441055744., high = 6.93147180369123816490e-01,
                            low = 1.90821492927058770002e-10, limit = 700.;
    static constexpr int shift = 52;
};
// x = n ln 2 + r: returns 2^n and e^r - 1. |x| is cut at limit, where sigmoid and tanh are flat.
template <class T> QT_INLINE Vec<T> exp_parts(Vec<T> x, Vec<T>& tail) {
    using F = Float<T>;
    using Bits = quatrain::Int<T>;
    x = x > F::limit ? all<T>(F::limit) : x;
    x = x < -F::limit ? all<T>(-F::limit) : x;
    Vec<T> n = x * T(1.44269504088896340736) + F::magic;
    Bits whole = (Bits)n << F::shift;
    n = n - F::magic;
    tail = exp_tail((x - n * F::high) - n * F::low);  // NaN stays NaN here
    return (Vec<T>)((Bits)all<T>(T(1)) + whole);
}
#if defined(__AVX512F__)
// The same for float32 with fewer instructions: x log2(e) = n + f with f as the hardware gives it.
QT_INLINE Vec<float> exp2_parts(Vec<float> t, Vec<float>& tail) {
    const __m512 low = _mm512_set1_ps(-150.f), high = _mm512_set1_ps(120.f);
    t = (Vec<float>)_mm512_max_ps(low, _mm512_min_ps(high, (__m512)t));  // this way round NaN stays
    Vec<float> n = (Vec<float>)_mm512_roundscale_ps((__m512)t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = t - n;
    // 2^f - 1 = f P(f), from the Taylor series of e^(f ln 2): 1e-8 of it
    Vec<float> p = f * 1.5252733e-5f + 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    tail = p * f;
    return (Vec<float>)_mm512_scalef_ps(_mm512_set1_ps(1.f), (__m512)n);
}
template <class T> QT_INLINE Vec<T> exp_minus(Vec<T> x, Vec<T>& tail) {
    if constexpr (std::is_same_v<T, float>) return exp2_parts(x * -1.44269504f, tail);
    else return exp_parts<T>(-x, tail);
}
template <class T> QT_INLINE Vec<T> exp_twice(Vec<T> x, Vec<T>& tail) {
    if constexpr (std::is_same_v<T, float>) {
        return exp2_parts(x * 2.88539008f, tail);
    } else {
        return exp_parts<T>(x + x > T(44) ? all<T>(T(44)) : x + x, tail);
    }
}
#else
template <class T> QT_INLINE Vec<T> exp_minus(Vec<T> x, Vec<T>& tail) { return exp_parts<T>(-x, tail); }
template <class T> QT_INLINE Vec<T> exp_twice(Vec<T> x, Vec<T>& tail) {
    return exp_parts<T>(x + x > T(44) ? all<T>(T(44)) : x + x, tail);
}
#endif

template <class T> QT_INLINE Vec<T> sigmoid(Vec<T> x) {
    Vec<T> tail, scale = exp_minus<T>(x, tail);
    return reciprocal(scale * tail + (scale + T(1)));
}
template <class T> QT_INLINE Vec<T> tanh(Vec<T> x) {  // (e^2x - 1) / (e^2x + 1), exact to a few ulps also near 0
    Vec<T> tail, scale = exp_twice<T>(x, tail);
    Vec<T> less = scale * tail + (scale - T(1));
    return less * reciprocal(less + T(2));
}

}  // namespace
