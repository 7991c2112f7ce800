// Short causal depthwise convolution, forward and backward: vectors of channels, time inside, taps in registers.
#include <algorithm>
#include <vector>

#include "parallel.h"
#include "tiles.h"
#include "vmath.h"

namespace quatrain {
namespace {

struct ConvArgs {
    int64_t threads, silu, wide;
    int64_t batch, time, width, taps, sequences, packed;
    const int64_t *first, *length;  // of each sequence; null: every row whole
    void* work;                     // backward: [task][block][taps + 1] vectors
    int64_t work_size;
    QtTensor x, weight, bias, h0, y, h;
    QtTensor dy, dh, d_x, d_weight, d_bias, d_h0;
};

constexpr int64_t TILE = 64, MOST_TAPS = 8;
thread_local Scratch scratch;

// The cut depends on shapes alone, so sums do not depend on the number of threads: spans of time x blocks of channels.
struct Span {
    int64_t s, t0, t1;  // steps of one sequence
};
struct ConvPlan {
    std::vector<Span> spans;
    int64_t blocks, ranges, groups;  // spans are dealt to groups, blocks to ranges
};

template <class S> ConvPlan make_plan(const ConvArgs& k) {
    ConvPlan p;
    p.blocks = (k.width + lanes<S> - 1) / lanes<S>;
    const int64_t longest = std::max<int64_t>(TILE, (k.batch * k.time / 16 + TILE - 1) / TILE * TILE);
    for (int64_t s = 0; s < k.sequences; ++s) {
        const int64_t length = k.length ? k.length[s] : k.time;
        int64_t t = 0;
        do {
            p.spans.push_back({s, t, std::min(t + longest, length)});
            t += longest;
        } while (t < length);
    }
    p.groups = std::min<int64_t>(16, int64_t(p.spans.size()));
    p.ranges = std::max<int64_t>(1, std::min<int64_t>(p.blocks, 16 / p.groups));
    return p;
}

template <class S> struct Conv {
    static constexpr int W = lanes<S>;
    const ConvArgs& k;
    S *seen, *dz, *z, *dx, *out;  // seen: TILE + 2 (taps - 1) rows

    explicit Conv(const ConvArgs& args) : k(args) {
        const int64_t rows = (TILE + 2 * MOST_TAPS) * W;
        scratch.reset(5 * Scratch::padded<S>(rows));
        for (S** p : {&seen, &dz, &z, &dx, &out}) *p = scratch.take<S>(rows);
    }

    int64_t reach() const { return k.taps - 1; }
    int64_t row(int64_t s) const { return k.packed ? 0 : s; }
    int64_t begin(int64_t s) const { return k.first ? k.first[s] : 0; }
    int64_t length(int64_t s) const { return k.length ? k.length[s] : k.time; }

    // Inputs t0 .. t1 of a sequence, those before its start from h0 or 0.
    void load_inputs(int64_t s, int64_t t0, int64_t t1, int64_t e0, int width, S* to) const {
        const int64_t before = std::min<int64_t>(std::max<int64_t>(-t0, 0), t1 - t0);
        if (before > 0) {
            if (k.h0.dtype)
                load_rows(k.h0, s, t0 + reach(), before, e0, width, to);
            else
                std::fill(to, to + before * W, S(0));
        }
        if (t1 > t0 + before) load_rows(k.x, row(s), begin(s) + t0 + before, t1 - t0 - before, e0, width, to + before * W);
    }

    struct Taps {
        Vec<S> weight[MOST_TAPS], bias;
    };
    Taps load_taps(int64_t e0, int width) const {
        Taps taps;
        S part[W];
        for (int64_t j = 0; j <= k.taps; ++j) {
            for (int l = 0; l < W; ++l) {
                part[l] = 0;
                if (l < width && (j < k.taps || k.bias.dtype)) part[l] = j < k.taps ? at<S>(k.weight, e0 + l, j) : at<S>(k.bias, 0, e0 + l);
            }
            (j < k.taps ? taps.weight[j] : taps.bias) = load(part);
        }
        return taps;
    }

    template <int TAPS> void products(const Taps& taps, int64_t steps, const S* from, S* to) const {
        Vec<S> weight[TAPS];
        for (int j = 0; j < TAPS; ++j) weight[j] = taps.weight[j];
        for (int64_t t = 0; t < steps; ++t) {
            Vec<S> sum = taps.bias;
            for (int j = 0; j < TAPS; ++j) sum += weight[j] * load(from + (t + j) * W);
            store(to + t * W, sum);
        }
    }
    void products(const Taps& taps, int64_t steps, const S* from, S* to) const {
        switch (k.taps) {
            case 2: return products<2>(taps, steps, from, to);
            case 3: return products<3>(taps, steps, from, to);
            case 4: return products<4>(taps, steps, from, to);
            case 5: return products<5>(taps, steps, from, to);
            case 6: return products<6>(taps, steps, from, to);
            case 7: return products<7>(taps, steps, from, to);
            default: return products<8>(taps, steps, from, to);
        }
    }

    void forward(const Span& span, int64_t block) const {
        const int64_t e0 = block * W, s = span.s;
        const int width = int(std::min<int64_t>(W, k.width - e0));
        const Taps taps = load_taps(e0, width);
        for (int64_t t0 = span.t0; t0 < span.t1; t0 += TILE) {
            const int64_t steps = std::min(TILE, span.t1 - t0);
            load_inputs(s, t0 - reach(), t0 + steps, e0, width, seen);
            products(taps, steps, seen, out);
            if (k.silu)
                for (int64_t t = 0; t < steps; ++t) {
                    const Vec<S> v = load(out + t * W);
                    store(out + t * W, v * vsigmoid<S>(v));
                }
            store_rows(k.y, row(s), begin(s) + t0, steps, e0, width, out);
        }
        if (span.t1 == length(s)) {
            load_inputs(s, length(s) - reach(), length(s), e0, width, seen);
            store_rows(k.h, s, 0, reach(), e0, width, seen);
            if (!k.packed) zero_rows<S>(k.y, s, length(s), k.time, e0, width);
        }
    }

    // Cotangents before the activation of steps t0 .. t1, 0 outside the sequence; `seen` holds inputs from t0 - reach.
    void load_cotangents(int64_t s, int64_t t0, int64_t t1, int64_t e0, int width, const Taps& taps) const {
        const int64_t steps = t1 - t0, valid = std::max<int64_t>(0, std::min(t1, length(s)) - t0);
        std::fill(dz, dz + steps * W, S(0));
        if (valid == 0) return;
        load_rows(k.dy, row(s), begin(s) + t0, valid, e0, width, dz);
        if (!k.silu) return;
        products(taps, valid, seen, z);
        for (int64_t t = 0; t < valid; ++t) {
            const Vec<S> v = load(z + t * W), g = vsigmoid<S>(v);
            store(dz + t * W, load(dz + t * W) * (g * (S(1) + v * (S(1) - g))));
        }
    }

    // Adds to `sums` [taps + 1] vectors. The cotangent of input t needs those of outputs t .. t + reach; the inputs in
    // front (t < 0) belong to the first span.
    void backward(const Span& span, int64_t block, S* sums) const {
        const int64_t e0 = block * W, s = span.s, R = reach();
        const int width = int(std::min<int64_t>(W, k.width - e0));
        const Taps taps = load_taps(e0, width);
        Vec<S> d_weight[MOST_TAPS] = {}, d_bias{};
        const int64_t start = span.t0 == 0 ? -R : span.t0;
        for (int64_t t0 = start; t0 < span.t1; t0 += TILE) {
            const int64_t steps = std::min(TILE, span.t1 - t0), o0 = std::max<int64_t>(t0, 0), o1 = t0 + steps + R;
            if (o1 > o0) {
                load_inputs(s, o0 - R, std::min(o1, length(s)), e0, width, seen);
                load_cotangents(s, o0, o1, e0, width, taps);
            }
            for (int64_t t = o0; t < t0 + steps; ++t) {  // sums over this tile's own outputs
                const Vec<S> d = load(dz + (t - o0) * W);
                d_bias += d;
                for (int64_t j = 0; j < k.taps; ++j) d_weight[j] += d * load(seen + (t - o0 + j) * W);
            }
            for (int64_t t = t0; t < t0 + steps; ++t) {
                Vec<S> sum{};
                for (int64_t j = 0; j < k.taps; ++j)
                    if (t + R - j >= o0) sum += taps.weight[j] * load(dz + (t + R - j - o0) * W);
                store(dx + (t - t0) * W, sum);
            }
            add_state(s, t0, steps, e0, width);
            const int64_t front = std::min(std::max<int64_t>(-t0, 0), steps);
            if (front > 0 && k.d_h0.dtype) store_rows(k.d_h0, s, t0 + R, front, e0, width, dx);
            if (steps > front) store_rows(k.d_x, row(s), begin(s) + t0 + front, steps - front, e0, width, dx + front * W);
        }
        if (span.t1 == length(s) && !k.packed) zero_rows<S>(k.d_x, s, length(s), k.time, e0, width);
        for (int64_t j = 0; j < k.taps; ++j) store(sums + j * W, load(sums + j * W) + d_weight[j]);
        store(sums + k.taps * W, load(sums + k.taps * W) + d_bias);
    }

    // The last inputs are the state: its cotangent joins theirs before that is rounded.
    void add_state(int64_t s, int64_t t0, int64_t steps, int64_t e0, int width) const {
        const int64_t from = std::max(t0, length(s) - reach()), to = std::min(t0 + steps, length(s));
        if (from >= to) return;
        load_rows(k.dh, s, from - (length(s) - reach()), to - from, e0, width, out);
        for (int64_t t = from; t < to; ++t) store(dx + (t - t0) * W, load(dx + (t - t0) * W) + load(out + (t - from) * W));
    }
};

template <class S> void run(ConvArgs& k, bool backward) {
    constexpr int W = lanes<S>;
    const ConvPlan p = make_plan<S>(k);
    const int64_t threads = k.batch * k.time * k.width < 8192 ? 1 : k.threads, sums = (k.taps + 1) * W;
    S* work = static_cast<S*>(k.work);
    const int64_t spans = int64_t(p.spans.size());
    parallel_for(p.groups * p.ranges, threads, [&](int64_t task) {
        const Conv<S> conv(k);
        const int64_t g = task / p.ranges, r = task % p.ranges;
        const int64_t b0 = r * p.blocks / p.ranges, b1 = (r + 1) * p.blocks / p.ranges;
        if (backward) std::fill(work + (g * p.blocks + b0) * sums, work + (g * p.blocks + b1) * sums, S(0));
        for (int64_t i = g * spans / p.groups; i < (g + 1) * spans / p.groups; ++i)
            for (int64_t block = b0; block < b1; ++block)
                backward ? conv.backward(p.spans[size_t(i)], block, work + (g * p.blocks + block) * sums)
                         : conv.forward(p.spans[size_t(i)], block);
    });
    if (!backward) return;
    for (int64_t block = 0; block < p.blocks; ++block)
        for (int64_t j = 0; j <= k.taps; ++j)
            for (int64_t l = 0; l < std::min<int64_t>(W, k.width - block * W); ++l) {
                S sum = 0;
                for (int64_t g = 0; g < p.groups; ++g) sum += work[(g * p.blocks + block) * sums + j * W + l];
                if (j < k.taps)
                    set(k.d_weight, block * W + l, j, sum);
                else if (k.d_bias.dtype)
                    set(k.d_bias, 0, block * W + l, sum);
            }
}

template <class S> void size(ConvArgs& k) {  // a bound that no content of lengths changes
    const int64_t blocks = (k.width + lanes<S> - 1) / lanes<S>;
    k.work_size = 16 * blocks * (k.taps + 1) * lanes<S>;
}

}  // namespace
}  // namespace quatrain

extern "C" {
QT_EXPORT int qt_conv_plan(int64_t* args) {
    auto& k = *reinterpret_cast<quatrain::ConvArgs*>(args);
    k.wide == QT_F64 ? quatrain::size<double>(k) : quatrain::size<float>(k);
    return 0;
}
QT_EXPORT int qt_conv_forward(int64_t* args) {
    auto& k = *reinterpret_cast<quatrain::ConvArgs*>(args);
    k.wide == QT_F64 ? quatrain::run<double>(k, false) : quatrain::run<float>(k, false);
    return 0;
}
QT_EXPORT int qt_conv_backward(int64_t* args) {
    auto& k = *reinterpret_cast<quatrain::ConvArgs*>(args);
    k.wide == QT_F64 ? quatrain::run<double>(k, true) : quatrain::run<float>(k, true);
    return 0;
}
}
