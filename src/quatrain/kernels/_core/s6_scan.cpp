// s6_scan on a CPU, forward and backward; the derivation is in kernels/s6_scan/README.md.
#include <initializer_list>

#include "parallel.h"
#include "s6.h"
#include "s6_plan.h"

namespace quatrain {
namespace {

thread_local Scratch scratch;

// One task: a group of sequences, a range of channels of one group of them, a part of the states.
template <class S, bool ZOH> struct Task {
    static constexpr int W = lanes<S>;
    const S6Args& k;
    const S6Plan& p;
    int64_t rows, group, range, part, block0, count;  // blocks of the range
    Tile<S> tile{};
    S *u, *dt, *raw, *du, *y, *dys, *gate, *dy, *along_b, *along_a, *hold, *out, *maps_b, *maps_c, *flat;
    S *h, *rate2, *inv_rate, *later, *d_rate, *d_skip, *d_bias, *skip, *bias;

    Task(const S6Args& args, const S6Plan& plan, int64_t index) : k(args), p(plan) {
        part = index % p.parts;
        range = index / p.parts % p.ranges_all;
        rows = index / p.parts / p.ranges_all;
        group = range / p.ranges;
        const int64_t r = range % p.ranges;
        block0 = r * p.group_blocks / p.ranges;
        count = (r + 1) * p.group_blocks / p.ranges - block0;
        const int64_t vector = p.tile * W, map = p.tile * k.states, state = count * k.states * W;
        const int64_t numbers = 12 * vector + 3 * map + 5 * state + 4 * count * W +
                                (p.backward ? 2 * map * W + 3 * vector * 8 : 0);
        scratch.reset(numbers * int64_t(sizeof(S)) + 40 * Scratch::padded<S>(16));
        for (S** x : {&u, &dt, &raw, &du, &y, &dys, &gate, &dy, &along_b, &along_a, &hold, &out})
            *x = scratch.take<S>(vector);
        for (S** x : {&maps_b, &maps_c, &flat}) *x = scratch.take<S>(map);
        for (S** x : {&h, &rate2, &inv_rate, &later, &d_rate}) *x = scratch.take<S>(state);
        for (S** x : {&d_skip, &d_bias, &skip, &bias}) *x = scratch.take<S>(count * W);
        if (p.backward) {
            tile.d_b = scratch.take<S>(map * W);
            tile.d_c = scratch.take<S>(map * W);
            for (S** x : {&tile.states_scratch, &tile.decays_scratch, &tile.drive_scratch}) *x = scratch.take<S>(vector * 8);
            std::fill(d_rate, d_rate + state, S(0));
            std::fill(d_skip, d_skip + count * W, S(0));
            std::fill(d_bias, d_bias + count * W, S(0));
        }
        tile.states = k.states;
        tile.n0 = part * k.states / p.parts;
        tile.n1 = (part + 1) * k.states / p.parts;
        tile.u = u, tile.dt = dt, tile.du = du, tile.dys = dys, tile.y = y, tile.b = maps_b, tile.c = maps_c;
        tile.along_a = along_a, tile.along_b = along_b, tile.hold = hold;
        for (int64_t i = 0; i < count; ++i) load_parameters(i);
    }

    int64_t channel(int64_t i) const { return group * p.group_width + (block0 + i) * W; }
    int width(int64_t i) const { return int(std::min<int64_t>(W, p.group_width - (block0 + i) * W)); }
    int64_t block(int64_t i) const { return group * p.group_blocks + block0 + i; }

    void load_parameters(int64_t i) {
        const int64_t n = k.states * W;
        load_state(k.a, 0, channel(i), width(i), k.states, rate2 + i * n);
        for (int64_t j = 0; j < n; ++j) {
            inv_rate[i * n + j] = S(1) / rate2[i * n + j];
            rate2[i * n + j] *= log2e<S>;
        }
        for (int l = 0; l < W; ++l) {
            skip[i * W + l] = k.skip.dtype && l < width(i) ? at<S>(k.skip, 0, channel(i) + l) : S(0);
            bias[i * W + l] = k.bias.dtype && l < width(i) ? at<S>(k.bias, 0, channel(i) + l) : S(0);
        }
    }

    // -- one tile of one block

    void load_inputs(int64_t b, int64_t t0, int64_t steps, int64_t i) {
        load_rows(k.u, b, t0, steps, channel(i), width(i), u);
        load_rows(k.delta, b, t0, steps, channel(i), width(i), raw);
        const Vec<S> add = load(bias + i * W);
        S *const raw = this->raw, *const dt = this->dt, *const du = this->du, *const u = this->u;
        const bool softplus = k.softplus;
        for (int64_t t = 0; t < steps; ++t) {
            Vec<S> x = load(raw + t * W) + add;
            store(raw + t * W, x);
            if (softplus) x = vsoftplus<S>(x);
            store(dt + t * W, x);
            store(du + t * W, x * load(u + t * W));
        }
    }

    void begin(int64_t b, int64_t t0, int64_t steps) {
        tile.steps = steps;
        load_map(k.b, b, t0, steps, group, k.states, maps_b);
        load_map(k.c, b, t0, steps, group, k.states, maps_c);
    }

    // Where the rows of the block after block i of this tile lie, in the tensors that are read and written by vectors.
    void look_ahead(int64_t b, int64_t t0, int64_t t_next, int64_t i, std::initializer_list<const QtTensor*> tensors) {
        const int64_t next = i + 1 < count ? i + 1 : 0, t = i + 1 < count ? t0 : t_next;
        tile.streams = 0;
        if (t < 0) return;
        for (const QtTensor* x : tensors) {
            if (!x->dtype) continue;
            const int64_t size = x->dtype == QT_F64 ? 8 : x->dtype == QT_F32 ? 4 : 2;
            tile.next[tile.streams] = static_cast<const char*>(x->data) +
                                      size * (b * x->stride[1] + t * x->stride[2] + channel(next) * x->stride[3]);
            tile.next_step[tile.streams++] = size * x->stride[2];
        }
    }

    void point(int64_t i) {
        const int64_t n = k.states * W;
        tile.rate2 = rate2 + i * n;
        tile.inv_rate = inv_rate + i * n;
        tile.h = h + i * n;
        tile.later = later + i * n;
        tile.d_rate = d_rate + i * n;
    }

    S* bound(int64_t s, int64_t number, int64_t i) const {
        return static_cast<S*>(k.bounds) + ((p.tile_first[size_t(s)] + number) * p.blocks + block(i)) * k.states * W;
    }

    // Sums over this part's states go to the work space, and `finish` adds the parts up.
    S* partial(int64_t which, int64_t of, int64_t b, int64_t t0, int64_t i) const {
        const int64_t all = k.batch * k.time;
        return static_cast<S*>(k.work) + (((of * p.sums + which) * all + b * k.time + t0) * p.blocks + block(i)) * W;
    }
    void put_partial(int64_t which, int64_t b, int64_t t0, int64_t steps, int64_t i, const S* x) const {
        S* to = partial(which, part, b, t0, i);
        for (int64_t t = 0; t < steps; ++t) store(to + t * p.blocks * W, load(x + t * W));
    }
    void sum_partials(int64_t which, int64_t b, int64_t t0, int64_t steps, int64_t i, S* x) const {
        for (int64_t of = 0; of < p.parts; ++of) {
            const S* from = partial(which, of, b, t0, i);
            for (int64_t t = 0; t < steps; ++t) {
                const Vec<S> v = load(from + t * p.blocks * W);
                store(x + t * W, of ? load(x + t * W) + v : v);
            }
        }
    }

    // -- forward

    void forward() {
        for (int64_t s = p.group_first[size_t(rows)]; s < p.group_first[size_t(rows) + 1]; ++s) {
            const int64_t b = p.row(k, s), t_end = p.begin(k, s) + p.length(k, s), n = k.states * W;
            for (int64_t i = 0; i < count; ++i)
                if (k.h0.dtype)
                    load_state(k.h0, s, channel(i), width(i), k.states, h + i * n);
                else
                    std::fill(h + i * n, h + (i + 1) * n, S(0));
            int64_t number = 0;
            for (int64_t t0 = p.begin(k, s); t0 < t_end; t0 += p.tile, ++number) {
                const int64_t steps = std::min(p.tile, t_end - t0);
                begin(b, t0, steps);
                for (int64_t i = 0; i < count; ++i) {
                    point(i);
                    load_inputs(b, t0, steps, i);
                    if (k.bounds) std::memcpy(bound(s, number, i) + tile.n0 * W, tile.h + tile.n0 * W, size_t((tile.n1 - tile.n0) * W) * sizeof(S));
                    std::fill(y, y + steps * W, S(0));
                    look_ahead(b, t0, t0 + steps, i, {&k.u, &k.delta, &k.gate, &k.y});
                    forward_tile<S, ZOH>(tile);
                    if (p.parts > 1)
                        put_partial(0, b, t0, steps, i, y);
                    else
                        write_outputs(b, t0, steps, i);
                }
            }
            for (int64_t i = 0; i < count; ++i) {
                if (k.h.dtype) store_part(k.h, s, i, h + i * n);
                if (!k.packed && part == 0) zero_rows<S>(k.y, b, t_end, k.time, channel(i), width(i));
            }
        }
    }

    void store_part(QtTensor x, int64_t s, int64_t i, const S* in) const {  // this part's states only
        if (tile.n1 == tile.n0) return;
        with_dtype<S>(x.dtype, [&](auto* type) { x.data = static_cast<decltype(type)>(x.data) + tile.n0 * x.stride[3]; });
        store_state(x, s, channel(i), width(i), tile.n1 - tile.n0, in + tile.n0 * W);
    }

    void write_outputs(int64_t b, int64_t t0, int64_t steps, int64_t i) {
        const Vec<S> direct = load(skip + i * W);
        if (k.gate.dtype) load_rows(k.gate, b, t0, steps, channel(i), width(i), gate);
        for (int64_t t = 0; t < steps; ++t) {
            Vec<S> v = load(y + t * W);
            if (k.skip.dtype) v += direct * load(u + t * W);
            if (k.gate.dtype) {
                const Vec<S> z = load(gate + t * W);
                v *= z * vsigmoid<S>(z);
            }
            store(out + t * W, v);
        }
        store_rows(k.y, b, t0, steps, channel(i), width(i), out);
    }

    // Where the states are in two parts there is one group of sequences; its tiles are finished in spans, side by side.
    template <class F> void over_span(int64_t slice, const F& f) {
        const int64_t low = slice * p.tiles / p.slices, high = (slice + 1) * p.tiles / p.slices;
        for (int64_t s = 0; s < k.sequences; ++s) {
            const int64_t first = p.tile_first[size_t(s)], last = p.tile_first[size_t(s) + 1];
            for (int64_t at = std::max(low, first); at < std::min(high, last); ++at) {
                const int64_t t0 = p.begin(k, s) + (at - first) * p.tile;
                f(p.row(k, s), t0, std::min(p.tile, p.begin(k, s) + p.length(k, s) - t0));
            }
        }
    }

    void finish_forward(int64_t slice) {
        over_span(slice, [&](int64_t b, int64_t t0, int64_t steps) {
            for (int64_t i = 0; i < count; ++i) {
                load_rows(k.u, b, t0, steps, channel(i), width(i), u);
                sum_partials(0, b, t0, steps, i, y);
                write_outputs(b, t0, steps, i);
            }
        });
    }

    // -- backward

    void load_cotangents(int64_t b, int64_t t0, int64_t steps, int64_t i) {
        load_rows(k.dy, b, t0, steps, channel(i), width(i), dy);
        if (k.gate.dtype) load_rows(k.gate, b, t0, steps, channel(i), width(i), gate);
        for (int64_t t = 0; t < steps; ++t) {
            Vec<S> v = load(dy + t * W);
            if (k.gate.dtype) {
                const Vec<S> z = load(gate + t * W);
                v *= z * vsigmoid<S>(z);
            }
            store(dys + t * W, v);
        }
    }

    void backward() {
        const int64_t n = k.states * W;
        for (int64_t s = p.group_first[size_t(rows) + 1] - 1; s >= p.group_first[size_t(rows)]; --s) {
            const int64_t b = p.row(k, s), t_begin = p.begin(k, s), length = p.length(k, s);
            for (int64_t i = 0; i < count; ++i) load_state(k.dh, s, channel(i), width(i), k.states, later + i * n);
            for (int64_t number = (length + p.tile - 1) / p.tile - 1; number >= 0; --number) {
                const int64_t t0 = t_begin + number * p.tile, steps = std::min(p.tile, t_begin + length - t0);
                begin(b, t0, steps);
                for (int64_t i = 0; i < count; ++i) {
                    point(i);
                    tile.first = i == 0;
                    tile.h = bound(s, number, i);
                    load_inputs(b, t0, steps, i);
                    load_cotangents(b, t0, steps, i);
                    for (S* x : {y, along_b, along_a, hold}) std::fill(x, x + steps * W, S(0));
                    look_ahead(b, t0, t0 - p.tile < t_begin ? -1 : t0 - p.tile, i, {&k.u, &k.delta, &k.gate, &k.dy, &k.d_u, &k.d_delta});
                    backward_tile<S, ZOH>(tile);
                    if (p.parts > 1) {
                        const S* sums[] = {y, along_b, along_a, hold};
                        for (int64_t which = 0; which < p.sums; ++which) put_partial(which, b, t0, steps, i, sums[which]);
                    } else {
                        write_gradients(b, t0, steps, i);
                    }
                }
                const int64_t maps = p.work_maps / p.ranges;
                S* work = static_cast<S*>(k.work) + p.work_y + range % p.ranges * maps;
                sum_channels(tile.d_b, work, b, t0, steps);
                sum_channels(tile.d_c, work + p.work_maps, b, t0, steps);
            }
            for (int64_t i = 0; i < count; ++i) {
                if (k.d_h0.dtype) store_part(k.d_h0, s, i, later + i * n);
                if (!k.packed && part == 0)
                    for (const QtTensor* x : {&k.d_u, &k.d_delta, &k.d_gate})
                        if (x->dtype) zero_rows<S>(*x, b, t_begin + length, k.time, channel(i), width(i));
            }
        }
        S* work = static_cast<S*>(k.work) + p.work_y + 2 * p.work_maps + rows * p.blocks * n;
        for (int64_t i = 0; i < count; ++i)
            std::memcpy(work + block(i) * n + tile.n0 * W, d_rate + i * n + tile.n0 * W, size_t((tile.n1 - tile.n0) * W) * sizeof(S));
        if (p.parts == 1) put_vectors(rows);
    }

    void put_vectors(int64_t slice) const {
        S* work = static_cast<S*>(k.work) + p.work_y + 2 * p.work_maps + p.work_rate + slice * p.blocks * 2 * W;
        for (int64_t i = 0; i < count; ++i) {
            store(work + block(i) * 2 * W, load(d_skip + i * W));
            store(work + block(i) * 2 * W + W, load(d_bias + i * W));
        }
    }

    // Sums over this range's channels of the vectors [t][N], as rows of `to` (B, T, G, N).
    void sum_channels(const S* vectors, S* to, int64_t b, int64_t t0, int64_t steps) const {
        const int64_t total = steps * k.states;
        int64_t i = 0;
        for (; i + W <= total; i += W) {
            Vec<S> v[W];
            for (int j = 0; j < W; ++j) v[j] = load(vectors + (i + j) * W);
            store(flat + i, sum_each<S>(v));
        }
        for (; i < total; ++i) {
            S sum = 0;
            for (int l = 0; l < W; ++l) sum += vectors[i * W + l];
            flat[i] = sum;
        }
        for (int64_t t = 0; t < steps; ++t) {
            S* row = to + ((b * k.time + t0 + t) * k.groups + group) * k.states;
            std::memcpy(row + tile.n0, flat + t * k.states + tile.n0, size_t(tile.n1 - tile.n0) * sizeof(S));
        }
    }

    void write_gradients(int64_t b, int64_t t0, int64_t steps, int64_t i) {
        const Vec<S> direct = load(skip + i * W);
        Vec<S> sum_skip = load(d_skip + i * W), sum_bias = load(d_bias + i * W);
        for (int64_t t = 0; t < steps; ++t) {
            const Vec<S> x = load(u + t * W), z = load(dys + t * W), step = load(dt + t * W), toward_b = load(along_b + t * W);
            if (k.d_gate.dtype) {
                const Vec<S> g = load(gate + t * W), s = vsigmoid<S>(g);
                const Vec<S> value = load(y + t * W) + direct * x;
                store(out + t * W, load(dy + t * W) * value * (s * (S(1) + g * (S(1) - s))));
            }
            sum_skip += z * x;
            store(y + t * W, (ZOH ? toward_b : toward_b * step) + direct * z);  // of u
            Vec<S> d_step = load(along_a + t * W) * ln2<S> + (ZOH ? load(hold + t * W) : toward_b) * x;
            if (k.softplus) d_step *= vsigmoid<S>(load(raw + t * W));
            sum_bias += d_step;
            store(dys + t * W, d_step);
        }
        store(d_skip + i * W, sum_skip);
        store(d_bias + i * W, sum_bias);
        if (k.d_gate.dtype) store_rows(k.d_gate, b, t0, steps, channel(i), width(i), out);
        store_rows(k.d_u, b, t0, steps, channel(i), width(i), y);
        store_rows(k.d_delta, b, t0, steps, channel(i), width(i), dys);
    }

    void finish_backward(int64_t slice) {
        over_span(slice, [&](int64_t b, int64_t t0, int64_t steps) {
            for (int64_t i = 0; i < count; ++i) {
                load_inputs(b, t0, steps, i);
                load_cotangents(b, t0, steps, i);
                S* sums[] = {y, along_b, along_a, hold};
                for (int64_t which = 0; which < p.sums; ++which) sum_partials(which, b, t0, steps, i, sums[which]);
                write_gradients(b, t0, steps, i);
            }
        });
        put_vectors(slice);
    }
};

// The sums over ranges of channels, for every row of the maps; rows behind a length are 0.
template <class S> void reduce_maps(const S6Args& k, const S6Plan& p) {
    const int64_t n = k.groups * k.states, chunk = 256, chunks = (k.time + chunk - 1) / chunk;
    const S* work = static_cast<const S*>(k.work) + p.work_y;
    parallel_for(k.batch * chunks, k.threads, [&](int64_t index) {
        const int64_t b = index / chunks, t0 = index % chunks * chunk, t1 = std::min(k.time, t0 + chunk);
        const int64_t valid = k.packed || !k.length ? k.time : k.length[b];
        const QtTensor* const outs[] = {&k.d_b, &k.d_c};
        for (int which = 0; which < 2; ++which)
            with_dtype<S>(outs[which]->dtype, [&](auto* type) {
                const QtTensor& x = *outs[which];
                for (int64_t t = t0; t < t1; ++t) {
                    auto* to = static_cast<decltype(type)>(x.data) + b * x.stride[0] + t * x.stride[1];
                    const S* from = work + which * p.work_maps + (b * k.time + t) * n;
                    constexpr int64_t some = 64;  // numbers at a time, so that the sums stay in registers
                    for (int64_t i0 = 0; i0 < n; i0 += some) {
                        const int64_t count = std::min(some, n - i0);
                        S sum[some] = {};
                        for (int64_t r = 0; t < valid && r < p.ranges; ++r)
                            for (int64_t i = 0; i < count; ++i) sum[i] += from[r * (p.work_maps / p.ranges) + i0 + i];
                        for (int64_t i = 0; i < count; ++i) put(to + i0 + i, sum[i]);
                    }
                }
            });
    });
}

// The sums over groups of sequences: gradients of the parameters.
template <class S> void reduce_parameters(const S6Args& k, const S6Plan& p) {
    constexpr int W = lanes<S>;
    const int64_t n = k.states * W;
    S* rate = static_cast<S*>(k.work) + p.work_y + 2 * p.work_maps;
    S* vectors = rate + p.work_rate;
    parallel_for(p.blocks, k.threads, [&](int64_t block) {
        const int64_t inside = block % p.group_blocks * W;
        const int64_t e0 = block / p.group_blocks * p.group_width + inside;
        const int width = int(std::min<int64_t>(W, p.group_width - inside));
        for (int64_t g = 1; g < p.row_groups; ++g)
            for (int64_t i = 0; i < n; ++i) rate[block * n + i] += rate[(g * p.blocks + block) * n + i];
        for (int64_t g = 1; g < p.slices; ++g) {
            for (int64_t i = 0; i < 2 * W; ++i) vectors[block * 2 * W + i] += vectors[(g * p.blocks + block) * 2 * W + i];
        }
        store_state(k.d_a, 0, e0, width, k.states, rate + block * n);
        for (int l = 0; l < width; ++l) {
            if (k.d_skip.dtype) set(k.d_skip, 0, e0 + l, vectors[block * 2 * W + l]);
            if (k.d_bias.dtype) set(k.d_bias, 0, e0 + l, vectors[block * 2 * W + W + l]);
        }
    });
}

template <class S, bool ZOH> void run(S6Args& k, bool backward) {
    const S6Plan p = make_plan<S>(k, backward);
    const int64_t threads = k.batch * k.time * k.states * k.width < 20000 ? 1 : k.threads;
    k.threads = threads;
    parallel_for(p.tasks(), threads, [&](int64_t index) {
        Task<S, ZOH> task(k, p, index);
        backward ? task.backward() : task.forward();
    });
    if (p.parts > 1)
        parallel_for(p.slices * p.ranges_all, threads, [&](int64_t index) {
            Task<S, ZOH> task(k, p, index % p.ranges_all * p.parts);
            backward ? task.finish_backward(index / p.ranges_all) : task.finish_forward(index / p.ranges_all);
        });
    if (backward) {
        reduce_maps<S>(k, p);
        reduce_parameters<S>(k, p);
    }
}

int dispatch(S6Args& k, bool backward) {
    if (k.wide == QT_F32)
        k.zoh ? run<float, true>(k, backward) : run<float, false>(k, backward);
    else if (k.wide == QT_F64)
        k.zoh ? run<double, true>(k, backward) : run<double, false>(k, backward);
    else
        return 1;
    return 0;
}

template <class S> void sizes(S6Args& k, bool backward) {
    const S6Plan p = make_plan<S>(k, backward);
    const int64_t per_row = (k.time + p.tile - 1) / p.tile;  // a bound that no content of lengths changes
    k.bounds_size = (k.packed ? per_row + k.sequences : k.batch * per_row) * p.blocks * k.states * lanes<S>;
    k.work_size = p.work_y + 2 * p.work_maps + p.work_rate + p.work_vector;
}

}  // namespace
}  // namespace quatrain

extern "C" {
// Fills in bounds_size and work_size; `backward` as for the call that follows.
QT_EXPORT int qt_s6_plan_forward(int64_t* args) {
    auto& k = *reinterpret_cast<quatrain::S6Args*>(args);
    k.wide == QT_F64 ? quatrain::sizes<double>(k, false) : quatrain::sizes<float>(k, false);
    return 0;
}
QT_EXPORT int qt_s6_plan_backward(int64_t* args) {
    auto& k = *reinterpret_cast<quatrain::S6Args*>(args);
    k.wide == QT_F64 ? quatrain::sizes<double>(k, true) : quatrain::sizes<float>(k, true);
    return 0;
}
QT_EXPORT int qt_s6_forward(int64_t* args) { return quatrain::dispatch(*reinterpret_cast<quatrain::S6Args*>(args), false); }
QT_EXPORT int qt_s6_backward(int64_t* args) { return quatrain::dispatch(*reinterpret_cast<quatrain::S6Args*>(args), true); }
}
