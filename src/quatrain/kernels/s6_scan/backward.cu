// The S6 scan's backward pass. Tiles run from the last to the first; the states inside a tile are recomputed
// from the marks of the forward pass, those of four steps at a time in registers.

#define KEPT (QUADS * CHANNELS * VECTORS * THREADS)  // float4: states before every four steps

struct Shared {
    float *dt, *in, *dy, *rate;  // rows; `in` then takes sum_n g b, `dy` the ungated y, `rate` sum_n q a
    float *b, *c, *sums;
    float4* kept;
    int* code;
};

__device__ __forceinline__ Shared shared_places() {
    Shared m;
    m.kept = shared_memory;
    m.dt = (float*)(m.kept + KEPT);
    m.in = m.dt + WIDTH * ROW;
    m.dy = m.in + WIDTH * ROW;
    m.rate = m.dy + WIDTH * ROW;
    m.b = m.rate + WIDTH * ROW;
    m.c = m.b + TILE * STATES;
    m.sums = m.c + TILE * STATES;  // WARPS x TILE x 2 STATES
    m.code = (int*)(m.sums + WARPS * TILE * 2 * STATES);
    return m;
}

__device__ __forceinline__ void keep(const Shared& m, const float* h, int q, int r, int tid) {
    EACH(v, VECTORS) {
        m.kept[((q * CHANNELS + r) * VECTORS + v) * THREADS + tid] = make_float4(h[4 * v], h[4 * v + 1], h[4 * v + 2], h[4 * v + 3]);
    }
}

__device__ __forceinline__ void load_kept(float* h, const Shared& m, int q, int r, int tid) {
    EACH(v, VECTORS) load_quad(h + 4 * v, (const float*)&m.kept[((q * CHANNELS + r) * VECTORS + v) * THREADS + tid]);
}

// One step forward: decays and the new states.
template <bool EDGE>
__device__ __forceinline__ void one_step(
    float (&decay)[CHANNELS][OWN], float (&after)[CHANNELS][OWN], const float (&before)[CHANNELS][OWN],
    const float (&rate)[CHANNELS][OWN], const float* dt, const float* in, const float* b,
    const float (&offset)[CHANNELS], int code, const Args& p, const Place& k, const Thread& s) {
    EACH(r, CHANNELS) {
        float start[OWN];
        EACH(n, OWN) start[n] = before[r][n];
        if (EDGE && (code & 1)) {
            int channel = channel_of(s.row + r * SLOTS);
            read_state(start, channel < k.count ? p.h0 : nullptr, code / 4, k.first + channel, p, s.state);
        }
        EACH(n, OWN) {
            decay[r][n] = decay_of(dt[r], rate[r][n], offset[r]);
            after[r][n] = fmaf(decay[r][n], start[n], drive(dt[r], in[r], b[n], rate[r][n]));
        }
    }
}

// Four steps forward, to find the states before the next four.
template <bool EDGE>
__device__ __forceinline__ void four_again(
    float (&h)[CHANNELS][OWN], const float (&rate)[CHANNELS][OWN], const Shared& m, int q, const Args& p,
    const Place& k, const Thread& s) {
    float dt[CHANNELS][4], in[CHANNELS][4];
    EACH(r, CHANNELS) {
        load_quad(dt[r], m.dt + (s.row + r * SLOTS) * ROW + 4 * q);
        load_quad(in[r], m.in + (s.row + r * SLOTS) * ROW + 4 * q);
    }
    float offset[CHANNELS];
    EACH(r, CHANNELS) offset[r] = offset_of(dt[r][0], rate[r]);
    EACH(j, 4) {
        float b[OWN], decay[CHANNELS][OWN], dt_j[CHANNELS], in_j[CHANNELS];
        load_states(b, m.b + (4 * q + j) * STATES + s.state);
        EACH(r, CHANNELS) dt_j[r] = dt[r][j], in_j[r] = in[r][j];
        one_step<EDGE>(decay, h, h, rate, dt_j, in_j, b, offset, EDGE ? m.code[4 * q + j] : 0, p, k, s);
    }
}

#if ZOH
// (x e^x - e^x + 1) / x^2, the derivative of the hold by a over dt^2; 1/2 at 0.
__device__ __forceinline__ float hold_slope(float x, float decay) {
    if (fabsf(x) >= 0.3f) return (x * decay - expm1f(x)) / (x * x);
    float y = 1.f / 45360.f;  // terms x^(k-2) / (k (k-2)!), from k = 9 down to 2
    y = fmaf(y, x, 1.f / 5760.f);
    y = fmaf(y, x, 1.f / 840.f);
    y = fmaf(y, x, 1.f / 144.f);
    y = fmaf(y, x, 1.f / 30.f);
    y = fmaf(y, x, 1.f / 8.f);
    y = fmaf(y, x, 1.f / 3.f);
    return fmaf(y, x, 0.5f);
}
#endif

// Four steps backward. `flow` is the cotangent that reaches the last of them from later steps.
template <bool EDGE>
__device__ __forceinline__ void four_back(
    float (&flow)[CHANNELS][OWN], float (&da)[CHANNELS][OWN], const float (&rate)[CHANNELS][OWN], const Shared& m,
    int q, const Args& p, const Place& k, const Thread& s) {
    float dt[4][CHANNELS], in[4][CHANNELS], dy[4][CHANNELS];
    EACH(r, CHANNELS) {
        float v[4];
        const int at = (s.row + r * SLOTS) * ROW + 4 * q;
        load_quad(v, m.dt + at);
        EACH(j, 4) dt[j][r] = v[j];
        load_quad(v, m.in + at);
        EACH(j, 4) in[j][r] = v[j];
        load_quad(v, m.dy + at);
        EACH(j, 4) dy[j][r] = v[j];
    }
    float h[5][CHANNELS][OWN], decay[4][CHANNELS][OWN], offset[CHANNELS];
    EACH(r, CHANNELS) offset[r] = offset_of(dt[0][r], rate[r]);
    EACH(r, CHANNELS) load_kept(h[0][r], m, q, r, k.tid);
    EACH(j, 4) {
        float b[OWN];
        load_states(b, m.b + (4 * q + j) * STATES + s.state);
        one_step<EDGE>(decay[j], h[j + 1], h[j], rate, dt[j], in[j], b, offset, EDGE ? m.code[4 * q + j] : 0, p, k, s);
    }
    float gb[4 * CHANNELS], qa[4 * CHANNELS], y[4 * CHANNELS];  // sums over the thread's states
    EACH(back, 4) {
        const int j = 3 - back;
        const int code = EDGE ? m.code[4 * q + j] : 0;
        float b[OWN], c[OWN], maps[2 * OWN];  // db, then dc, of the thread's states and channels
        load_states(b, m.b + (4 * q + j) * STATES + s.state);
        load_states(c, m.c + (4 * q + j) * STATES + s.state);
        EACH(n, 2 * OWN) maps[n] = 0.f;
        EACH(r, CHANNELS) {
            const int channel = channel_of(s.row + r * SLOTS);
            float before[OWN];
            EACH(n, OWN) before[n] = h[j][r][n];
            if (EDGE && (code & 1)) {
                read_state(before, channel < k.count ? p.h0 : nullptr, code / 4, k.first + channel, p, s.state);
            }
            if (EDGE && (code & 2)) {
                read_state(flow[r], channel < k.count ? p.dh : nullptr, code / 4, k.first + channel, p, s.state);
            }
            float sum_gb = 0.f, sum_qa = 0.f, sum_y = 0.f;
            EACH(n, OWN) {
                const float g = fmaf(c[n], dy[j][r], flow[r][n]);
                sum_y = fmaf(c[n], h[j + 1][r][n], sum_y);
                maps[OWN + n] = fmaf(dy[j][r], h[j + 1][r][n], maps[OWN + n]);
#if ZOH
                const float u = in[j][r], a = rate[r][n] * LN2, gub = g * u * b[n];
                const float w = hold(dt[j][r], rate[r][n]);
                maps[n] = fmaf(g, w * u, maps[n]);
                sum_gb = fmaf(g * w, b[n], sum_gb);
                da[r][n] = fmaf(gub * dt[j][r] * dt[j][r], hold_slope(dt[j][r] * a, decay[j][r][n]), da[r][n]);
                sum_qa = fmaf(gub * LOG2E, decay[j][r][n], sum_qa);
#else
                maps[n] = fmaf(g, in[j][r], maps[n]);
                sum_gb = fmaf(g, b[n], sum_gb);
#endif
                flow[r][n] = g * decay[j][r][n];
                const float from_decay = flow[r][n] * before[n];
                da[r][n] = fmaf(from_decay, dt[j][r], da[r][n]);
                sum_qa = fmaf(from_decay, rate[r][n], sum_qa);
            }
            gb[4 * r + j] = sum_gb;
            qa[4 * r + j] = sum_qa;
            y[4 * r + j] = sum_y;
            if (EDGE && (code & 1) && p.dh0 && channel < k.count) {
                write_state(p.dh0, flow[r], code / 4, k.first + channel, p, s.state);
            }
        }
        fold<2 * OWN, SLOTS, LANES>(maps, s.lane);
        const int first = first_value<2 * OWN, SLOTS>(s.slot);
        constexpr int LEFT = values_left<2 * OWN, SLOTS>();
        float* to = m.sums + ((k.tid / 32) * TILE + 4 * q + j) * 2 * STATES;
        EACH(i, LEFT) {
            const int v = first + i;
            to[v / OWN * STATES + s.state + v % OWN] = maps[i];
        }
    }
    fold<4 * CHANNELS, LANES, 1>(gb, s.lane);
    fold<4 * CHANNELS, LANES, 1>(qa, s.lane);
    fold<4 * CHANNELS, LANES, 1>(y, s.lane);
    __syncwarp();  // all lanes of a channel have read its rows
    const int first = first_value<4 * CHANNELS, LANES>(s.part);
    constexpr int LEFT = values_left<4 * CHANNELS, LANES>();
    const int at = (s.row + first / 4 * SLOTS) * ROW + 4 * q + first % 4;
    EACH(i, LEFT) {
        const int to = at + i / 4 * SLOTS * ROW + i % 4;
        m.in[to] = gb[i];
        m.rate[to] = qa[i];
        m.dy[to] = y[i];
    }
}

struct Rows {  // of a tile, in registers
    Pair u[PER][4], delta[PER][4], gate[PER][4], dy[PER][4];
};

__device__ __forceinline__ void fetch(Rows& rows, const Source& from, const Args& p, const Place& k, int left) {
    fetch_rows(rows.delta, from.delta, p.delta_step, left, k);
    fetch_rows(rows.u, from.u, p.u_step, left, k);
    fetch_rows(rows.dy, from.dy, p.dy_step, left, k);
    if (GATE) fetch_rows(rows.gate, from.gate, p.gate_step, left, k);
}

// One channel and step: gradients of u, delta and gate from the sums over states.
struct Grads {
    float du, ddelta, dgate, dskip, y;
};

__device__ __forceinline__ Grads gradients(
    float u, float delta, float gate, float dy, float dt, float gb, float qa, float y, float skip) {
    Grads g;
    float out = dy;  // cotangent of the ungated output
    g.dgate = 0.f;
    if (GATE) {
        float s = sigmoid(gate);
        g.y = fmaf(skip, u, y);
        g.dgate = dy * g.y * s * fmaf(gate, 1.f - s, 1.f);
        g.y *= gate * s;
        out = dy * (gate * s);
    }
    g.dskip = out * u;
    g.du = fmaf(skip, out, ZOH ? gb : gb * dt);
    g.ddelta = fmaf(qa, LN2, ZOH ? 0.f : gb * u);
    if (SOFTPLUS) g.ddelta *= sigmoid(delta);
    return g;
}

// db and dc of this block's channels: sums over its warps.
__device__ __forceinline__ void add_maps(const Shared& m, const Args& p, const Place& k, Long tile, int here) {
    constexpr int EACH_WARP = TILE * 2 * STATES;
    float* to = p.part_maps + (((k.part * p.batch + k.row) * p.time + tile) * p.groups + k.group) * 2 * p.states;
    const int step = p.groups * 2 * p.states;
    if (p.states == STATES) {
        for (int i = 4 * k.tid; i < EACH_WARP; i += 4 * THREADS) {
            const int t = i / (2 * STATES);
            if (t >= here) break;
            float sum[4] = {0.f, 0.f, 0.f, 0.f}, v[4];
            EACH(w, WARPS) {
                load_quad(v, m.sums + w * EACH_WARP + i);
                EACH(n, 4) sum[n] += v[n];
            }
            save_quad(to + t * step + i % (2 * STATES), sum);
        }
        return;
    }
    for (int i = k.tid; i < EACH_WARP; i += THREADS) {
        const int n = i % STATES, which = i / STATES % 2, t = i / (2 * STATES);
        if (n >= p.states || t >= here) continue;
        float sum = 0.f;
        EACH(w, WARPS) sum += m.sums[w * EACH_WARP + i];
        to[t * step + which * p.states + n] = sum;
    }
}

struct Totals {  // of the two channels whose rows a thread prepares
    float skip[2], bias[2];
};

// Gradients of the rows and the maps to memory; `here` steps of the tile exist, `left` of them are not padding.
__device__ __forceinline__ void end(
    const Shared& m, const Rows& rows, const Channel& mine, Totals& totals, const Args& p, const Place& k, Long tile,
    int here, int left) {
    const bool whole = is_whole(left, k);
    EACH(i, PER) {
        const int item = item_of(i, k.tid), pair = item % PAIRS, first = item / PAIRS * 4, channel = 2 * pair;
        if (!is_item(item)) break;
        float dt[2][4], gb[2][4], qa[2][4], y[2][4];
        EACH(h, 2) {
            const int at = (pair + h * PAIRS) * ROW + first;
            load_quad(dt[h], m.dt + at);
            load_quad(gb[h], m.in + at);
            load_quad(qa[h], m.rate + at);
            load_quad(y[h], m.dy + at);
        }
        const Long to = (k.row * p.time + tile) * p.width + (k.first + first * p.width + channel);
        const Long gate_to = k.row * p.dgate_row + tile * p.dgate_step + (k.first + first * p.dgate_step + channel);
        EACH(j, 4) {
            const Pair u = rows.u[i][j], delta = rows.delta[i][j], dy = rows.dy[i][j];
            const Pair gate = GATE ? rows.gate[i][j] : Pair{};
            Grads g[2];
            g[0] = gradients(
                low_of(u), low_of(delta) + mine.bias[0], low_of(gate), low_of(dy), dt[0][j], gb[0][j], qa[0][j],
                y[0][j], mine.skip[0]);
            g[1] = gradients(
                high_of(u), high_of(delta) + mine.bias[1], high_of(gate), high_of(dy), dt[1][j], gb[1][j], qa[1][j],
                y[1][j], mine.skip[1]);
            EACH(h, 2) {
                if (first + j >= left) g[h] = Grads{0.f, 0.f, 0.f, 0.f, 0.f};
                totals.skip[h] += g[h].dskip;
                totals.bias[h] += g[h].ddelta;
            }
            if (whole || first + j < here) {
                const Long at = to + j * p.width;
                const int place = whole ? 0 : channel, count = whole ? 2 : k.count;
                store_pair(p.du + at, g[0].du, g[1].du, place, count);
                if (GATE && p.y) store_pair(p.y + at, g[0].y, g[1].y, place, count);
                store_pair(p.ddelta + at, g[0].ddelta, g[1].ddelta, place, count);
                if (GATE) store_pair(p.dgate + gate_to + j * p.dgate_step, g[0].dgate, g[1].dgate, place, count);
            }
        }
    }
    add_maps(m, p, k, tile, here);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) s6_backward(const Args p) {
    const Shared m = shared_places();
    const Place k = place<true>(p, p.chunks, 0);
    const Thread s = thread_of(k.tid);
    const Channel mine = channel_parameters(p, k);
    Totals totals = {{0.f, 0.f}, {0.f, 0.f}};
    float rate[CHANNELS][OWN], flow[CHANNELS][OWN], da[CHANNELS][OWN];
    read_rates(rate, p, k, s);
    if (CHAINED && k.chunk < p.chunks - 1) wait_for(ready_at(p, k, k.chunk), k.tid);
    EACH(r, CHANNELS) {
        int channel = channel_of(s.row + r * SLOTS);
        EACH(n, OWN) flow[r][n] = 0.f, da[r][n] = 0.f;
        if (channel >= k.count) continue;
        if (k.chunk < p.chunks - 1) {
            load_carry(flow[r], p.carry + carry_at(p, k.chunk, k.row, k.first + channel) * STATES + s.state);
        } else if (!PACKED) {
            read_state(flow[r], p.dh, k.row, k.first + channel, p, s.state);
        }
    }
    const int tiles = (int)((k.stop - k.start + TILE - 1) / TILE);
    Long tile = k.start + (Long)(tiles - 1) * TILE;
    Source from = source(p, k, tile);
    int left = steps_left(k, tile);
    Rows rows;
    fetch(rows, from, p, k, left);
    for (; tile >= k.start; tile -= TILE) {
        Data b[MAPS], c[MAPS];
        fetch_map(b, from.b, p.b_step, left, p.states, k.tid);
        fetch_map(c, from.c, p.c_step, left, p.states, k.tid);
        prepare(m.dt, m.in, rows.u, rows.delta, mine, left, k.tid);
        prepare_back(m.dy, rows.dy, rows.gate, k.tid);
        store_map(m.b, b, k.tid);
        store_map(m.c, c, k.tid);
        if (PACKED) mark_edges(m.code, p, tile, left, k.tid);
        float h[CHANNELS][OWN];
        EACH(r, CHANNELS) {
            int channel = channel_of(s.row + r * SLOTS);
            Long at = (tile / TILE * p.batch + k.row) * p.width + k.first + channel;
            EACH(n, OWN) h[r][n] = 0.f;
            if (channel < k.count) load_states(h[r], p.marks + at * STATES + s.state);
        }
        __syncthreads();
#pragma unroll 1
        for (int q = 0; q < QUADS; ++q) {
            EACH(r, CHANNELS) keep(m, h[r], q, r, k.tid);
            if (q == QUADS - 1) break;
            if (PACKED && has_edge(m.code, q)) four_again<true>(h, rate, m, q, p, k, s);
            else four_again<false>(h, rate, m, q, p, k, s);
        }
#pragma unroll 1
        for (int q = QUADS - 1; q >= 0; --q) {
            if (PACKED && has_edge(m.code, q)) four_back<true>(flow, da, rate, m, q, p, k, s);
            else four_back<false>(flow, da, rate, m, q, p, k, s);
        }
        fetch(rows, from, p, k, left);  // once more: they would take too many registers meanwhile
        __syncthreads();
        end(m, rows, mine, totals, p, k, tile, (int)min((Long)TILE, k.stop - tile), left);
        if (tile > k.start) {
            from.move(p, -TILE);
            left = steps_left(k, tile - TILE);
            fetch(rows, from, p, k, left);
        }
    }
    if (CHAINED && k.chunk > 0) {
        EACH(r, CHANNELS) {
            int channel = channel_of(s.row + r * SLOTS);
            if (channel >= k.count) continue;
            save_states(p.carry + carry_at(p, k.chunk - 1, k.row, k.first + channel) * STATES + s.state, flow[r]);
        }
        tell(ready_at(p, k, k.chunk - 1), k.tid);
    }
    EACH(r, CHANNELS) {
        int channel = channel_of(s.row + r * SLOTS);
        if (channel >= k.count) continue;
        Long at = ((Long)(k.row * p.chunks + k.chunk) * p.width + k.first + channel) * STATES;
        save_states(p.part_a + at + s.state, da[r]);
        if (!PACKED && k.chunk == 0 && p.dh0) write_state(p.dh0, flow[r], k.row, k.first + channel, p, s.state);
    }
    __syncthreads();
    float4* all = (float4*)m.kept;  // THREADS
    all[k.tid] = make_float4(totals.skip[0], totals.skip[1], totals.bias[0], totals.bias[1]);
    __syncthreads();
    if (k.tid < PAIRS) {
        float sum[4] = {0.f, 0.f, 0.f, 0.f};
        for (int i = k.tid; i < THREADS; i += PAIRS) {
            sum[0] += all[i].x, sum[1] += all[i].y, sum[2] += all[i].z, sum[3] += all[i].w;
        }
        float* to = p.part_width + (Long)(k.row * p.chunks + k.chunk) * 2 * p.width + k.first;
        EACH(h, 2) {
            if (2 * k.tid + h >= k.count) continue;
            to[2 * k.tid + h] = sum[h];
            to[p.width + 2 * k.tid + h] = sum[2 + h];
        }
    }
}

// db and dc: sums over the blocks of a group.
extern "C" __global__ void s6_maps(const Args p) {
    const Long count = p.batch * p.time * p.groups * 2 * p.states;
    const Long i = (Long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    float sum = 0.f;
    for (int part = 0; part < p.parts; ++part) sum += p.part_maps[part * count + i];
    const int n = (int)(i % p.states);
    const Long rest = i / p.states;
    (rest % 2 ? p.dc : p.db)[rest / 2 * p.states + n] = narrow(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) s6_tail_back(const Args p) { tail<true>(p); }
extern "C" __global__ void s6_link_back(const Args p) { link<true>(p); }
