// One step of the S6 recurrence, forward only. The state keeps its layout (B, E, N): vectors run along n where N fills
// them, else along channels.
#include <algorithm>

#include "parallel.h"
#include "tiles.h"
#include "vmath.h"

namespace quatrain {
namespace {

struct StepArgs {
    int64_t threads, softplus, zoh, wide;
    int64_t batch, width, states, groups;
    QtTensor u, delta, a, b, c, skip, gate, bias, h0, y, h;  // (.., B, E); b, c (.., B, G, N); h dense and wide
};

template <class S> QT_INLINE Vec<S> gather(const QtTensor& x, int64_t i, int64_t e0, int width) {
    S part[lanes<S>];
    load_rows(x, 0, i, 1, e0, width, part);
    return load(part);
}

template <class S> QT_INLINE Vec<S> parameter(const QtTensor& x, int64_t e0, int width) {
    S part[lanes<S>] = {};
    if (x.dtype) {
        QtTensor row = x;
        row.stride[2] = 0;
        load_rows(row, 0, 0, 1, e0, width, part);
    }
    return load(part);
}

// One vector of state numbers: the new state, returned times c. u is dt u, or u for zoh.
template <class S> QT_INLINE Vec<S> advance(S* h, Vec<S> before, Vec<S> rate, Vec<S> b, Vec<S> c, S dt, S u, bool zoh) {
    const Vec<S> x = rate * dt, decay = vexp2<S>(x * log2e<S>);
    Vec<S> drive = b * u;
    if (zoh) drive *= vexpm1_over<S>(x, decay) * dt;
    const Vec<S> now = before * decay + drive;
    store(h, now);
    return now * c;
}

constexpr int64_t ROOM = 256 + 64;

QtTensor at_row(QtTensor x) {  // (B, G, N) as (B, 1, G, N)
    x.stride[0] = x.stride[1];
    return x;
}

// The state numbers x[i, j, :], where they lie if they are dense whole vectors, else copied with zeros behind.
template <class S> QT_INLINE const S* numbers(const QtTensor& x, int64_t i, int64_t j, int64_t n, int64_t wide, S* copy) {
    if (x.dtype == (sizeof(S) == 4 ? QT_F32 : QT_F64) && x.stride[3] == 1 && n == wide)
        return static_cast<const S*>(x.data) + i * x.stride[1] + j * x.stride[2];
    QtTensor row = x;
    row.stride[0] = x.stride[1];
    std::fill(copy, copy + wide, S(0));
    load_map(row, i, 0, 1, j, n, copy);
    return copy;
}

template <class S> void step_block(const StepArgs& k, int64_t row, int64_t e0, int width) {
    constexpr int W = lanes<S>;
    S dts[W], dus[W], part[W], sums[W * W];
    const Vec<S> u = gather<S>(k.u, row, e0, width);
    Vec<S> dt = gather<S>(k.delta, row, e0, width) + parameter<S>(k.bias, e0, width);
    if (k.softplus) dt = vsoftplus<S>(dt);
    store(dts, dt);
    store(dus, k.zoh ? u : dt * u);
    S* state = static_cast<S*>(k.h.data) + (row * k.width + e0) * k.states;
    S a_copy[ROOM], h_copy[ROOM], b[ROOM] = {}, c[ROOM] = {};
    std::fill(sums, sums + W * W, S(0));
    const int64_t wide = (k.states + W - 1) / W * W;
    int64_t held = -1;  // the group whose maps are in b and c
    for (int l = 0; l < width; ++l) {
        const int64_t g = (e0 + l) / (k.width / k.groups);
        if (g != held) {
            load_map(at_row(k.b), row, 0, 1, g, k.states, b);
            load_map(at_row(k.c), row, 0, 1, g, k.states, c);
            held = g;
        }
        const S* a = numbers(k.a, 0, e0 + l, k.states, wide, a_copy);
        const S* before = numbers(k.h0, row, e0 + l, k.states, wide, h_copy);
        Vec<S> sum{};
        for (int64_t n = 0; n < wide; n += W) {
            const bool whole = n + W <= k.states;
            sum += advance<S>(whole ? state + l * k.states + n : part, load(before + n), load(a + n), load(b + n), load(c + n), dts[l],
                              dus[l], k.zoh);
            if (!whole) std::memcpy(state + l * k.states + n, part, size_t(k.states - n) * sizeof(S));
        }
        store(sums + l * W, sum);
    }
    Vec<S> v[W];
    for (int l = 0; l < W; ++l) v[l] = load(sums + l * W);
    Vec<S> y = sum_each<S>(v) + parameter<S>(k.skip, e0, width) * u;
    if (k.gate.dtype) {
        const Vec<S> z = gather<S>(k.gate, row, e0, width);
        y *= z * vsigmoid<S>(z);
    }
    store(part, y);
    store_rows(k.y, 0, row, 1, e0, width, part);
}

template <class S> void run(const StepArgs& k) {
    constexpr int64_t W = lanes<S>;
    const int64_t blocks = (k.width + W - 1) / W, chunk = 8, chunks = (blocks + chunk - 1) / chunk;
    const int64_t threads = k.batch * k.width * k.states < (1 << 17) ? 1 : k.threads;
    parallel_for(k.batch * chunks, threads, [&](int64_t index) {
        const int64_t row = index / chunks, first = index % chunks * chunk;
        for (int64_t block = first; block < std::min(first + chunk, blocks); ++block)
            step_block<S>(k, row, block * W, int(std::min<int64_t>(W, k.width - block * W)));
    });
}

}  // namespace
}  // namespace quatrain

extern "C" QT_EXPORT int qt_s6_step(const int64_t* args) {
    const auto& k = *reinterpret_cast<const quatrain::StepArgs*>(args);
    k.wide == QT_F64 ? quatrain::run<double>(k) : quatrain::run<float>(k);
    return 0;
}
