// The Elman network's step, forward and backward; rnn_scan/README.md derives it. Kept: all states, wide.
#pragma once
#include "recurrent_scan.h"

namespace {

template <class T, class IO, class P> struct RnnCell : Cell<T, IO, P> {
    using Base = Cell<T, IO, P>;
    using typename Base::A;
    using Base::a, Base::batch, Base::padded, Base::width, Base::L;
    static constexpr int gates = 1, step_gates = 1, units = 4, kept = 0;
    static constexpr bool two_products = false;
    using Base::Base;

    void start(int64_t s, int64_t unit, A* h) const {
        Vec<T> h0 = this->state(a.h0, s, unit);
        P::put(h + unit, h0);
        if (batch.length(s) == 0 && unit < width) this->put_state(a.h, s, unit, h0);
    }

    QT_INLINE void forward(int64_t s, int64_t t, int64_t unit, const IO* x, const T* sum, A* h_next) const {
        forward_of(s, t, unit, x + unit, width, sum, h_next);
    }
    // x: drive of these units; sum: products of these units.
    QT_INLINE void forward_of(int64_t s, int64_t t, int64_t unit, const IO* x, int64_t, const T* sum, A* h_next) const {
        Vec<T> z = load(sum) + get<T>(x, width - unit);
        Vec<T> h = a.variant ? (z < Vec<T>{} ? Vec<T>{} : z) : tanh<T>(z);  // NaN stays
        P::put(h_next + unit, h);
        this->put_h(s, t, unit, h);
    }

    void finish(int64_t, int64_t) const {}

    void ahead(int64_t s, int64_t t, int64_t unit) const {
        const T* states = (const T*)a.states + batch.position(s, t) * a.states_row + unit;
        for (int u = 0; u < 4; ++u) __builtin_prefetch(states + u * L);
    }

    QT_INLINE void backward(int64_t s, int64_t t, int64_t local, int64_t unit, Vec<T> through, A* dz) const {
        Vec<T> h = get<T>((const T*)a.states + batch.position(s, t) * a.states_row + unit, a.states_row - unit);
        Vec<T> dh = through + this->dh(s, t, unit);
        const Vec<T> d[1] = {a.variant ? dh * (h > Vec<T>{} ? all<T>(1) : Vec<T>{}) : dh * (T(1) - h * h)};
        P::put(dz + unit, d[0]);
        this->put_dx(s, local, unit, d);
    }

    void first(int64_t s, int64_t unit, Vec<T> through) const {
        if (batch.length(s) == 0) through += this->state(a.dh, s, unit);
        this->put_state(a.dh0, s, unit, through);
    }
};

}  // namespace
