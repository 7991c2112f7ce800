// Exponentials and their kin on vectors: no overflow to NaN, NaN in gives NaN. Errors are relative, in float32 / float64.
#pragma once
#include "simd.h"

namespace quatrain {

template <class S, int N> QT_INLINE Vec<S> horner(const S (&c)[N], Vec<S> x) {
    Vec<S> p = splat<S>(c[N - 1]);
#pragma GCC unroll 32
    for (int i = N - 2; i >= 0; --i) p = p * x + c[i];
    return p;
}

template <class S> QT_INLINE Vec<S> vmax(Vec<S> a, S b) { return a < b ? splat<S>(b) : a; }  // NaN stays
template <class S> QT_INLINE Vec<S> vmin(Vec<S> a, S b) { return a > b ? splat<S>(b) : a; }
template <class S> QT_INLINE Vec<S> vabs(Vec<S> x) { return x < 0 ? -x : x; }

// Both polynomials are exact at 0 and err in proportion to f: a decay of 1 - 1e-4 over 1e4 steps shows any other bias.
// Relative errors on [-1/2, 1/2]: 3e-7 |f|, or with one more multiplication 8e-9 |f|.
template <bool FINE> QT_INLINE Vec<float> exp2_fraction(Vec<float> f) {
    const float c[] = {1.0f, 0.69314719550543903f, 0.24022348955345708f, 0.055503331816984455f, 0.0096663729385861145f,
                       0.0013400436297980485f};
    const float fine[] = {1.0f, 0.69314718802622878f, 0.24022650760568127f, 0.055503571142190778f, 0.0096180825572778515f,
                          0.0013390863364671234f, 0.0001545316294512069f};
    return FINE ? horner(fine, f) : horner(c, f);
}
template <bool FINE> QT_INLINE Vec<double> exp2_fraction(Vec<double> f) {  // 3e-18
    const double c[] = {1.0,
                        0.69314718055994533046,
                        0.24022650695910156204,
                        0.055504108664819921605,
                        0.0096181291075883352443,
                        0.0013333558146789921722,
                        0.00015403530462514432062,
                        0.000015252733489988525649,
                        1.321543308967639918e-6,
                        1.0178198021671930844e-7,
                        7.0741056135081427963e-9,
                        4.4352827069572771511e-10};
    return horner(c, f);
}

#if defined(__AVX512DQ__)
QT_INLINE Vec<float> fraction(Vec<float> x) { return (Vec<float>)_mm512_reduce_ps((__m512)x, 0); }
QT_INLINE Vec<double> fraction(Vec<double> x) { return (Vec<double>)_mm512_reduce_pd((__m512d)x, 0); }
QT_INLINE Vec<float> scale2(Vec<float> x, Vec<float> n) { return (Vec<float>)_mm512_scalef_ps((__m512)x, (__m512)n); }
QT_INLINE Vec<double> scale2(Vec<double> x, Vec<double> n) {
    return (Vec<double>)_mm512_scalef_pd((__m512d)x, (__m512d)n);
}
template <class S> QT_INLINE Vec<S> exp2_of(Vec<S> whole, Vec<S> f) { return scale2(exp2_fraction<true>(f), whole); }
template <class S, bool FINE = true> QT_INLINE Vec<S> vexp2(Vec<S> x) {
    const Vec<S> f = fraction(x);  // 0 where x is infinite
    return scale2(exp2_fraction<FINE>(f), x - f);
}
template <class S> QT_INLINE Vec<S> whole(Vec<S> x) { return x - fraction(x); }
#else
template <class S> struct Bits;
template <> struct Bits<float> {
    static constexpr int mantissa = 23, bias = 127, low = -150, high = 129;
    static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: its sum with a small number holds its integer
};
template <> struct Bits<double> {
    static constexpr int mantissa = 52, bias = 1023, low = -1080, high = 1025;
    static constexpr double magic = 6755399441055744.0;
};
// 2^(whole + f), whole within [low, high]: in two steps, since neither 2^low nor 2^high is a normal number.
template <class S, bool FINE = true> QT_INLINE Vec<S> exp2_of(Vec<S> whole, Vec<S> f) {
    using B = Bits<S>;
    const Int<S> n = (Int<S>)(whole + B::magic) - (Int<S>)splat<S>(B::magic), half = n >> 1;
    const Vec<S> first = (Vec<S>)((half + B::bias) << B::mantissa);
    const Vec<S> second = (Vec<S>)((n - half + B::bias) << B::mantissa);
    return exp2_fraction<FINE>(f) * first * second;
}
template <class S> QT_INLINE Vec<S> whole(Vec<S> x) { return (x + Bits<S>::magic) - Bits<S>::magic; }
template <class S, bool FINE = true> QT_INLINE Vec<S> vexp2(Vec<S> x) {
    using B = Bits<S>;
    x = vmax<S>(vmin<S>(x, B::high), B::low);
    const Vec<S> n = whole<S>(x);
    return exp2_of<S, FINE>(n, x - n);
}
#endif

template <class S> constexpr S log2e = S(1.4426950408889634074);
template <class S> constexpr S ln2 = S(0.69314718055994530942);

template <class S> QT_INLINE Vec<S> vexp(Vec<S> x) {
    constexpr S low_part = S(1.4426950408889634074L - (long double)log2e<S>);
    x = vmax<S>(vmin<S>(x, sizeof(S) == 4 ? S(89) : S(710)), sizeof(S) == 4 ? S(-104) : S(-746));
    const Vec<S> n = whole<S>(x * log2e<S>);
    return exp2_of<S>(n, (x * log2e<S> - n) + x * low_part);
}

template <class S> QT_INLINE Vec<S> vsigmoid(Vec<S> x) { return S(1) / (S(1) + vexp<S>(-x)); }

// log(1 + e) on [0, 1].
QT_INLINE Vec<float> log1p_unit(Vec<float> e) {  // 5e-9
    const float c[] = {0.99999999528731149763f, -0.49999902420063846071f, 0.33329962347703026338f, -0.24954133016942197225f,
                       0.19675936253607751672f, -0.15305584513080973757f, 0.10603642016551354586f, -0.056959413253581925763f,
                       0.019851400494396657425f, -0.0032440119125188235831f};
    return horner(c, e) * e;
}
QT_INLINE Vec<double> log1p_unit(Vec<double> e) {  // 1.5e-18
    const double c[] = {0.99999999999999999851,   -0.49999999999999853064, 0.33333333333309220304,
                        -0.24999999998422990637,  0.19999999945159086318,  -0.16666665493321184612,
                        0.14285697425697993061,   -0.12499827593504728424, 0.11109804421418266795,
                        -0.099924379148116112498, 0.090567323002579961981, -0.082105745599939952637,
                        0.073368645500538949542,  -0.063029991751714492317, 0.050281065739515935326,
                        -0.035758489392823187315, 0.021708412358949504327, -0.010744166230929163327,
                        0.0041099602227838436508, -0.0011299669055065020543, 0.00019751112132494622477,
                        -0.000016418760076518438395};
    return horner(c, e) * e;
}
template <class S> QT_INLINE Vec<S> vsoftplus(Vec<S> x) {
    return vmax<S>(x, S(0)) + log1p_unit(vexp<S>(-vabs<S>(x)));
}

// Sum of x^k / ((k + a)! / ...) by Horner; the terms of the two series below.
template <class S> constexpr int series_terms = sizeof(S) == 4 ? 9 : 17;

// (e^x - 1) / x; 1 at 0.
template <class S> QT_INLINE Vec<S> vexpm1_over(Vec<S> x, Vec<S> exp_x) {
    constexpr int n = series_terms<S>;
    const Vec<S> near = vmax<S>(vmin<S>(x, S(0.5)), S(-0.5));
    Vec<S> p = splat<S>(S(1));
    for (int k = n; k >= 2; --k) p = p * near / S(k) + S(1);  // 1 + x/2 (1 + x/3 (1 + ...))
    return vabs<S>(x) <= S(0.5) ? p : (exp_x - S(1)) / x;
}

// (x e^x - e^x + 1) / x^2, the derivative of (e^{dt a} - 1) / a by a over dt^2; 1/2 at 0.
template <class S> QT_INLINE Vec<S> vhold_slope(Vec<S> x, Vec<S> exp_x) {
    constexpr int n = series_terms<S> + 4;
    const Vec<S> near = vmax<S>(vmin<S>(x, S(1)), S(-1));
    Vec<S> p = splat<S>(S(0));
    S factorial = 1;
    for (int k = 2; k <= n - 2; ++k) factorial *= S(k);
    for (int k = n; k >= 2; --k) {  // sum over k from 2 of x^(k-2) / (k (k-2)!)
        p = p * near + S(1) / (S(k) * factorial);
        factorial /= S(k - 2 > 1 ? k - 2 : 1);
    }
    return vabs<S>(x) <= S(1) ? p : (x * exp_x - exp_x + S(1)) / (x * x);
}

}  // namespace quatrain
