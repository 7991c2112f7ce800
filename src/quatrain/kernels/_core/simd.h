// One vector of the instruction set that this file is compiled for, by GNU vector extensions: + - * / and comparisons
// come from the compiler (a * b + c is fused), the rest is here.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define QT_BYTES 64
#elif defined(__AVX2__)
#define QT_BYTES 32
#else
#define QT_BYTES 16
#endif
#define QT_INLINE inline __attribute__((always_inline))

namespace quatrain {

template <class S> struct VecOf;
template <> struct VecOf<float> {
    typedef float V __attribute__((vector_size(QT_BYTES)));
    typedef int32_t I __attribute__((vector_size(QT_BYTES)));
};
template <> struct VecOf<double> {
    typedef double V __attribute__((vector_size(QT_BYTES)));
    typedef int64_t I __attribute__((vector_size(QT_BYTES)));
};
template <class S> using Vec = typename VecOf<S>::V;
template <class S> using Int = typename VecOf<S>::I;
template <class S> constexpr int lanes = QT_BYTES / int(sizeof(S));

template <class S> QT_INLINE Vec<S> splat(S x) { return x - Vec<S>{}; }
template <class S> QT_INLINE Vec<S> load(const S* p) {
    Vec<S> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class S> QT_INLINE void store(S* p, Vec<S> v) { std::memcpy(p, &v, sizeof v); }

// -- storage types

typedef uint16_t Half16 __attribute__((vector_size(QT_BYTES / 2)));
typedef uint32_t Word32 __attribute__((vector_size(QT_BYTES)));
struct BF16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

QT_INLINE float widen_f16(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    float value;
    if (exponent == 0) {
        value = float(mantissa) * 5.9604644775390625e-8f;  // 2^-24
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        bits |= sign;
        std::memcpy(&value, &bits, 4);
        return value;
    }
    uint32_t bits = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (mantissa << 13);
    std::memcpy(&value, &bits, 4);
    return value;
}
QT_INLINE uint16_t narrow_f16(float x) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint16_t sign = uint16_t((bits >> 16) & 0x8000);
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;
    if (magnitude < 0x38800000) {  // subnormal: let a float addition round
        float value, magic = 0.5f;
        std::memcpy(&value, &magnitude, 4);
        value += magic;
        uint32_t sum, base;
        std::memcpy(&sum, &value, 4);
        std::memcpy(&base, &magic, 4);
        return sign | uint16_t(sum - base);
    }
    magnitude += 0xfff + ((magnitude >> 13) & 1) - (112u << 23);
    return sign | uint16_t(magnitude >> 13);
}
QT_INLINE float widen_bf16(uint16_t h) {
    uint32_t bits = uint32_t(h) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
QT_INLINE uint16_t narrow_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// One number of a storage type, as S and back.
template <class S> QT_INLINE S get(const float* p) { return S(*p); }
template <class S> QT_INLINE S get(const double* p) { return S(*p); }
template <class S> QT_INLINE S get(const BF16* p) { return S(widen_bf16(p->bits)); }
template <class S> QT_INLINE S get(const F16* p) { return S(widen_f16(p->bits)); }
template <class S> QT_INLINE void put(float* p, S x) { *p = float(x); }
template <class S> QT_INLINE void put(double* p, S x) { *p = double(x); }
template <class S> QT_INLINE void put(BF16* p, S x) { p->bits = narrow_bf16(float(x)); }
template <class S> QT_INLINE void put(F16* p, S x) { p->bits = narrow_f16(float(x)); }

// A whole dense vector of a storage type, as S and back.
template <class S> struct Dense {
    template <class D> static QT_INLINE Vec<S> get_all(const D* p) {
        S part[lanes<S>];
        for (int i = 0; i < lanes<S>; ++i) part[i] = get<S>(p + i);
        return load(part);
    }
    template <class D> static QT_INLINE void put_all(D* p, Vec<S> v) {
        S part[lanes<S>];
        store(part, v);
        for (int i = 0; i < lanes<S>; ++i) put(p + i, part[i]);
    }
};
QT_INLINE Vec<float> widen_all(const BF16* p) {
    Half16 h;
    std::memcpy(&h, p, sizeof h);
    return (Vec<float>)(__builtin_convertvector(h, Word32) << 16);
}
QT_INLINE void narrow_all(BF16* p, Vec<float> v) {
#if defined(__AVX512BF16__)
    auto h = _mm512_cvtneps_pbh((__m512)v);
#else
    Word32 w = (Word32)v;
    Word32 even = (w + 0x7fff + ((w >> 16) & 1)) >> 16, quiet = (w >> 16) | 0x40;
    Half16 h = __builtin_convertvector(v == v ? even : quiet, Half16);
#endif
    std::memcpy(p, &h, sizeof h);
}
template <class S, class D> QT_INLINE Vec<S> load_as(const D* p) { return Dense<S>::get_all(p); }
template <class S, class D> QT_INLINE void store_as(D* p, Vec<S> v) { Dense<S>::put_all(p, v); }
template <> QT_INLINE Vec<float> load_as<float, float>(const float* p) { return load(p); }
template <> QT_INLINE Vec<double> load_as<double, double>(const double* p) { return load(p); }
template <> QT_INLINE void store_as<float, float>(float* p, Vec<float> v) { store(p, v); }
template <> QT_INLINE void store_as<double, double>(double* p, Vec<double> v) { store(p, v); }
template <> QT_INLINE Vec<float> load_as<float, BF16>(const BF16* p) { return widen_all(p); }
template <> QT_INLINE void store_as<float, BF16>(BF16* p, Vec<float> v) { narrow_all(p, v); }
#if defined(__AVX512F__)
template <> QT_INLINE Vec<float> load_as<float, F16>(const F16* p) {
    return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
template <> QT_INLINE void store_as<float, F16>(F16* p, Vec<float> v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
template <> QT_INLINE Vec<float> load_as<float, F16>(const F16* p) {
    return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
template <> QT_INLINE void store_as<float, F16>(F16* p, Vec<float> v) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#endif

// -- sums over lanes

// Lane l of the result is the sum of v[l]: a tree of pairwise additions. Overwrites v.
template <class S, int d = lanes<S> / 2> QT_INLINE Vec<S> sum_each(Vec<S>* v) {
    constexpr int W = lanes<S>;
    if constexpr (d == 0) {
        return v[0];
    } else {
        Int<S> lane;
        for (int l = 0; l < W; ++l) lane[l] = l;
        const Int<S> second = (lane & d) != 0;  // -1 where the second vector's sums go
        const Int<S> low = second ? lane - d + W : lane, high = second ? lane + W : lane + d;
#pragma GCC unroll 8
        for (int i = 0; i < d; ++i) {
#if defined(__clang__)
            Vec<S> a, b;
            for (int l = 0; l < W; ++l) {
                a[l] = low[l] < W ? v[i][low[l]] : v[i + d][low[l] - W];
                b[l] = high[l] < W ? v[i][high[l]] : v[i + d][high[l] - W];
            }
            v[i] = a + b;
#else
            v[i] = __builtin_shuffle(v[i], v[i + d], low) + __builtin_shuffle(v[i], v[i + d], high);
#endif
        }
        return sum_each<S, d / 2>(v);
    }
}

}  // namespace quatrain
