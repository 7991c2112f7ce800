// The step of the GRU whose reset gate acts after the product, forward and backward; gru_scan/README.md derives it.
// Kept: r, z, n and the product inside the reset gate, then all states, wide.
#pragma once
#include "recurrent_scan.h"

namespace {

template <class T, class IO, class P> struct GruCell : Cell<T, IO, P> {
    using Base = Cell<T, IO, P>;
    using typename Base::A;
    using Base::a, Base::batch, Base::carried, Base::padded, Base::width, Base::L;
    static constexpr int gates = 3, step_gates = 3, units = 1, kept = 4;
    static constexpr bool two_products = false;
    using Base::Base;

    void start(int64_t s, int64_t unit, A* h) const {
        Vec<T> h0 = this->state(a.h0, s, unit);
        P::put(h + unit, h0);
        store(carried + s * this->apart + unit, h0);
        if (batch.length(s) == 0 && unit < width) this->put_state(a.h, s, unit, h0);
    }

    QT_INLINE void forward(int64_t s, int64_t t, int64_t unit, const IO* x, const T* sum, A* h_next) const {
        forward_of(s, t, unit, x + unit, width, sum, h_next);
    }
    // x: drive of these units, gates `apart`; sum: products of these units, gate by gate.
    QT_INLINE void forward_of(int64_t s, int64_t t, int64_t unit, const IO* x, int64_t apart, const T* sum, A* h_next) const {
        const int64_t count = width - unit;
        T* before = carried + s * this->apart + unit;
        Vec<T> r = sigmoid<T>(load(sum) + get<T>(x, count));
        Vec<T> z = sigmoid<T>(load(sum + L) + get<T>(x + apart, count));
        Vec<T> inner = load(sum + 2 * L);
        if (a.bias) inner += get<T>((const T*)a.bias + unit, count);
        Vec<T> n = tanh<T>(get<T>(x + 2 * apart, count) + r * inner);
        Vec<T> h = n + z * (load(before) - n);
        store(before, h);
        P::put(h_next + unit, h);
        this->put_h(s, t, unit, h);
        if (!a.gates) return;
        T* keep = (T*)a.gates + batch.saved(s, t) * a.gates_row + unit;
        store(keep, r);
        store(keep + padded, z);
        store(keep + 2 * padded, n);
        store(keep + 3 * padded, inner);
    }

    void finish(int64_t s, int64_t unit) const { store(carried + s * this->apart + unit, Vec<T>{}); }

    void ahead(int64_t s, int64_t t, int64_t unit) const {
        for (int j = 0; j < kept; ++j)
            for (int u = 0; u < 4; ++u)
                __builtin_prefetch((const T*)a.gates + batch.saved(s, t) * a.gates_row + j * padded + unit + u * L);
    }

    QT_INLINE void backward(int64_t s, int64_t t, int64_t local, int64_t unit, Vec<T> through, A* dz) const {
        const T* keep = (const T*)a.gates + batch.saved(s, t) * a.gates_row + unit;
        Vec<T> r = load(keep), z = load(keep + padded), n = load(keep + 2 * padded), inner = load(keep + 3 * padded);
        T* direct = carried + s * this->apart + unit;  // of h, past all products
        Vec<T> dh = through + load(direct) + this->dh(s, t, unit);
        store(direct, dh * z);
        Vec<T> dn = dh * (T(1) - z) * (T(1) - n * n), inside = dn * r;
        const Vec<T> d[gates] = {dn * inner * r * (T(1) - r), dh * (this->h_before(s, t, unit) - n) * z * (T(1) - z), dn};
        P::put(dz + unit, d[0]);
        P::put(dz + padded + unit, d[1]);
        P::put(dz + 2 * padded + unit, inside);
        this->put_dx(s, local, unit, d);
        put<T>((IO*)a.dinner + batch.offset(s, local, a.dinner_row, a.dinner_step) + unit, inside, width - unit);
    }

    void first(int64_t s, int64_t unit, Vec<T> through) const {
        through += batch.length(s) == 0 ? this->state(a.dh, s, unit) : load(carried + s * this->apart + unit);
        this->put_state(a.dh0, s, unit, through);
    }
};

}  // namespace
