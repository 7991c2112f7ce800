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

template <class T> void convolve(const Convolve& a) {
    for (int64_t b = 0; b < a.B; ++b) {
        const T* x = static_cast<const T*>(a.x) + b * a.x_row;
        T* state = static_cast<T*>(a.state) + b * (a.taps - 1) * a.E;
        for (int64_t e = 0; e < a.E; e += W) {
            const int64_t left = a.E - e;
            F sum = load(a.bias + e, left);
            for (int64_t j = 0; j + 1 < a.taps; ++j) {
                sum += load(a.weight + j * a.E + e, left) * load(state + j * a.E + e, left);
                const T* next = j + 2 < a.taps ? state + (j + 1) * a.E + e : x + e;
                store(state + j * a.E + e, load(next, left), left);
            }
            sum += load(a.weight + (a.taps - 1) * a.E + e, left) * load(x + e, left);
            store(static_cast<T*>(a.y) + b * a.E + e, silu(sum), left);
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
        const F step = softplus(load(delta + e, left) + load(a.bias + e, left)), x = load(u + e, left);
        store(dt, step);
        store(drive, step * x);
        for (int64_t i = 0; i < count; ++i) {
            const float* rate = a.a + (e + i) * a.N;
            float* h = a.h + (b * a.E + e + i) * a.N;
            F sum_y{};
            for (int64_t n = 0; n < a.N; n += W) {
                const int64_t rest = a.N - n;
                const F next = exp(load(rate + n, rest) * dt[i]) * load(h + n, rest) + load(in + n, rest) * drive[i];
                store(h + n, next, rest);
                sum_y += next * load(out + n, rest);
            }
            y[i] = sum(sum_y);
        }
        const F z = load(gate + e, left);
        store(static_cast<T*>(a.y) + b * a.E + e, (load(y) + load(a.skip + e, left) * x) * silu(z), left);
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
