// The little that generation needs of a vector unit: float vectors of the instruction set compiled for, float or
// bfloat16 in memory, sums and exponentials.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
#define QT_INLINE static inline __attribute__((always_inline, unused))

typedef float F __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint16_t H __attribute__((vector_size(2 * W)));
struct bf16 {
    uint16_t bits;
};

QT_INLINE float get(const float* p) { return *p; }
QT_INLINE float get(const bf16* p) {
    const uint32_t bits = uint32_t(p->bits) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
QT_INLINE void put(float* p, float x) { *p = x; }
QT_INLINE void put(bf16* p, float x) {  // round to nearest even; NaN stays one
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    p->bits = x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : (bits >> 16) | 0x40;
}

QT_INLINE F all(float x) { return x - F{}; }
QT_INLINE F load(const float* p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
QT_INLINE F load(const bf16* p) {
    H h;
    std::memcpy(&h, p, sizeof h);
    return (F)(__builtin_convertvector(h, U) << 16);
}
QT_INLINE void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
QT_INLINE void store(bf16* p, F x) {
    const U bits = (U)x;
    const U near = bits + 0x7fff + ((bits >> 16) & 1), nan = bits | 0x400000;
    const H h = __builtin_convertvector((x == x ? near : nan) >> 16, H);
    std::memcpy(p, &h, sizeof h);
}
template <class T> QT_INLINE F load(const T* p, int64_t count) {  // count < W; the rest is 0
    T part[W] = {};
    for (int64_t i = 0; i < count; ++i) part[i] = p[i];
    return load(part);
}
template <class T> QT_INLINE void store(T* p, F x, int64_t count) {
    T part[W];
    store(part, x);
    for (int64_t i = 0; i < count; ++i) p[i] = part[i];
}

// Halves added to halves: the intrinsic for it makes GCC 12 warn.
typedef float F4 __attribute__((vector_size(16)));
typedef float F8 __attribute__((vector_size(32)));
QT_INLINE float sum(F4 x) {
    const F4 two = x + __builtin_shufflevector(x, x, 2, 3, 0, 1);
    return two[0] + two[1];
}
#if defined(__AVX2__) || defined(__AVX512F__)
QT_INLINE float sum(F8 x) {
    return sum(__builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7));
}
#endif
#if defined(__AVX512F__)
QT_INLINE float sum(F x) {
    return sum(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
}
#endif

// e^x for x <= 88, within 2 ulp; 0 below -87, NaN for NaN.
QT_INLINE F exp(F x) {
    const F low = all(-87.3f);
    const F y = x > low ? x : low;  // NaN goes through the last line
    const F magic = all(12582912.f);
    F n = y * 1.44269504088896341f + magic;
    const I whole = (I)n << 23;
    n -= magic;
    const F r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    F p = r * (1.f / 5040) + 1.f / 720;
    p = p * r + 1.f / 120;
    p = p * r + 1.f / 24;
    p = p * r + 1.f / 6;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.f;
    const F e = (F)((I)p + whole);
    return x > low ? e : (x == x ? F{} : x);
}

}  // namespace
