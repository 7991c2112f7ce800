// The loops that the recurrent scans share; each op brings its cell. A thread owns some units of the state: it computes
// them for all rows from the whole state before, then meets the others. Numbers do not depend on the number of threads.
#pragma once
#include "recurrent_products.h"

namespace {

// Sequences ranked by length, longest first: the rows of a step are always the first ones.
struct Batch {
    explicit Batch(const QtRecurrent& a) : a(a) {}
    const QtRecurrent& a;
    int64_t length(int64_t s) const { return a.lengths ? a.lengths[s] : a.time; }
    int64_t position(int64_t s, int64_t t) const { return (a.first ? a.first[s] : s * a.time) + t; }
    int64_t saved(int64_t s, int64_t t) const { return a.first ? a.first[s] + t : t * a.batch + s; }  // row of saved tensors
    int64_t state(int64_t s) const { return a.order ? a.order[s] : s; }
    int64_t steps() const { return length(0); }
    int64_t active(int64_t t, int64_t n) const {  // rows of step t, from those of a step near it
        while (n > 0 && length(n - 1) <= t) --n;
        while (n < a.sequences && length(n) > t) ++n;
        return n;
    }
    // Where step t of a sequence stands in data with these strides. Packed rows are one row of the batch.
    int64_t offset(int64_t s, int64_t t, int64_t row, int64_t step) const {
        if (!a.first) return s * row + t * step;
        return a.batch == 1 ? (a.first[s] + t) * step : state(s) * row + t * step;
    }
};

// What all cells know. T: compute type; IO: type of the data; P: the product's operands.
template <class Type, class Data, class Operands> struct Cell {
    using T = Type;
    using IO = Data;
    using P = Operands;
    using A = typename P::Operand;
    static constexpr int L = lanes<T>;
    explicit Cell(const QtRecurrent& a) : a(a), batch(a), width(a.width), padded(round_up(a.width, P::pad)) {}
    const QtRecurrent& a;
    Batch batch;
    const int64_t width, padded;
    T* carried = nullptr;                    // (rows, apart): what a cell keeps from step to step, wide
    const int64_t apart = padded + 64 / int64_t(sizeof(T));

    Vec<T> state(const void* p, int64_t s, int64_t unit) const {
        return p ? get<T>((const T*)p + batch.state(s) * width + unit, width - unit) : Vec<T>{};
    }
    void put_state(void* p, int64_t s, int64_t unit, Vec<T> v) const {
        if (p) put<T>((T*)p + batch.state(s) * width + unit, v, width - unit);
    }
    Vec<T> h_before(int64_t s, int64_t t, int64_t unit) const {
        if (t == 0) return state(a.h0, s, unit);
        return get<T>((const T*)a.states + (batch.position(s, t) - 1) * a.states_row + unit, a.states_row - unit);
    }
    // Results of a step; the state after the last one.
    QT_INLINE void put_h(int64_t s, int64_t t, int64_t unit, Vec<T> h) const {
        const int64_t at = batch.position(s, t);
        put<T>((IO*)a.y + at * width + unit, h, width - unit);
        if (a.states && a.states != a.y) store((T*)a.states + at * a.states_row + unit, h);
        if (t == batch.length(s) - 1) put_state(a.h, s, unit, h);
    }
    // Cotangent of h_t but for what comes through the next step's product.
    QT_INLINE Vec<T> dh(int64_t s, int64_t t, int64_t unit) const {
        Vec<T> d = get<T>((const IO*)a.dy + batch.offset(s, t, a.dy_row, a.dy_step) + unit, width - unit);
        return t == batch.length(s) - 1 ? d + state(a.dh, s, unit) : d;
    }
    // Where the cotangents of a step's x begin; steps count from the chunk's first.
    QT_INLINE IO* dx(int64_t s, int64_t local) const { return (IO*)a.dx + batch.offset(s, local, a.dx_row, a.dx_step); }
    template <int Gates> QT_INLINE void put_dx(int64_t s, int64_t local, int64_t unit, const Vec<T> (&d)[Gates]) const {
        IO* to = dx(s, local) + unit;
        for (int j = 0; j < Gates; ++j) put<T>(to + j * width, d[j], width - unit);
    }
};

// Threads that have something to do: a step of few operations is not worth a meeting.
inline int useful_threads(const QtRecurrent& a, int64_t groups, int64_t padded, int64_t gates) {
    int64_t by_work = std::max<int64_t>(1, a.sequences * gates * padded * padded / 40000);
    return int(std::max<int64_t>(1, std::min({a.threads, groups, by_work})));
}

constexpr int REFUSED = 1, NO_MEMORY = 2, STOPPED = 3;

// chunk(first step, steps) for all steps, or once where the data are given whole.
template <class Chunk> int in_chunks(const QtRecurrent& a, int64_t steps, bool backwards, Chunk chunk) {
    const int64_t size = a.chunk ? a.chunk : std::max<int64_t>(steps, 1), count = std::max<int64_t>(1, (steps + size - 1) / size);
    for (int64_t i = 0; i < count; ++i) {
        int64_t first = (backwards ? count - 1 - i : i) * size, some = std::min(size, steps - first);
        if (a.chunk && !backwards && a.callback(first, some)) return STOPPED;
        chunk(first, some);
        if (a.chunk && backwards && a.callback(first, some)) return STOPPED;
    }
    return 0;
}

template <class C> int scan_forward(const QtRecurrent& a) {
    using P = typename C::P;
    using A = typename C::A;
    using T = typename C::T;
    using IO = typename C::IO;
    C cell(a);
    const Batch& batch = cell.batch;
    const int64_t rows = a.sequences, padded = cell.padded, row = P::row(padded);
    Product<P, C::gates, C::units> product{padded / C::L, padded};
    const int threads = useful_threads(a, product.groups(), padded, C::gates);
    Workspace space(int64_t(sizeof(A)) * (product.size() + 2 * operand_rows(rows) * row) +
                    int64_t(sizeof(T)) * (rows * cell.apart + threads * product.sums));
    if (!space) return NO_MEMORY;
    A* h[2];
    product.packed = space.get<A>(product.size());
    for (A*& one : h) one = space.get<A>(operand_rows(rows) * row);
    cell.carried = space.get<T>(rows * cell.apart);
    T* sums = space.get<T>(threads * product.sums);
    int64_t n = rows;
    return in_chunks(a, batch.steps(), false, [&](int64_t first, int64_t steps) {
        with_team(threads, [&, n](Team& team, int index) mutable {
            P::begin();
            const Range mine = part(product.groups(), team.size, index);
            auto after_this = [&](int64_t g) { return g + 1 < mine.last ? g + 1 : mine.first; };
            T* sum = sums + index * product.sums;
            if (first == 0) {
                for (int64_t g = mine.first; g < mine.last; ++g)
                    for (int u = 0; u < C::units; ++u) {
                        const int64_t unit = (g * C::units + u) * C::L;
                        for (int j = 0; j < C::gates; ++j)
                            pack_forward<P>((const IO*)a.weight, a.width, padded, product.packed + g * product.panel(), product.V,
                                            u * C::gates + j, j, unit);
                        if (unit >= padded) break;
                        for (int64_t s = 0; s < rows; ++s) {
                            cell.start(s, unit, h[0] + s * row);
                            P::put(h[1] + s * row + unit, Vec<T>{});  // where the state is padded, it stays
                        }
                    }
                team.meet();
            }
            for (int64_t t = first; t < first + steps; ++t) {
                n = batch.active(t, n);
                const A* before = h[t & 1];
                A* after = h[(t + 1) & 1];
                for (int64_t g = mine.first; g < mine.last; ++g) {
                    auto x = [&](int64_t s) {
                        return (const IO*)a.x + batch.offset(s, a.chunk ? t - first : t, a.x_row, a.x_step);
                    };
                    product.run(g, after_this(g), before, row, n, n, sum,
                        [&](int64_t s) {
                            const IO* at = x(s) + g * C::units * C::L;
                            for (int j = 0; j < C::gates; ++j)
                                for (int u = 0; u < C::units; ++u) __builtin_prefetch(at + j * a.width + u * C::L);
                        },
                        [&](int64_t s, const T* sums_of_row) {
                            for (int u = 0; u < C::units; ++u) {
                                const int64_t unit = (g * C::units + u) * C::L;
                                if (unit < a.width) cell.forward(s, t, unit, x(s), sums_of_row + u * C::gates * C::L, after + s * row);
                            }
                        });
                }
                team.meet();
            }
            P::end();
        });
    });
}

template <class C> int scan_backward(const QtRecurrent& a) {
    using P = typename C::P;
    using A = typename C::A;
    using T = typename C::T;
    using IO = typename C::IO;
    C cell(a);
    const Batch& batch = cell.batch;
    const int64_t rows = a.sequences, padded = cell.padded, depth = C::gates * padded, row = P::row(depth);
    Product<P, 1, 4> product{padded / C::L, depth};
    const int threads = useful_threads(a, product.groups(), padded, C::gates);
    Workspace space(int64_t(sizeof(A)) * (product.size() + 2 * operand_rows(rows) * row) +
                    int64_t(sizeof(T)) * (rows * cell.apart + threads * product.sums));
    if (!space) return NO_MEMORY;
    A* dz[2];
    product.packed = space.get<A>(product.size());
    for (A*& one : dz) one = space.get<A>(operand_rows(rows) * row);
    cell.carried = space.get<T>(rows * cell.apart);
    T* sums = space.get<T>(threads * product.sums);
    const int64_t last = batch.steps() - 1;
    return in_chunks(a, batch.steps(), true, [&](int64_t first, int64_t steps) {
        with_team(threads, [&](Team& team, int index) {
            P::begin();
            const Range mine = part(product.groups(), team.size, index);
            auto after_this = [&](int64_t g) { return g + 1 < mine.last ? g + 1 : mine.first; };
            T* sum = sums + index * product.sums;
            const int64_t begin = mine.first * 4 * C::L, end = std::min(mine.last * 4 * C::L, padded);
            if (first + steps > last) {
                for (int64_t g = mine.first; g < mine.last; ++g)
                    for (int j = 0; j < 4; ++j)
                        pack_backward<P>((const IO*)a.weight, a.width, padded, product.packed + g * product.panel(), 4, j, 0, C::gates,
                                         (g * 4 + j) * C::L);
                for (int64_t unit = begin; unit < end; unit += C::L)
                    for (int64_t s = 0; s < rows; ++s) cell.finish(s, unit);
                if (a.width < padded)  // their products are with zeros, which must not meet NaN
                    for (A* one : dz)
                        for (int64_t i = index; i < operand_rows(rows); i += team.size) std::fill(one + i * row, one + (i + 1) * row, A{});
                team.meet();
            }
            int64_t later = batch.active(first + steps, 0), n = later;
            for (int64_t t = first + steps - 1; t >= (first == 0 ? -1 : first); --t, later = n) {
                n = t < 0 ? rows : batch.active(t, n);
                const A* after = dz[(t + 1) & 1];
                A* now = dz[t & 1];
                for (int64_t g = mine.first; g < mine.last; ++g)
                    product.run(g, after_this(g), after, row, n, later, sum,
                        [&](int64_t s) { if (t >= 0) cell.ahead(s, t, g * 4 * C::L); },
                        [&](int64_t s, const T* sums_of_row) {
                            for (int u = 0; u < 4; ++u) {
                                const int64_t unit = (g * 4 + u) * C::L;
                                if (unit >= a.width) return;
                                Vec<T> through = load(sums_of_row + u * C::L);
                                if (t < 0) {
                                    cell.first(s, unit, through);
                                    continue;
                                }
                                const int64_t local = a.chunk ? t - first : t;
                                cell.backward(s, t, local, unit, through, now + s * row);
                            }
                        });
                team.meet();
            }
            P::end();
        });
    });
}

// run.template operator()<T, IO, P>() for the data's type and the best operands that the processor has.
template <template <class, class, class> class C, template <class> class Run> int dispatch(const QtRecurrent& a) {
    switch (a.dtype) {
        case QT_F32: return Run<C<float, float, Plain<float>>>::run(a);
        case QT_F64: return Run<C<double, double, Plain<double>>>::run(a);
        case QT_BF16:
#if defined(__AVX512BF16__)
            if (Tiles::granted()) return Run<C<float, bf16, Tiles>>::run(a);
            return Run<C<float, bf16, Pairs>>::run(a);
#else
            return Run<C<float, bf16, Rounded>>::run(a);
#endif
    }
    return REFUSED;
}
template <class C> struct Forward { static int run(const QtRecurrent& a) { return scan_forward<C>(a); } };
template <class C> struct Backward { static int run(const QtRecurrent& a) { return scan_backward<C>(a); } };

}  // namespace
