// Runs every entry point of the core on small inputs of its own, for the sanitizers: shapes that leave tails, padded and
// packed rows, more threads than work. Compiled together with the core's sources, without OpenMP.
#include <cstdio>

#include "arrays.h"

extern "C" {
int qt_s6_plan_forward(int64_t*);
int qt_s6_plan_backward(int64_t*);
int qt_s6_forward(int64_t*);
int qt_s6_backward(int64_t*);
int qt_s6_step(const int64_t*);
int qt_conv_plan(int64_t*);
int qt_conv_forward(int64_t*);
int qt_conv_backward(int64_t*);
int64_t qt_count(int64_t, int64_t);
}

void steps();  // steps.cpp

namespace {

void scan(int64_t dtype, int64_t wide, int64_t B, int64_t T, int64_t E, int64_t N, int64_t G, int form, bool all, bool zoh, int64_t threads) {
    const int64_t S = form == 2 ? 4 : B;
    const std::vector<int64_t> lengths = form == 2 ? std::vector<int64_t>{T / 3, 0, 1, T - T / 3 - 1} : std::vector<int64_t>{T, 0, T / 2};
    const std::vector<int64_t> first = {0, T / 3, T / 3, T / 3 + 1};
    Array u(dtype, {B, T, E}, true), delta(dtype, {B, T, E}, true), a(wide, {E, N}, true), b(dtype, {B, T, G, N}, true), c(dtype, {B, T, G, N}, true);
    Array skip, gate, bias, h0, y(dtype, {B, T, E}, false), h(wide, {S, E, N}, false);
    if (all) skip = Array(wide, {E}, true), gate = Array(dtype, {B, T, E}, true), bias = Array(wide, {E}, true), h0 = Array(wide, {S, E, N}, true);
    Row head = {threads, 1, zoh, wide, B, T, E, N, G, S, form == 2, form == 2 ? reinterpret_cast<int64_t>(first.data()) : 0,
                form ? reinterpret_cast<int64_t>(lengths.data()) : 0};
    const auto sizes = [&](int (*plan)(int64_t*)) {
        Row row = head;
        row.resize(row.size() + 4);
        plan(row.data());
        return std::pair<int64_t, int64_t>(row[row.size() - 2], row[row.size() - 1]);
    };
    const auto [bound_count, forward_work] = sizes(qt_s6_plan_forward);
    const int64_t backward_work = sizes(qt_s6_plan_backward).second;
    Array bounds(wide, {bound_count}, false), work(wide, {forward_work + 1}, false), more(wide, {backward_work}, false);
    const auto run = [&](int (*entry)(int64_t*), const Array& space, std::vector<const Array*> rest) {
        Row row = head;
        for (const Array* x : std::vector<const Array*>{&bounds, static_cast<const Array*>(&space)}) row.push_back(reinterpret_cast<int64_t>(x->memory.get()));
        row.resize(row.size() + 2);
        for (const Array* x : std::vector<const Array*>{&u, &delta, &a, &b, &c, &skip, &gate, &bias, &h0}) x->describe(row);
        for (const Array* x : rest) x->describe(row);
        if (entry(row.data()) != 0) std::abort();
    };
    const Array none;
    run(qt_s6_forward, work, {&y, &h, &none, &none, &none, &none, &none, &none, &none, &none, &none, &none, &none});
    Array dy(dtype, {B, T, E}, true), dh(wide, {S, E, N}, true), d_u(dtype, {B, T, E}, false), d_delta(dtype, {B, T, E}, false);
    Array d_a(wide, {E, N}, false), d_b(dtype, {B, T, G, N}, false), d_c(dtype, {B, T, G, N}, false), d_skip, d_gate, d_bias, d_h0;
    if (all) d_skip = Array(wide, {E}, false), d_gate = Array(dtype, {B, T, E}, false), d_bias = Array(wide, {E}, false), d_h0 = Array(wide, {S, E, N}, false);
    run(qt_s6_backward, more, {&none, &none, &dy, &dh, &d_u, &d_delta, &d_a, &d_b, &d_c, &d_skip, &d_gate, &d_bias, &d_h0});
}

void step(int64_t dtype, int64_t wide, int64_t B, int64_t E, int64_t N, int64_t G) {
    Array u(dtype, {B, E}, true), a(wide, {E, N}, true), b(dtype, {B, G, N}, true), v(wide, {E}, true), h0(wide, {B, E, N}, true);
    Array y(dtype, {B, E}, false), h(wide, {B, E, N}, false);
    Row row = {3, 1, 0, wide, B, E, N, G};
    for (const Array* x : std::vector<const Array*>{&u, &u, &a, &b, &b, &v, &u, &v, &h0, &y, &h}) x->describe(row);
    if (qt_s6_step(row.data()) != 0) std::abort();
}

void convolve(int64_t dtype, int64_t wide, int64_t B, int64_t T, int64_t E, int64_t W, int form, bool all, int64_t threads) {
    const int64_t S = form == 2 ? 4 : B;
    const std::vector<int64_t> lengths = form == 2 ? std::vector<int64_t>{T / 3, 0, 1, T - T / 3 - 1} : std::vector<int64_t>{T, 0, T / 2};
    const std::vector<int64_t> first = {0, T / 3, T / 3, T / 3 + 1};
    Array x(dtype, {B, T, E}, true), weight(wide, {E, W}, true), bias, h0, y(dtype, {B, T, E}, false), h(dtype, {S, W - 1, E}, false);
    if (all) bias = Array(wide, {E}, true), h0 = Array(dtype, {S, W - 1, E}, true);
    Row head = {threads, 1, wide, B, T, E, W, S, form == 2, form == 2 ? reinterpret_cast<int64_t>(first.data()) : 0,
                form ? reinterpret_cast<int64_t>(lengths.data()) : 0};
    Row plan = head;
    plan.resize(plan.size() + 2);
    qt_conv_plan(plan.data());
    Array work(wide, {plan.back()}, false), dy(dtype, {B, T, E}, true), dh(dtype, {S, W - 1, E}, true);
    Array d_x(dtype, {B, T, E}, false), d_weight(wide, {E, W}, false), d_bias, d_h0;
    if (all) d_bias = Array(wide, {E}, false), d_h0 = Array(dtype, {S, W - 1, E}, false);
    const Array none;
    for (const bool backward : {false, true}) {
        Row row = head;
        row.push_back(reinterpret_cast<int64_t>(work.memory.get()));
        row.push_back(0);
        for (const Array* p : std::vector<const Array*>{&x, &weight, &bias, &h0}) p->describe(row);
        for (const Array* p : backward ? std::vector<const Array*>{&none, &none, &dy, &dh, &d_x, &d_weight, &d_bias, &d_h0}
                                       : std::vector<const Array*>{&y, &h, &none, &none, &none, &none, &none, &none})
            p->describe(row);
        if ((backward ? qt_conv_backward : qt_conv_forward)(row.data()) != 0) std::abort();
    }
}

}  // namespace

int main() {
    const int64_t types[][2] = {{QT_F32, QT_F32}, {QT_F64, QT_F64}, {QT_BF16, QT_F32}, {QT_F16, QT_F32}};
    if (qt_count(100, 4) != 100) return 1;
    for (const auto& [dtype, wide] : types)
        for (int form = 0; form < 3; ++form)
            for (const bool all : {false, true}) {
                const int64_t B = form == 2 ? 1 : 3;
                scan(dtype, wide, B, 67, 19, 5, 1, form, all, all, 3);
                scan(dtype, wide, B, 130, 36, 16, 2, form, all, false, 4);
                convolve(dtype, wide, B, 70, 19, 4, form, all, 3);
                convolve(dtype, wide, B, 700, 9, 8, form, all, 4);
            }
    scan(QT_F32, QT_F32, 1, 600, 16, 16, 1, 0, true, false, 4);  // states in two parts
    scan(QT_F32, QT_F32, 1, 600, 13, 17, 1, 0, true, true, 4);
    for (const auto& [dtype, wide] : types) step(dtype, wide, 2, 35, 19, 5), step(dtype, wide, 3, 700, 64, 1);
    steps();
    std::puts("done");
}
