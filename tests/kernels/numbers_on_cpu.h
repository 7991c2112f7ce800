// What CUDA has built in, for a C++ compiler: attributes, small types, conversions. No threads.
#pragma once
#define ON_CPU
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
static inline float4 __ldcg(const float4* x) { return *x; }
static inline void __threadfence() {}
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct Index {
    int x;
};
static Index threadIdx, blockIdx;
static float4* shared_memory;

template <class T>
static inline T min(T a, T b) { return a < b ? a : b; }
template <class T>
static inline T max(T a, T b) { return a > b ? a : b; }

static inline int __float_as_int(float x) {
    int bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static inline float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? 0.f : x; }
static inline float ex2(float x) { return flushed(std::exp2(x)); }
static inline float reciprocal(float x) { return flushed(1.f / x); }

#if DATA == 1
static inline float widen(unsigned short x) {
    _Float16 h;
    memcpy(&h, &x, 2);
    return (float)h;
}
static inline unsigned short narrow(float x) {
    _Float16 h = (_Float16)x;
    unsigned short bits;
    memcpy(&bits, &h, 2);
    return bits;
}
#elif DATA == 2
static inline float widen(unsigned short x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static inline unsigned short narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (std::isnan(x)) return 0x7fc0;
    return (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#endif

#if DATA != 0
static inline float low_of(unsigned x) { return widen((unsigned short)x); }
static inline float high_of(unsigned x) { return widen((unsigned short)(x >> 16)); }
static inline unsigned narrow_pair(float low, float high) { return narrow(low) | (unsigned)narrow(high) << 16; }
#endif
