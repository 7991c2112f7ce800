// One token through the middle of a Mamba block, with the state changed in place: for recorded generation.
#include "abi.h"
#include "lanes.h"
#include "parallel.h"

namespace {

struct Convolve {
    const void* x;             // (B, E), rows apart by x_row
    void *state, *y;           // (B, taps - 1, E) and (B, E), dense
    const float *weight, *bias;  // (taps, E) and (E)
    int64_t dtype, B, E, taps, x_row;
};
struct Select {
    const void *u, *delta, *b, *c, *gate;   // (B, E), (B, E) dense; (B, N), (B, N), (B, E), rows apart
    const float *a, *skip, *bias;           // (E, N), (E), (E)
    float* h;                               // (B, E, N), dense
    void* y;                                // (B, E), dense
    int64_t dtype, B, E, N, b_row, gate_row, threads;
};
constexpr int64_t ALONE = 1 << 13;  // numbers of state below which one thread is faster than two

QT_INLINE F silu(F x) {
    const F e = exp(x < 0.f ? x : -x);  // of -|x|: never too large
    return x * ((x < 0.f ? e : all(1)) / (1.f + e));
}

// log(1 + e^x) = max(x, 0) + 2 artanh(s), s = t / (2 + t) <= 1/3, t = e^-|x|.
QT_INLINE F softplus(F x) {
    const F t = exp(x < 0.f ? x : -x), s = t / (2.f + t), z = s * s;
    F p = z * (2.f / 15) + 2.f / 13;
    p = p * z + 2.f / 11;
    p = p * z + 2.f / 9;
    p = p * z + 2.f / 7;
    p = p * z + 2.f / 5;
    p = p * z + 2.f / 3;
    return (x > 0.f ? x : x - x) + (p * z + 2.f) * s;  // x - x: 0, or NaN
}

template <class T> QT_INLINE F part(const T* p, int64_t left) { return left >= W ? load(p) : load(p, left); }
template <class T> QT_INLINE void part(T* p, F x, int64_t left) {
    if (left >= W) store(p, x);
    else store(p, x, left);
}

template <class T> void convolve(const Convolve& a) {
    for (int64_t b = 0; b < a.B; ++b) {
        const T* x = static_cast<const T*>(a.x) + b * a.x_row;
        T* state = static_cast<T*>(a.state) + b * (a.taps - 1) * a.E;
        for (int64_t e = 0; e < a.E; e += W) {
            const int64_t left = a.E - e;
            F sum = part(a.bias + e, left);
            for (int64_t j = 0; j + 1 < a.taps; ++j) {
                sum += part(a.weight + j * a.E + e, left) * part(state + j * a.E + e, left);
                const T* next = j + 2 < a.taps ? state + (j + 1) * a.E + e : x + e;
                part(state + j * a.E + e, part(next, left), left);
            }
            sum += part(a.weight + (a.taps - 1) * a.E + e, left) * part(x + e, left);
            part(static_cast<T*>(a.y) + b * a.E + e, silu(sum), left);
        }
    }
}

template <class T> void channels(const Select& a, int64_t b, int64_t from, int64_t to) {
    const T *u = static_cast<const T*>(a.u) + b * a.E, *delta = static_cast<const T*>(a.delta) + b * a.E;
    const T *in = static_cast<const T*>(a.b) + b * a.b_row, *out = static_cast<const T*>(a.c) + b * a.b_row;
    const T* gate = static_cast<const T*>(a.gate) + b * a.gate_row;
    for (int64_t e = from; e < to; e += W) {
        const int64_t left = to - e, count = left < W ? left : W;
        float dt[W], drive[W], y[W] = {};
        const F step = softplus(part(delta + e, left) + part(a.bias + e, left)), x = part(u + e, left);
        store(dt, step);
        store(drive, step * x);
        for (int64_t i = 0; i < count; ++i) {
            const float* rate = a.a + (e + i) * a.N;
            float* h = a.h + (b * a.E + e + i) * a.N;
            F sum_y{};
            for (int64_t n = 0; n < a.N; n += W) {
                const int64_t rest = a.N - n;
                const F next = exp(part(rate + n, rest) * dt[i]) * part(h + n, rest) + part(in + n, rest) * drive[i];
                part(h + n, next, rest);
                sum_y += next * part(out + n, rest);
            }
            y[i] = sum(sum_y);
        }
        const F z = part(gate + e, left);
        part(static_cast<T*>(a.y) + b * a.E + e, (load(y) + part(a.skip + e, left) * x) * silu(z), left);
    }
}

template <class T> void select(const Select& a) {
    const int64_t threads = a.B * a.E * a.N < ALONE ? 1 : a.threads, pieces = threads * 2, blocks = (a.E + W - 1) / W;
    quatrain::parallel_for(a.B * pieces, threads, [&](int64_t task) {
        const int64_t i = task % pieces, end = blocks * (i + 1) / pieces * W;
        channels<T>(a, task / pieces, blocks * i / pieces * W, end < a.E ? end : a.E);
    });
}

}  // namespace

extern "C" {

QT_EXPORT int qt_mamba_convolve(const int64_t* arguments) {
    const Convolve& a = *reinterpret_cast<const Convolve*>(arguments);
    if (a.dtype == QT_F32) convolve<float>(a);
    else if (a.dtype == QT_BF16) convolve<bf16>(a);
    else return 1;
    return 0;
}

QT_EXPORT int qt_mamba_select(const int64_t* arguments) {
    const Select& a = *reinterpret_cast<const Select*>(arguments);
    if (a.dtype == QT_F32) select<float>(a);
    else if (a.dtype == QT_BF16) select<bf16>(a);
    else return 1;
    return 0;
}
}
