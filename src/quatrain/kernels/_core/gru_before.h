// The GRU whose reset gate acts before the product: two products and two meetings a step; gru_scan/README.md derives it.
// Kept: r, z, n, then r h in the data's type and all states, wide.
#pragma once
#include "recurrent_scan.h"

namespace {

template <class T, class IO, class P> struct GruBefore : Cell<T, IO, P> {
    using Base = Cell<T, IO, P>;
    using typename Base::A;
    using Base::a, Base::batch, Base::carried, Base::padded, Base::width, Base::L;
    using Base::Base;
    static constexpr int kept = 3, step_gates = 3;
    static constexpr bool two_products = true;
    T* other = nullptr;  // (rows, padded): z on the way forward, the cotangent of its input on the way back

    QT_INLINE T* at(T* of, int64_t s, int64_t unit) const { return of + s * this->apart + unit; }
    T* keep(int64_t s, int64_t t, int64_t unit) const { return (T*)a.gates + batch.saved(s, t) * a.gates_row + unit; }

    void start(int64_t s, int64_t unit, A* h) const {
        Vec<T> h0 = this->state(a.h0, s, unit);
        P::put(h + unit, h0);
        store(at(carried, s, unit), h0);
        if (batch.length(s) == 0 && unit < width) this->put_state(a.h, s, unit, h0);
    }
    QT_INLINE void gates(int64_t s, int64_t t, int64_t unit, const IO* x, const T* sum, A* rh) const {
        const int64_t count = width - unit;
        Vec<T> r = sigmoid<T>(load(sum) + get<T>(x + unit, count));
        Vec<T> z = sigmoid<T>(load(sum + L) + get<T>(x + width + unit, count));
        Vec<T> inner = r * load(at(carried, s, unit));
        store(at(other, s, unit), z);
        P::put(rh + unit, inner);
        if (!a.gates) return;
        store(keep(s, t, unit), r);
        store(keep(s, t, unit) + padded, z);
        put<T>((IO*)a.inner + batch.position(s, t) * width + unit, inner, count);
    }
    // One step's gates: x is the drive of these units, gates `apart`; rh is wide, rounded as an operand.
    QT_INLINE void gates_of(int64_t s, int64_t unit, const IO* x, int64_t apart, const T* sum, T* rh) const {
        const int64_t count = width - unit;
        Vec<T> r = sigmoid<T>(load(sum) + get<T>(x, count));
        store(at(other, s, unit), sigmoid<T>(load(sum + L) + get<T>(x + apart, count)));
        IO rounded[L];
        Data<T, IO>::put(rounded, r * load(at(carried, s, unit)));
        store(rh + unit, Data<T, IO>::get(rounded));
    }
    QT_INLINE void candidate(int64_t s, int64_t t, int64_t unit, const IO* x, const T* sum, A* h_next) const {
        candidate_of(s, t, unit, x + 2 * width + unit, sum, h_next);
    }
    QT_INLINE void candidate_of(int64_t s, int64_t t, int64_t unit, const IO* x, const T* sum, A* h_next) const {
        Vec<T> n = tanh<T>(load(sum) + get<T>(x, width - unit));
        Vec<T> h = n + load(at(other, s, unit)) * (load(at(carried, s, unit)) - n);
        store(at(carried, s, unit), h);
        P::put(h_next + unit, h);
        this->put_h(s, t, unit, h);
        if (a.gates) store(keep(s, t, unit) + 2 * padded, n);
    }

    QT_INLINE void back_candidate(int64_t s, int64_t t, int64_t unit, Vec<T> through, IO* dx, A* dn) const {
        Vec<T> z = load(keep(s, t, unit) + padded), n = load(keep(s, t, unit) + 2 * padded);
        Vec<T> dh = through + load(at(carried, s, unit)) + this->dh(s, t, unit);
        store(at(carried, s, unit), dh * z);
        Vec<T> of_z = dh * (this->h_before(s, t, unit) - n) * z * (T(1) - z), of_n = dh * (T(1) - z) * (T(1) - n * n);
        store(at(other, s, unit), of_z);
        P::put(dn + unit, of_n);
        put<T>(dx + width + unit, of_z, width - unit);
        put<T>(dx + 2 * width + unit, of_n, width - unit);
    }
    QT_INLINE void back_reset(int64_t s, int64_t t, int64_t unit, Vec<T> inner, IO* dx, A* dz) const {
        Vec<T> r = load(keep(s, t, unit));
        store(at(carried, s, unit), load(at(carried, s, unit)) + inner * r);
        Vec<T> of_r = inner * this->h_before(s, t, unit) * r * (T(1) - r);
        P::put(dz + unit, of_r);
        P::put(dz + padded + unit, load(at(other, s, unit)));
        put<T>(dx + unit, of_r, width - unit);
    }
    void first(int64_t s, int64_t unit, Vec<T> through) const {
        through += batch.length(s) == 0 ? this->state(a.dh, s, unit) : load(at(carried, s, unit));
        this->put_state(a.dh0, s, unit, through);
    }
};

constexpr auto nothing_ahead = [](int64_t) {};

template <class C> struct BeforeForward {
    using P = typename C::P;
    using A = typename C::A;
    using T = typename C::T;
    using IO = typename C::IO;
    static int run(const QtRecurrent& a) {
        C cell(a);
        const Batch& batch = cell.batch;
        const int64_t rows = a.sequences, padded = cell.padded, row = P::row(padded);
        Product<P, 2, 2> of_gates{padded / C::L, padded};
        Product<P, 1, 4> of_candidate{padded / C::L, padded};
        const int threads = useful_threads(a, of_candidate.groups(), padded, 3);
        Workspace space(int64_t(sizeof(A)) * (of_gates.size() + of_candidate.size() + 3 * operand_rows(rows) * row) +
                        int64_t(sizeof(T)) * (2 * rows * cell.apart + threads * of_gates.sums));
        if (!space) return NO_MEMORY;
        of_gates.packed = space.get<A>(of_gates.size());
        of_candidate.packed = space.get<A>(of_candidate.size());
        A* operands[3];  // h before and after the step, r h
        for (A*& one : operands) one = space.get<A>(operand_rows(rows) * row);
        cell.carried = space.get<T>(rows * cell.apart);
        cell.other = space.get<T>(rows * cell.apart);
        T* sums = space.get<T>(threads * of_gates.sums);
        int64_t n = rows;
        return in_chunks(a, batch.steps(), false, [&](int64_t first, int64_t steps) {
            with_team(threads, [&, n](Team& team, int index) mutable {
                P::begin();
                const Range mine = part(of_candidate.groups(), team.size, index);
                const Range pairs = {mine.first * 2, std::min(mine.last * 2, of_gates.groups())};
                T* sum = sums + index * of_gates.sums;
                if (first == 0) {
                    for (int64_t vector = mine.first * 4; vector < std::min(mine.last * 4, padded / C::L); ++vector)
                        for (int64_t s = 0; s < rows; ++s) {
                            cell.start(s, vector * C::L, operands[0] + s * row);
                            for (int i = 1; i < 3; ++i) P::put(operands[i] + s * row + vector * C::L, Vec<T>{});
                        }
                    for (int64_t g = pairs.first; g < pairs.last; ++g)
                        for (int j = 0; j < 4; ++j)
                            pack_forward<P>((const IO*)a.weight, a.width, padded, of_gates.packed + g * of_gates.panel(), 4, j, j % 2,
                                            (g * 2 + j / 2) * C::L);
                    for (int64_t g = mine.first; g < mine.last; ++g)
                        for (int j = 0; j < 4; ++j)
                            pack_forward<P>((const IO*)a.weight, a.width, padded, of_candidate.packed + g * of_candidate.panel(), 4, j, 2,
                                            (g * 4 + j) * C::L);
                    team.meet();
                }
                for (int64_t t = first; t < first + steps; ++t) {
                    n = batch.active(t, n);
                    auto x = [&](int64_t s) { return (const IO*)a.x + batch.offset(s, a.chunk ? t - first : t, a.x_row, a.x_step); };
                    A* after = operands[(t + 1) & 1];
                    for (int64_t g = pairs.first; g < pairs.last; ++g)
                        of_gates.run(g, g, operands[t & 1], row, n, n, sum, nothing_ahead, [&](int64_t s, const T* of_row) {
                            for (int u = 0; u < 2; ++u)
                                if (int64_t unit = (g * 2 + u) * C::L; unit < a.width)
                                    cell.gates(s, t, unit, x(s), of_row + u * 2 * C::L, operands[2] + s * row);
                        });
                    team.meet();
                    for (int64_t g = mine.first; g < mine.last; ++g)
                        of_candidate.run(g, g, operands[2], row, n, n, sum, nothing_ahead, [&](int64_t s, const T* of_row) {
                            for (int u = 0; u < 4; ++u)
                                if (int64_t unit = (g * 4 + u) * C::L; unit < a.width)
                                    cell.candidate(s, t, unit, x(s), of_row + u * C::L, after + s * row);
                        });
                    team.meet();
                }
                P::end();
            });
        });
    }
};

template <class C> struct BeforeBackward {
    using P = typename C::P;
    using A = typename C::A;
    using T = typename C::T;
    using IO = typename C::IO;
    static int run(const QtRecurrent& a) {
        C cell(a);
        const Batch& batch = cell.batch;
        const int64_t rows = a.sequences, padded = cell.padded, row = P::row(2 * padded), row_n = P::row(padded);
        Product<P, 1, 4> of_gates{padded / C::L, 2 * padded}, of_candidate{padded / C::L, padded};
        const int threads = useful_threads(a, of_gates.groups(), padded, 3);
        Workspace space(int64_t(sizeof(A)) * (of_gates.size() + of_candidate.size() + operand_rows(rows) * (row + row_n)) +
                        int64_t(sizeof(T)) * (2 * rows * cell.apart + threads * of_gates.sums));
        if (!space) return NO_MEMORY;
        of_gates.packed = space.get<A>(of_gates.size());
        of_candidate.packed = space.get<A>(of_candidate.size());
        A *dz = space.get<A>(operand_rows(rows) * row), *dn = space.get<A>(operand_rows(rows) * row_n);
        cell.carried = space.get<T>(rows * cell.apart);
        cell.other = space.get<T>(rows * cell.apart);
        T* sums = space.get<T>(threads * of_gates.sums);
        const int64_t last = batch.steps() - 1;
        return in_chunks(a, batch.steps(), true, [&](int64_t first, int64_t steps) {
            with_team(threads, [&](Team& team, int index) {
                P::begin();
                const Range mine = part(of_gates.groups(), team.size, index);
                T* sum = sums + index * of_gates.sums;
                if (first + steps > last) {
                    for (int64_t g = mine.first; g < mine.last; ++g)
                        for (int j = 0; j < 4; ++j) {
                            const int64_t unit = (g * 4 + j) * C::L;
                            pack_backward<P>((const IO*)a.weight, a.width, padded, of_gates.packed + g * of_gates.panel(), 4, j, 0, 2, unit);
                            pack_backward<P>((const IO*)a.weight, a.width, padded, of_candidate.packed + g * of_candidate.panel(), 4, j, 2, 1,
                                             unit);
                            for (int64_t s = 0; s < rows && unit < padded; ++s) {
                                store(cell.at(cell.carried, s, unit), Vec<T>{});
                                P::put(dz + s * row + unit, Vec<T>{});
                                P::put(dz + s * row + padded + unit, Vec<T>{});
                                P::put(dn + s * row_n + unit, Vec<T>{});
                            }
                        }
                    team.meet();
                }
                int64_t later = batch.active(first + steps, 0), n = later;
                for (int64_t t = first + steps - 1; t >= (first == 0 ? -1 : first); --t, later = n) {
                    n = t < 0 ? rows : batch.active(t, n);
                    auto dx = [&](int64_t s) { return cell.dx(s, a.chunk ? t - first : t); };
                    for (int64_t g = mine.first; g < mine.last; ++g)
                        of_gates.run(g, g, dz, row, n, later, sum, nothing_ahead, [&](int64_t s, const T* of_row) {
                            for (int u = 0; u < 4; ++u) {
                                const int64_t unit = (g * 4 + u) * C::L;
                                if (unit >= a.width) return;
                                Vec<T> through = load(of_row + u * C::L);
                                if (t < 0) {
                                    cell.first(s, unit, through);
                                    continue;
                                }
                                // z's operands wait: the others still read those of the step after
                                cell.back_candidate(s, t, unit, through, dx(s), dn + s * row_n);
                            }
                        });
                    team.meet();
                    if (t < 0) break;
                    for (int64_t g = mine.first; g < mine.last; ++g)
                        of_candidate.run(g, g, dn, row_n, n, n, sum, nothing_ahead, [&](int64_t s, const T* of_row) {
                            for (int u = 0; u < 4; ++u)
                                if (int64_t unit = (g * 4 + u) * C::L; unit < a.width)
                                    cell.back_reset(s, t, unit, load(of_row + u * C::L), dx(s), dz + s * row);
                        });
                    team.meet();
                }
                P::end();
            });
        });
    }
};

}  // namespace
