// One vector of the instruction set that this file is compiled for, by GNU vector extensions.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define QT_BYTES 64
#elif defined(__AVX2__)
#define QT_BYTES 32
#else
#define QT_BYTES 16
#endif

namespace {

struct bf16 {
    uint16_t bits;
};

template <class T> struct vec_of;
template <> struct vec_of<float> { typedef float type __attribute__((vector_size(QT_BYTES))); typedef int32_t bits __attribute__((vector_size(QT_BYTES))); };
template <> struct vec_of<double> { typedef double type __attribute__((vector_size(QT_BYTES))); typedef int64_t bits __attribute__((vector_size(QT_BYTES))); };
template <class T> using Vec = typename vec_of<T>::type;
template <class T> constexpr int lanes = QT_BYTES / sizeof(T);
#define QT_INLINE inline __attribute__((always_inline))

template <class V, class T> QT_INLINE V load_as(const T* p) { V v; std::memcpy(&v, p, sizeof v); return v; }

template <class T> QT_INLINE Vec<T> load(const T* p) { return load_as<Vec<T>>(p); }
template <class T> QT_INLINE void store(T* p, Vec<T> v) { std::memcpy(p, &v, sizeof v); }
template <class T> QT_INLINE Vec<T> all(T x) { return x - Vec<T>{}; }

typedef uint16_t half_bits __attribute__((vector_size(QT_BYTES / 2)));
typedef uint32_t word_bits __attribute__((vector_size(QT_BYTES)));

QT_INLINE Vec<float> widen(half_bits h) { return (Vec<float>)(__builtin_convertvector(h, word_bits) << 16); }
QT_INLINE half_bits narrow(Vec<float> v) {
#if defined(__AVX512BF16__)
    return (half_bits)_mm512_cvtneps_pbh((__m512)v);
#else
    word_bits w = (word_bits)v;
    word_bits even = w + 0x7fff + ((w >> 16) & 1);
    word_bits quiet = w | 0x400000;
    return __builtin_convertvector((v == v ? even : quiet) >> 16, half_bits);
#endif
}

QT_INLINE float widen(bf16 x) {
    const uint32_t word = uint32_t(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &word, sizeof wide);
    return wide;
}

// Data of type IO as compute type T; count < lanes leaves the rest 0 or untouched.
template <class T, class IO> struct Data;
template <class T> struct Data<T, T> {
    static QT_INLINE Vec<T> get(const T* p) { return load(p); }
    static QT_INLINE void put(T* p, Vec<T> v) { store(p, v); }
};
template <> struct Data<float, bf16> {
    static QT_INLINE Vec<float> get(const bf16* p) { return widen(load_as<half_bits>(p)); }
    static QT_INLINE void put(bf16* p, Vec<float> v) { half_bits h = narrow(v); std::memcpy(p, &h, sizeof h); }
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

// To memory that is not read soon: past the caches, where a whole line is written.
template <class T> QT_INLINE void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__)
    if (((uintptr_t)p & 63) == 0) return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#endif
    store(p, v);
}
template <class T, class IO> QT_INLINE void stream_data(IO* p, Vec<T> v, int64_t count) {
    if constexpr (std::is_same_v<T, IO>)
        if (count >= lanes<T>) return stream(p, v);
    put<T>(p, v, count);
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
    using Bits = typename vec_of<T>::bits;
    x = x > F::limit ? all<T>(F::limit) : x;
    x = x < -F::limit ? all<T>(-F::limit) : x;
    Vec<T> n = x * T(1.44269504088896340736) + F::magic;
    Bits whole = (Bits)n << F::shift;
    n = n - F::magic;
    tail = exp_tail((x - n * F::high) - n * F::low);  // NaN stays NaN here
    return (Vec<T>)((Bits)all<T>(T(1)) + whole);
}
template <class T> QT_INLINE Vec<T> sigmoid(Vec<T> x) {
    Vec<T> tail, scale = exp_parts<T>(-x, tail);
    return reciprocal(scale * tail + (scale + T(1)));
}
template <class T> QT_INLINE Vec<T> tanh(Vec<T> x) {  // (e^2x - 1) / (e^2x + 1), exact to a few ulps also near 0
    Vec<T> y = x + x;
    y = y > T(44) ? all<T>(T(44)) : y;
    Vec<T> tail, scale = exp_parts<T>(y, tail);
    Vec<T> less = scale * tail + (scale - T(1));
    return less * reciprocal(less + T(2));
}

}  // namespace
