// One step for a few rows, input projection included, straight from the weights as torch stores them: each is read once,
// so packing would only add work. Numbers as the scans give them, up to the order of sums.
#pragma once
#include "gru_before.h"

namespace {

constexpr int64_t most_step_rows = 8;

template <class T> QT_INLINE T total(Vec<T> v) {
    T lanes_of[lanes<T>], sum = 0;
    std::memcpy(lanes_of, &v, sizeof v);
    for (int width = lanes<T> / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes_of[i] += lanes_of[i + width];
    sum = lanes_of[0];
    return sum;
}

// out[j][r] = dot(row j of w, row r of x) for J rows of weights `apart`, R rows of x padded to whole vectors with zeros.
template <class T, class IO, int J, int R>
QT_INLINE void dots(const IO* w, int64_t apart, const T* x, int64_t row, int64_t width, T (&out)[J][R]) {
    Vec<T> sum[J][R] = {};
    int64_t k = 0;
    for (; k + lanes<T> <= width; k += lanes<T>)
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) {
            Vec<T> v = Data<T, IO>::get(w + j * apart + k);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sum[j][r] += v * load(x + r * row + k);
        }
    for (int j = 0; k < width && j < J; ++j) {
        Vec<T> v = get<T>(w + j * apart + k, width - k);
        for (int r = 0; r < R; ++r) sum[j][r] += v * load(x + r * row + k);
    }
    for (int j = 0; j < J; ++j)
        for (int r = 0; r < R; ++r) out[j][r] = total<T>(sum[j][r]);
}

// Products of units [unit, unit + L) of one gate with all rows: out (rows, L).
template <class T, class IO>
void unit_products(const IO* w, int64_t units, int64_t apart, const T* x, int64_t row, int64_t rows, int64_t width, T* out, int64_t out_row) {
    auto some = [&](auto rows_at_once, int64_t first) {
        constexpr int R = decltype(rows_at_once)::value, J = R == 1 ? 8 : R == 2 ? 4 : 2;
        int64_t u = 0;
        auto take = [&](auto at_once) {
            constexpr int N = decltype(at_once)::value;
            for (; u + N <= units; u += N) {
                T sums[N][R];
                dots<T, IO, N, R>(w + u * apart, apart, x + first * row, row, width, sums);
                for (int j = 0; j < N; ++j)
                    for (int r = 0; r < R; ++r) out[(first + r) * out_row + u + j] = sums[j][r];
            }
        };
        take(std::integral_constant<int, J>{});
        take(std::integral_constant<int, 1>{});
    };
    int64_t first = 0;
    for (; first + 4 <= rows; first += 4) some(std::integral_constant<int, 4>{}, first);
    for (; first + 2 <= rows; first += 2) some(std::integral_constant<int, 2>{}, first);
    for (; first < rows; ++first) some(std::integral_constant<int, 1>{}, first);
}

// x (rows, width) of type IO, wide and padded with zeros.
template <class T, class IO> void widen_rows(const IO* x, int64_t rows, int64_t width, T* out, int64_t row) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < row; k += lanes<T>) store(out + r * row + k, k < width ? get<T>(x + r * width + k, width - k) : Vec<T>{});
}
// The state as the scans multiply it: rounded where they round it.
template <class C> void operand_rows_of(const C& cell, const void* h0, int64_t rows, typename C::T* out, int64_t row) {
    using T = typename C::T;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < row; k += lanes<T>) {
            typename C::IO rounded[lanes<T>];
            Data<T, typename C::IO>::put(rounded, k < cell.width ? cell.state(h0, r, k) : Vec<T>{});
            store(out + r * row + k, Data<T, typename C::IO>::get(rounded));
        }
}

// What one thread works with: drive of L units of every gate (rows, gates, L), and products with the state.
template <class C> struct Step {
    using T = typename C::T;
    using IO = typename C::IO;
    static constexpr int L = C::L;
    const QtRecurrent& a;
    const C& cell;
    int64_t rows, x_row, h_row;
    const T *x, *h;

    QT_INLINE void drive(int64_t gate, int64_t unit, IO* out, int64_t out_row) const {  // rounded to the data's type, as a layer is
        const int64_t units = std::min<int64_t>(L, a.width - unit), at = gate * a.width + unit;
        alignas(64) T sums[most_step_rows * L] = {};
        unit_products<T, IO>((const IO*)a.in_weight + at * a.in_width, units, a.in_width, x, x_row, rows, a.in_width, sums, L);
        Vec<T> bias = a.in_bias ? get<T>((const IO*)a.in_bias + at, units) : Vec<T>{};
        for (int64_t r = 0; r < rows; ++r) Data<T, IO>::put(out + r * out_row, load(sums + r * L) + bias);
    }
    QT_INLINE void recurrent(int64_t gate, int64_t unit, const T* operand, T* out, int64_t out_row) const {
        const int64_t units = std::min<int64_t>(L, a.width - unit);
        unit_products<T, IO>((const IO*)a.weight + (gate * a.width + unit) * a.width, units, a.width, operand, h_row, rows, a.width, out,
                             out_row);
    }
};

template <class C> int step_once(const QtRecurrent& a) {
    using T = typename C::T;
    using IO = typename C::IO;
    constexpr int L = C::L, G = C::step_gates;
    C cell(a);
    const int64_t rows = a.sequences, padded = cell.padded, x_row = round_up(a.in_width, L), vectors = (a.width + L - 1) / L;
    if (rows > most_step_rows) return REFUSED;
    const int64_t numbers = G * a.width * (a.in_width + a.width);
    const int threads = int(std::max<int64_t>(1, std::min({a.threads, vectors, numbers / 20000})));
    Workspace space(int64_t(sizeof(T)) * rows * (x_row + 2 * padded + 2 * cell.apart) + int64_t(sizeof(typename C::A)) * rows * padded);
    if (!space) return NO_MEMORY;
    T *x = space.get<T>(rows * x_row), *h = space.get<T>(rows * padded), *rh = space.get<T>(rows * padded);
    cell.carried = space.get<T>(rows * cell.apart);
    if constexpr (C::two_products) cell.other = space.get<T>(rows * cell.apart);
    auto* scratch = space.get<typename C::A>(rows * padded);
    widen_rows<T>((const IO*)a.x, rows, a.in_width, x, x_row);
    operand_rows_of(cell, a.h0, rows, h, padded);
    if constexpr (C::two_products) std::fill(rh, rh + rows * padded, T(0));
    Step<C> step{a, cell, rows, x_row, padded, x, h};
    with_team(threads, [&](Team& team, int index) {
        const Range mine = part(vectors, team.size, index);
        alignas(64) IO drive[most_step_rows * G * L];
        alignas(64) T sums[most_step_rows * G * L] = {};
        for (int64_t v = mine.first; v < mine.last; ++v) {
            const int64_t unit = v * L;
            for (int64_t s = 0; s < rows; ++s) cell.start(s, unit, scratch + s * padded);
            const int first_gates = C::two_products ? 2 : G;
            for (int j = 0; j < first_gates; ++j) {
                step.drive(j, unit, drive + j * L, G * L);
                step.recurrent(j, unit, h, sums + j * L, G * L);
            }
            for (int64_t s = 0; s < rows; ++s) {
                if constexpr (C::two_products) {
                    cell.gates_of(s, unit, drive + s * G * L, L, sums + s * G * L, rh + s * padded);
                } else {
                    cell.forward_of(s, 0, unit, drive + s * G * L, L, sums + s * G * L, scratch + s * padded);
                }
            }
        }
        if constexpr (C::two_products) {
            team.meet();
            for (int64_t v = mine.first; v < mine.last; ++v) {
                const int64_t unit = v * L;
                step.drive(2, unit, drive, G * L);
                step.recurrent(2, unit, rh, sums, G * L);
                for (int64_t s = 0; s < rows; ++s) cell.candidate_of(s, 0, unit, drive + s * G * L, sums + s * G * L, scratch + s * padded);
            }
        }
    });
    return 0;
}
template <class C> struct Once { static int run(const QtRecurrent& a) { return step_once<C>(a); } };

}  // namespace
