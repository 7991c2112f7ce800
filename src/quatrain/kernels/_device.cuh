// What every kernel shares: the data's type, a few functions that compile to single instructions, and sums
// over lanes. No header is included, so that NVRTC needs none. DATA: 0 float, 1 half, 2 bfloat16.
//
// tests/kernels/cuda_on_cpu.h defines ON_CPU and the names CUDA has built in, so that the kernels' logic can
// be run where there is no GPU.

typedef long long Long;

#define EACH(i, count) _Pragma("unroll") for (int i = 0; i < (count); ++i)
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define ALL_LANES 0xffffffffu

#if DATA == 0
typedef float Data;
struct __align__(8) Pair {  // two neighbours
    float low, high;
};
#else
typedef unsigned short Data;
typedef unsigned Pair;  // in one register
#endif

#ifndef ON_CPU
extern __shared__ float4 shared_memory[];

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if DATA == 1
__device__ __forceinline__ float widen(Data x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
__device__ __forceinline__ Data narrow(float x) {
    Data y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float low_of(Pair x) { return widen((Data)x); }
__device__ __forceinline__ float high_of(Pair x) { return widen((Data)(x >> 16)); }
__device__ __forceinline__ Pair narrow_pair(float low, float high) {
    Pair y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
#elif DATA == 2
__device__ __forceinline__ float widen(Data x) { return __uint_as_float((unsigned)x << 16); }
__device__ __forceinline__ Data narrow(float x) {
    Data y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float low_of(Pair x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float high_of(Pair x) { return __uint_as_float(x & 0xffff0000u); }
__device__ __forceinline__ Pair narrow_pair(float low, float high) {
    Pair y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
#endif
#endif  // ON_CPU

#if DATA == 0
__device__ __forceinline__ float widen(Data x) { return x; }
__device__ __forceinline__ Data narrow(float x) { return x; }
__device__ __forceinline__ float low_of(Pair x) { return x.low; }
__device__ __forceinline__ float high_of(Pair x) { return x.high; }
__device__ __forceinline__ Pair narrow_pair(float low, float high) { return {low, high}; }
__device__ __forceinline__ Pair join(Data low, Data high) { return {low, high}; }
#else
__device__ __forceinline__ Pair join(Data low, Data high) { return low | (unsigned)high << 16; }
#endif

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.f + ex2(-LOG2E * x)); }
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// e^x for x <= 0; the rounding of x log2(e), which grows with |x|, is made good.
__device__ __forceinline__ float exponential(float x) {
    float high = x * LOG2E;
    float low = fmaf(x, LOG2E, -high);
    float y = ex2(high);
    return fmaf(y, low * LN2, y);
}

// 2^x rounded to nearest but for a part in ten million; `ex2` errs to one side by as much as the last place, which a
// state that decays slowly adds up over all the steps it remembers.
__device__ __forceinline__ float exact_ex2(float x) {
    float shifted = x + 12582912.f;  // its last bits are the integer nearest to x
    float f = x - (shifted - 12582912.f);
    float p = 1.534580784e-04f;
    p = fmaf(p, f, 1.339993157e-03f);
    p = fmaf(p, f, 9.618488976e-03f);
    p = fmaf(p, f, 5.550328776e-02f);
    p = fmaf(p, f, 2.402264689e-01f);
    p = fmaf(p, f, 6.931472057e-01f);
    p = fmaf(p, f, 1.f);
    float y = __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
    return fabsf(x) < 126.f ? y : ex2(x);
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|); the logarithm is e times a polynomial of e in [0, 1], so that it
// keeps its relative precision where e is small.
__device__ __forceinline__ float softplus(float x) {
    float e = exponential(fmaxf(-fabsf(x), -1e4f));  // -inf times 0 would be NaN
    float p = 5.232629354e-03f;
    p = fmaf(p, e, -2.950498695e-02f);
    p = fmaf(p, e, 7.822555768e-02f);
    p = fmaf(p, e, -1.366321402e-01f);
    p = fmaf(p, e, 1.910599285e-01f);
    p = fmaf(p, e, -2.484297904e-01f);
    p = fmaf(p, e, 3.331909649e-01f);
    p = fmaf(p, e, -4.999949313e-01f);
    p = fmaf(p, e, 1.f);
    return fmaf(p, e, fmaxf(x, 0.f));
}

// Sums over PARTS lanes that lie STEP apart, of COUNT values each. Values are dealt out on the way: afterwards
// part p holds the sums of values first_value<COUNT, PARTS>(p) and following, COUNT / PARTS of them or one.
template <int COUNT, int PARTS, int STEP>
__device__ __forceinline__ void fold(float* v, int lane) {
    if constexpr (PARTS > 1) {
        constexpr int MASK = STEP * PARTS / 2;
        if constexpr (COUNT > 1) {
            bool upper = lane & MASK;
            EACH(i, COUNT / 2) {
                float sent = upper ? v[i] : v[i + COUNT / 2];
                float kept = upper ? v[i + COUNT / 2] : v[i];
                v[i] = kept + __shfl_xor_sync(ALL_LANES, sent, MASK);
            }
            fold<COUNT / 2, PARTS / 2, STEP>(v, lane);
        } else {
            v[0] += __shfl_xor_sync(ALL_LANES, v[0], MASK);
            fold<1, PARTS / 2, STEP>(v, lane);
        }
    }
}

template <int COUNT, int PARTS>
__device__ __forceinline__ int first_value(int part) {
    if constexpr (COUNT >= PARTS) {
        return part * (COUNT / PARTS);
    } else {
        return part / (PARTS / COUNT);
    }
}

template <int COUNT, int PARTS>
__device__ __forceinline__ constexpr int values_left() {
    return COUNT >= PARTS ? COUNT / PARTS : 1;
}
