// The S6 recurrence on one tile: T steps, one vector of channels, NB states at a time in registers.
// t runs inside, blocks of states outside, so that any N works and every inner value has a register or an L1 line.
#pragma once
#include "tiles.h"
#include "vmath.h"

namespace quatrain {

// What the recurrence of one tile reads and writes; [t] arrays hold a vector each, [n] ones too.
template <class S> struct Tile {
    int64_t steps, n0, n1, states;  // n0..n1 of N states
    const S *dt, *du, *u, *dys;     // [t]; du is dt u
    const S *b, *c;                 // [t][N] numbers
    const S *rate2, *inv_rate;      // [n] a log2(e), and 1 / a for zoh
    S *y, *along_b, *along_a;       // [t] sums over n: c h, g b (zoh: g w b), q a log2(e)
    S *hold;                        // [t] zoh: g b e^x
    S *h;                           // [n] state; backward: the one before the tile, kept
    S *later;                       // [n] backward: cotangent that the tile's last state gets from later steps
    S *d_rate;                      // [n] accumulated
    S *d_b, *d_c;                   // [t][N] vectors, to be summed over channels
    S *states_scratch, *decays_scratch, *drive_scratch;  // [t][NB] vectors
    bool first;                     // d_b and d_c are written, not added to
    // Lines of the block that comes next, fetched while this one computes: channels of one vector lie in as many pages
    // as there are steps, which no hardware prefetcher follows.
    int streams;
    const char* next[6];
    int64_t next_step[6];

    QT_INLINE void fetch(int64_t t) const {
        for (int i = 0; i < streams; ++i) __builtin_prefetch(next[i] + t * next_step[i], 0, 3);
    }
};

// The tile comes by value, so that no store can be taken to change it.
template <class S, bool ZOH, int NB> void forward_states(const Tile<S> k, int64_t n) {
    constexpr int W = lanes<S>;
    Vec<S> h[NB], rate[NB], inverse[NB];
    for (int j = 0; j < NB; ++j) {
        h[j] = load(k.h + (n + j) * W);
        rate[j] = load(k.rate2 + (n + j) * W);
        if (ZOH) inverse[j] = load(k.inv_rate + (n + j) * W);
    }
    for (int64_t t = 0; t < k.steps; ++t) {
        const S *b = k.b + t * k.states + n, *c = k.c + t * k.states + n;
        const Vec<S> dt = load(k.dt + t * W), du = load((ZOH ? k.u : k.du) + t * W);
        Vec<S> y = load(k.y + t * W);
        if (n == k.n0) k.fetch(t);
#pragma GCC unroll 8
        for (int j = 0; j < NB; ++j) {
            const Vec<S> x = dt * rate[j], decay = vexp2<S, ZOH>(x);
            Vec<S> drive = du * b[j];
            if (ZOH) {
                const Vec<S> near = dt * vexpm1_over<S>(x * ln2<S>, decay), far = (decay - S(1)) * inverse[j];
                drive *= vabs<S>(x) <= S(0.5) ? near : far;
            }
            h[j] = h[j] * decay + drive;
            y += h[j] * c[j];
        }
        store(k.y + t * W, y);
    }
    for (int j = 0; j < NB; ++j) store(k.h + (n + j) * W, h[j]);
}

template <class S, bool ZOH> void forward_tile(const Tile<S>& k) {
    constexpr int many = ZOH ? 2 : lanes<S> == 16 ? 8 : 4;
    int64_t n = k.n0;
    for (; n + many <= k.n1; n += many) forward_states<S, ZOH, many>(k, n);
    if constexpr (many == 8)
        for (; n + 4 <= k.n1; n += 4) forward_states<S, ZOH, 4>(k, n);
    if constexpr (many >= 4)
        for (; n + 2 <= k.n1; n += 2) forward_states<S, ZOH, 2>(k, n);
    for (; n < k.n1; ++n) forward_states<S, ZOH, 1>(k, n);
}

// First the states of the tile again, kept with their decays; then the cotangents, last step first.
template <class S, bool ZOH, int NB> void backward_states(const Tile<S> k, int64_t n) {
    constexpr int W = lanes<S>;
    Vec<S> h[NB], rate[NB];
    for (int j = 0; j < NB; ++j) {
        h[j] = load(k.h + (n + j) * W);
        rate[j] = load(k.rate2 + (n + j) * W);
    }
    for (int64_t t = 0; t < k.steps; ++t) {
        const S *b = k.b + t * k.states + n, *c = k.c + t * k.states + n;
        const Vec<S> dt = load(k.dt + t * W), du = load((ZOH ? k.u : k.du) + t * W);
        Vec<S> y = load(k.y + t * W);
        if (n == k.n0) k.fetch(t);
#pragma GCC unroll 8
        for (int j = 0; j < NB; ++j) {
            const Vec<S> x = dt * rate[j], decay = vexp2<S>(x);
            Vec<S> drive = du * b[j];
            if (ZOH) {
                const Vec<S> near = dt * vexpm1_over<S>(x * ln2<S>, decay);
                const Vec<S> far = (decay - S(1)) * load(k.inv_rate + (n + j) * W);
                const Vec<S> w = vabs<S>(x) <= S(0.5) ? near : far;
                store(k.drive_scratch + (t * NB + j) * W, w);
                drive *= w;
            }
            store(k.states_scratch + (t * NB + j) * W, h[j]);  // the one before the step
            store(k.decays_scratch + (t * NB + j) * W, decay);
            h[j] = h[j] * decay + drive;
            y += h[j] * c[j];
        }
        store(k.y + t * W, y);
    }
    Vec<S> later[NB], d_rate[NB];
    for (int j = 0; j < NB; ++j) {
        later[j] = load(k.later + (n + j) * W);
        d_rate[j] = Vec<S>{};
    }
    for (int64_t t = k.steps - 1; t >= 0; --t) {
        const S *b = k.b + t * k.states + n, *c = k.c + t * k.states + n;
        S *d_b = k.d_b + (t * k.states + n) * W, *d_c = k.d_c + (t * k.states + n) * W;
        const Vec<S> dt = load(k.dt + t * W), du = load((ZOH ? k.u : k.du) + t * W), dys = load(k.dys + t * W);
        Vec<S> along_b = load(k.along_b + t * W), along_a = load(k.along_a + t * W), hold{};
        if (ZOH) hold = load(k.hold + t * W);
#pragma GCC unroll 8
        for (int j = 0; j < NB; ++j) {
            const Vec<S> decay = load(k.decays_scratch + (t * NB + j) * W);
            const Vec<S> before = load(k.states_scratch + (t * NB + j) * W);
            const Vec<S> g = dys * c[j] + later[j];
            Vec<S> through = g * du;  // to b
            if (ZOH) {
                const Vec<S> w = load(k.drive_scratch + (t * NB + j) * W), gb = g * b[j];
                const Vec<S> x = dt * rate[j] * ln2<S>;
                through *= w;
                along_b += gb * w;
                hold += gb * decay;
                d_rate[j] += gb * du * dt * dt * vhold_slope<S>(x, decay);
            } else {
                along_b += g * b[j];
            }
            const Vec<S> d_c_here = dys * h[j];
            store(d_b + j * W, k.first ? through : load(d_b + j * W) + through);
            store(d_c + j * W, k.first ? d_c_here : load(d_c + j * W) + d_c_here);
            later[j] = g * decay;
            const Vec<S> q = later[j] * before;
            d_rate[j] += q * dt;
            along_a += q * rate[j];
            h[j] = before;
        }
        store(k.along_b + t * W, along_b);
        store(k.along_a + t * W, along_a);
        if (ZOH) store(k.hold + t * W, hold);
    }
    for (int j = 0; j < NB; ++j) {
        store(k.later + (n + j) * W, later[j]);
        store(k.d_rate + (n + j) * W, load(k.d_rate + (n + j) * W) + d_rate[j]);
    }
}

template <class S, bool ZOH> void backward_tile(const Tile<S>& k) {
    constexpr int many = ZOH ? 2 : 4;
    int64_t n = k.n0;
    for (; n + many <= k.n1; n += many) backward_states<S, ZOH, many>(k, n);
    if constexpr (many == 4)
        for (; n + 2 <= k.n1; n += 2) backward_states<S, ZOH, 2>(k, n);
    for (; n < k.n1; ++n) backward_states<S, ZOH, 1>(k, n);
}

}  // namespace quatrain
