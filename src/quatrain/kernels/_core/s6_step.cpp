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

template <class S> void step_block(const StepArgs& k, int64_t row, int64_t e0, int width) {
    constexpr int W = lanes<S>;
    S dts[W], dus[W], part[W], sums[W * W];
    const Vec<S> u = gather<S>(k.u, row, e0, width);
    Vec<S> dt = gather<S>(k.delta, row, e0, width) + parameter<S>(k.bias, e0, width);
    if (k.softplus) dt = vsoftplus<S>(dt);
    store(dts, dt);
    store(dus, k.zoh ? u : dt * u);
    S* state = static_cast<S*>(k.h.data) + (row * k.width + e0) * k.states;
    std::fill(sums, sums + W * W, S(0));
    for (int l = 0; l < width; ++l) {
        const int64_t g = (e0 + l) / (k.width / k.groups);
        QtTensor h0 = k.h0, a = k.a, b = k.b, c = k.c;
        Vec<S> sum{};
        for (int64_t n = 0; n < k.states; n += W) {
            const int count = int(std::min<int64_t>(W, k.states - n));
            const auto take = [&](const QtTensor& x, int64_t i, int64_t j) {  // x[.., i, j, n : n + count]
                S values[W];
                load_rows(x, i, j, 1, n, count, values);
                return load(values);
            };
            sum += advance<S>(part, take(h0, row, e0 + l), take(a, 0, e0 + l), take(b, row, g), take(c, row, g), dts[l], dus[l], k.zoh);
            std::memcpy(state + l * k.states + n, part, size_t(count) * sizeof(S));
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
