// The LSTM's step, forward and backward; lstm_scan/README.md derives it. Kept: the four gates, then the cell.
#pragma once
#include "recurrent_scan.h"

namespace {

template <class T, class IO, class P> struct LstmCell : Cell<T, IO, P> {
    using Base = Cell<T, IO, P>;
    using typename Base::A;
    using Base::a, Base::batch, Base::carried, Base::padded, Base::width, Base::L;
    static constexpr int gates = 4, step_gates = 4, units = 1, kept = 4;
    static constexpr bool two_products = false;
    using Base::Base;

    void start(int64_t s, int64_t unit, A* h) const {
        Vec<T> h0 = this->state(a.h0, s, unit), c0 = this->state(a.c0, s, unit);
        P::put(h + unit, h0);
        store(carried + s * this->apart + unit, c0);
        if (batch.length(s) == 0 && unit < width) {
            this->put_state(a.h, s, unit, h0);
            this->put_state(a.c, s, unit, c0);
        }
    }

    QT_INLINE void forward(int64_t s, int64_t t, int64_t unit, const IO* x, const T* sum, A* h_next) const {
        forward_of(s, t, unit, x + unit, width, sum, h_next);
    }
    // x: drive of these units, gates `apart`; sum: products of these units, gate by gate.
    QT_INLINE void forward_of(int64_t s, int64_t t, int64_t unit, const IO* x, int64_t apart, const T* sum, A* h_next) const {
        const int64_t count = width - unit;
        T* cell = carried + s * this->apart + unit;
        Vec<T> i = sigmoid<T>(load(sum) + get<T>(x, count));
        Vec<T> f = sigmoid<T>(load(sum + L) + get<T>(x + apart, count));
        Vec<T> g = tanh<T>(load(sum + 2 * L) + get<T>(x + 2 * apart, count));
        Vec<T> o = sigmoid<T>(load(sum + 3 * L) + get<T>(x + 3 * apart, count));
        Vec<T> c = f * load(cell) + i * g;
        Vec<T> h = o * tanh<T>(c);
        store(cell, c);
        P::put(h_next + unit, h);
        this->put_h(s, t, unit, h);
        if (t == batch.length(s) - 1) this->put_state(a.c, s, unit, c);
        if (!a.gates) return;
        const int64_t at = batch.saved(s, t);
        T* keep = (T*)a.gates + at * a.gates_row + unit;
        store(keep, i);
        store(keep + padded, f);
        store(keep + 2 * padded, g);
        store(keep + 3 * padded, o);
        store((T*)a.cells + at * a.cells_row + unit, c);
    }

    void finish(int64_t s, int64_t unit) const { store(carried + s * this->apart + unit, this->state(a.dc, s, unit)); }

    void ahead(int64_t s, int64_t t, int64_t unit) const {
        const int64_t at = batch.saved(s, t);
        for (int u = 0; u < 4; ++u) {
            for (int j = 0; j < gates; ++j) __builtin_prefetch((const T*)a.gates + at * a.gates_row + j * padded + unit + u * L);
            __builtin_prefetch((const T*)a.cells + at * a.cells_row + unit + u * L);
        }
    }

    QT_INLINE void backward(int64_t s, int64_t t, int64_t local, int64_t unit, Vec<T> through, A* dz) const {
        const int64_t at = batch.saved(s, t);
        const T* keep = (const T*)a.gates + at * a.gates_row + unit;
        const T* cells = (const T*)a.cells + unit;
        Vec<T> i = load(keep), f = load(keep + padded), g = load(keep + 2 * padded), o = load(keep + 3 * padded);
        Vec<T> before = t > 0 ? load(cells + batch.saved(s, t - 1) * a.cells_row) : this->state(a.c0, s, unit);
        Vec<T> bent = tanh<T>(load(cells + at * a.cells_row)), dh = through + this->dh(s, t, unit);
        T* dc_later = carried + s * this->apart + unit;
        Vec<T> dc = load(dc_later) + dh * o * (T(1) - bent * bent);
        store(dc_later, dc * f);
        const Vec<T> d[gates] = {dc * g * i * (T(1) - i), dc * before * f * (T(1) - f), dc * i * (T(1) - g * g),
                                 dh * bent * o * (T(1) - o)};
        for (int j = 0; j < gates; ++j) P::put(dz + j * padded + unit, d[j]);
        this->put_dx(s, local, unit, d);
    }

    // Cotangents of the states before the first step.
    void first(int64_t s, int64_t unit, Vec<T> through) const {
        if (batch.length(s) == 0) through += this->state(a.dh, s, unit);
        this->put_state(a.dh0, s, unit, through);
        this->put_state(a.dc0, s, unit, load(carried + s * this->apart + unit));
    }
};

}  // namespace
