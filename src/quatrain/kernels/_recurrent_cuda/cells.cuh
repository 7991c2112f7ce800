// What one unit of one sequence does in a step. KIND: 0 RNN with tanh, 1 RNN with ReLU, 2 LSTM, 3 GRU.
//
// `Kept` is what a forward pass saves of the arguments of the gates' functions, NARROW in 16 bits: saved values of the
// gates would lose 1 - gate where a gate is saturated.

#if KIND == 2
#define GATES 4
#define KEPT 4
#elif KIND == 3
#define GATES 3
#define KEPT 4  // the last is U_n h + bias
#else
#define GATES 1
#define KEPT 1
#endif
#define CELL (KIND == 2)
#define WIDE (KIND >= 2)  // c of an LSTM or h of a GRU is kept in float32

#if !NARROW
typedef float Kept;
__device__ __forceinline__ Kept keep(float x) { return x; }
__device__ __forceinline__ float kept(Kept x) { return x; }
#else
// A sign, and 3 + 12 bits of exponent and fraction of 1 + |x| below 256: it errs by at most 2^-13 below 1, 2^-12 below
// 3, 2^-11 below 7, a fourth of what float16 does where gates are steep. All bits but the sign set: not a number.
typedef unsigned short Kept;
__device__ __forceinline__ Kept keep(float x) {
    unsigned bits = __float_as_uint(fabsf(x) + 1.f) - 0x3f800000u + 0x400u >> 11;
    unsigned most = x == x ? 0x7ffeu : 0x7fffu;
    return (Kept)((bits < most ? bits : most) | (__float_as_uint(x) >> 16 & 0x8000u));
}
__device__ __forceinline__ float kept(Kept x) {
    unsigned bits = x & 0x7fffu;
    float size = __uint_as_float((bits << 11) + 0x3f800000u) - 1.f;
    if (bits == 0x7fffu) size = __uint_as_float(0x7fc00000u);
    return __uint_as_float(__float_as_uint(size) | (unsigned)(x & 0x8000u) << 16);
}
#endif

// tanh with a relative error of a few places: a polynomial in x^2 where 1 - 2 / (1 + e^2x) would cancel. Both are
// computed, for lanes of a warp would take both ways anyway.
__device__ __forceinline__ float tangent(float x) {
    float a = fabsf(x), z = x * x;
    float p = -5.70498872745e-3f;
    p = fmaf(p, z, 2.06390887954e-2f);
    p = fmaf(p, z, -5.37397155531e-2f);
    p = fmaf(p, z, 1.33314422036e-1f);
    p = fmaf(p, z, -3.33332819422e-1f);
    float near = fmaf(p * z, x, x);
    float far = fmaf(-2.f, reciprocal(1.f + ex2(2.f * LOG2E * a)), 1.f);
    return a < 0.625f ? near : x < 0.f ? -far : far;
}

// Derivatives by the argument: 1 - tanh(x)^2 and s(x) (1 - s(x)), without the difference.
__device__ __forceinline__ float tangent_slope(float x) {
    float e = ex2(-2.f * LOG2E * fabsf(x));
    float r = reciprocal(1.f + e);
    return 4.f * e * r * r;
}
__device__ __forceinline__ float sigmoid_slope(float x) {
    float e = ex2(-LOG2E * fabsf(x));
    float r = reciprocal(1.f + e);
    return e * r * r;
}

struct Unit {  // the states of one unit of one row; c is an LSTM's, `bias` the sum of a GRU's cotangents for it
    float h, c, bias;
};

// One step: `z` holds the gates' drives with their products, but for a GRU's candidate, whose product is `inner`.
// Afterwards z holds what is to be kept.
__device__ __forceinline__ void advance(Unit& state, float* z, float inner) {
#if KIND == 0
    state.h = tangent(z[0]);
#elif KIND == 1
    state.h = z[0] < 0.f ? 0.f : z[0];
    z[0] = z[0] > 0.f;
#elif KIND == 2
    state.c = fmaf(sigmoid(z[1]), state.c, sigmoid(z[0]) * tangent(z[2]));
    state.h = sigmoid(z[3]) * tangent(state.c);
#else
    z[2] = fmaf(sigmoid(z[0]), inner, z[2]);
    z[3] = inner;
    float n = tangent(z[2]);
    state.h = fmaf(sigmoid(z[1]), state.h - n, n);
#endif
}

// The same step backwards. `state` holds the cotangents of h and c behind the step, and gets those before it but
// for h's way through the products; `z` holds what was kept and gets the cotangents of the drives. `now` is c
// behind the step, `before` what was kept in float32 of the step before. Returns the cotangent of a GRU's inner product.
__device__ __forceinline__ float retreat(Unit& state, float* z, float now, float before) {
    float inner = 0.f;
#if KIND == 0
    z[0] = state.h * tangent_slope(z[0]);
    state.h = 0.f;
#elif KIND == 1
    z[0] = state.h * z[0];
    state.h = 0.f;
#elif KIND == 2
    float i = sigmoid(z[0]), f = sigmoid(z[1]), g = tangent(z[2]), o = sigmoid(z[3]);
    float of_c = fmaf(state.h * o, tangent_slope(now), state.c);
    z[0] = of_c * g * sigmoid_slope(z[0]);
    z[1] = of_c * before * sigmoid_slope(z[1]);
    z[2] = of_c * i * tangent_slope(z[2]);
    z[3] = state.h * tangent(now) * sigmoid_slope(z[3]);
    state.c = of_c * f;
    state.h = 0.f;
#else
    float r = sigmoid(z[0]), u = sigmoid(z[1]), n = tangent(z[2]);
    float of_n = state.h * sigmoid(-z[1]) * tangent_slope(z[2]);
    z[1] = state.h * (before - n) * sigmoid_slope(z[1]);
    z[0] = of_n * z[3] * sigmoid_slope(z[0]);
    z[2] = of_n;
    inner = of_n * r;
    state.h *= u;
#endif
    return inner;
}
