// One token through the middle of a Mamba block: the convolution, and the recurrence of S6 or S4D with its gate. Where
// the states before and after are one, it is changed in place. Small parameters are read as the modules hold them, so
// that nothing derived from them has to be kept, or already widened; their type is P, that of the data T.
#include "abi.h"
#include "lanes.h"
#include "parallel.h"

namespace {

struct Convolve {
    const void* x;                   // (B, E), rows apart by x_row
    const void* before;              // (B, taps - 1, E), dense
    void *after, *y;                 // like before, and (B, E), dense
    const void *weight, *bias;       // (E, taps), any strides, and (E)
    int64_t dtype, parameters, B, E, taps, x_row, channel, tap;  // strides of weight
};
struct Select {
    const void *u, *delta, *b, *c, *gate;  // (B, E), (B, E) dense; (B, N), (B, N), (B, E), rows apart
    const void *a, *skip, *bias;           // (E, N), (E), (E); a as rates in float, or the logarithms of -a in P
    const float* before;                   // (B, E, N), dense
    float* after;
    void* y;  // (B, E), dense
    int64_t dtype, parameters, logarithms, B, E, N, b_row, gate_row, threads;
};
struct Modes {
    const void *u, *gate;                 // (B, E) dense; (B, E), rows apart
    const void *a_log, *c, *skip, *bias;  // (E, N), (E, N), (E), (E)
    const float* before;                  // (B, E, N), dense
    float* after;
    void* y;  // (B, E), dense
    int64_t dtype, parameters, B, E, N, gate_row, threads;
};
constexpr int64_t ALONE = 1 << 13;  // numbers of state below which one thread is faster than two

template <class P> QT_INLINE F apart(const P* p, int64_t stride, int64_t left) {
    if (stride == 1) return load(p, left);
    P part[W] = {};
    for (int64_t i = 0; i < (left < W ? left : W); ++i) part[i] = p[i * stride];
    return load(part);
}

template <class T, class P> void convolve(const Convolve& a) {
    const P *weight = static_cast<const P*>(a.weight), *bias = static_cast<const P*>(a.bias);
    for (int64_t b = 0; b < a.B; ++b) {
        const T* x = static_cast<const T*>(a.x) + b * a.x_row;
        const T* before = static_cast<const T*>(a.before) + b * (a.taps - 1) * a.E;
        T* after = static_cast<T*>(a.after) + b * (a.taps - 1) * a.E;
        for (int64_t e = 0; e < a.E; e += W) {
            const int64_t left = a.E - e;
            F total = load(bias + e, left);
            const auto tap = [&](int64_t j) { return apart(weight + e * a.channel + j * a.tap, a.channel, left); };
            for (int64_t j = 0; j + 1 < a.taps; ++j) {
                const F past = load(before + j * a.E + e, left);
                total += tap(j) * past;
                if (j > 0) store(after + (j - 1) * a.E + e, past, left);
            }
            const F now = load(x + e, left);
            store(after + (a.taps - 2) * a.E + e, now, left);
            store(static_cast<T*>(a.y) + b * a.E + e, silu(total + tap(a.taps - 1) * now), left);
        }
    }
}

template <class T, class P> void channels(const Select& a, int64_t b, int64_t from, int64_t to) {
    const T *u = static_cast<const T*>(a.u) + b * a.E, *delta = static_cast<const T*>(a.delta) + b * a.E;
    const T *in = static_cast<const T*>(a.b) + b * a.b_row, *out = static_cast<const T*>(a.c) + b * a.b_row;
    const T* gate = static_cast<const T*>(a.gate) + b * a.gate_row;
    const P *bias = static_cast<const P*>(a.bias), *skip = static_cast<const P*>(a.skip);
    for (int64_t e = from; e < to; e += W) {
        const int64_t left = to - e, count = left < W ? left : W;
        float dt[W], drive[W], y[W] = {};
        const F step = softplus(load(delta + e, left) + load(bias + e, left)), x = load(u + e, left);
        store(dt, step);
        store(drive, step * x);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t row = (e + i) * a.N, state = b * a.E * a.N + row;
            F sum_y{};
            for (int64_t n = 0; n < a.N; n += W) {
                const int64_t rest = a.N - n;
                const F rate = a.logarithms ? -exp(load(static_cast<const P*>(a.a) + row + n, rest))
                                            : load(static_cast<const float*>(a.a) + row + n, rest);
                const F next = exp(rate * dt[i]) * load(a.before + state + n, rest) + load(in + n, rest) * drive[i];
                store(a.after + state + n, next, rest);
                sum_y += next * load(out + n, rest);
            }
            y[i] = sum(sum_y);
        }
        const F z = load(gate + e, left);
        store(static_cast<T*>(a.y) + b * a.E + e, (load(y) + load(skip + e, left) * x) * silu(z), left);
    }
}

// h = exp(dt a) h + (exp(dt a) - 1) / a u with dt = softplus(bias); y = (c h + skip u) silu(gate).
template <class T, class P> void channels(const Modes& a, int64_t b, int64_t from, int64_t to) {
    const T* u = static_cast<const T*>(a.u) + b * a.E;
    const T* gate = static_cast<const T*>(a.gate) + b * a.gate_row;
    const P *bias = static_cast<const P*>(a.bias), *skip = static_cast<const P*>(a.skip);
    for (int64_t e = from; e < to; e += W) {
        const int64_t left = to - e, count = left < W ? left : W;
        float dt[W], drive[W], y[W] = {};
        const F step = softplus(load(bias + e, left)), x = load(u + e, left);
        store(dt, step);
        store(drive, step * x);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t row = (e + i) * a.N, state = b * a.E * a.N + row;
            F sum_y{};
            for (int64_t n = 0; n < a.N; n += W) {
                const int64_t rest = a.N - n;
                const F rate = -exp(load(static_cast<const P*>(a.a_log) + row + n, rest)) * dt[i], decay = exp(rate);
                const F fresh = quatrain::vexpm1_over<float>(rate, decay) * drive[i];
                const F next = decay * load(a.before + state + n, rest) + fresh;
                store(a.after + state + n, next, rest);
                sum_y += next * load(static_cast<const P*>(a.c) + row + n, rest);
            }
            y[i] = sum(sum_y);
        }
        const F z = load(gate + e, left);
        store(static_cast<T*>(a.y) + b * a.E + e, (load(y) + load(skip + e, left) * x) * silu(z), left);
    }
}

template <class T, class P, class A> void every_channel(const A& a) {
    const int64_t threads = a.B * a.E * a.N < ALONE ? 1 : a.threads, pieces = threads * 2, blocks = (a.E + W - 1) / W;
    quatrain::parallel_for(a.B * pieces, threads, [&](int64_t task) {
        const int64_t i = task % pieces, end = blocks * (i + 1) / pieces * W;
        channels<T, P>(a, task / pieces, blocks * i / pieces * W, end < a.E ? end : a.E);
    });
}

// run(data, parameters) with values of their types; 1 where there is no such pair.
template <class R> int typed(int64_t data, int64_t parameters, const R& run) {
    if (data == QT_F32 && parameters == QT_F32) run(float{}, float{});
    else if (data == QT_BF16 && parameters == QT_BF16) run(bf16{}, bf16{});
    else if (data == QT_BF16 && parameters == QT_F32) run(bf16{}, float{});
    else return 1;
    return 0;
}

}  // namespace

extern "C" {

QT_EXPORT int qt_mamba_convolve(const int64_t* arguments) {
    const Convolve& a = *reinterpret_cast<const Convolve*>(arguments);
    return typed(a.dtype, a.parameters, [&](auto t, auto p) { convolve<decltype(t), decltype(p)>(a); });
}

QT_EXPORT int qt_mamba_select(const int64_t* arguments) {
    const Select& a = *reinterpret_cast<const Select*>(arguments);
    return typed(a.dtype, a.parameters, [&](auto t, auto p) { every_channel<decltype(t), decltype(p)>(a); });
}

QT_EXPORT int qt_mamba_modes(const int64_t* arguments) {
    const Modes& a = *reinterpret_cast<const Modes*>(arguments);
    return typed(a.dtype, a.parameters, [&](auto t, auto p) { every_channel<decltype(t), decltype(p)>(a); });
}
}
