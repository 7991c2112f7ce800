// The S6 scan: y, the last states, and the states before every MARK steps for the backward pass.

// Four steps of a thread's states; y gets CHANNELS x 4 partial sums over the thread's own states.
template <bool EDGE>
__device__ __forceinline__ void four_steps(
    float (&h)[CHANNELS][OWN], float (&y)[4 * CHANNELS], const float (&rate)[CHANNELS][OWN], const float* dt_s,
    const float* in_s, const float* b_s, const float* c_s, const int* code, int q, const Args& p, const Place& k,
    const Thread& s) {
    float dt[CHANNELS][4], in[CHANNELS][4];
    EACH(r, CHANNELS) {
        load_quad(dt[r], dt_s + (s.row + r * SLOTS) * ROW + 4 * q);
        load_quad(in[r], in_s + (s.row + r * SLOTS) * ROW + 4 * q);
    }
    EACH(j, 4) {
        float b[OWN], c[OWN];
        load_states(b, b_s + (4 * q + j) * STATES + s.state);
        load_states(c, c_s + (4 * q + j) * STATES + s.state);
        const int edge = EDGE ? code[4 * q + j] : 0;
        if (EDGE && (edge & 1)) {
            EACH(r, CHANNELS) {
                int channel = channel_of(s.row + r * SLOTS);
                read_state(h[r], channel < k.count ? p.h0 : nullptr, edge / 4, k.first + channel, p, s.state);
            }
        }
        EACH(r, CHANNELS) {
            float sum[2] = {0.f, 0.f};  // two chains, so that less waits
            EACH(n, OWN) {
                float add = drive(dt[r][j], in[r][j], b[n], rate[r][n]);
                h[r][n] = fmaf(decay_of(dt[r][j], rate[r][n], OFFSET), h[r][n], add);
                sum[n % 2] = fmaf(c[n], h[r][n], sum[n % 2]);
            }
            y[4 * r + j] = sum[0] + sum[1];
        }
        if (EDGE && (edge & 2)) {
            EACH(r, CHANNELS) {
                int channel = channel_of(s.row + r * SLOTS);
                if (channel < k.count) write_state(p.last, h[r], edge / 4, k.first + channel, p, s.state);
            }
        }
    }
}

// Through skip and gate to memory; `here` steps of the tile exist, `left` of them are not padding.
__device__ __forceinline__ void finish(
    const float* y_s, const Pair (&u)[PER][4], const Pair (&gate)[PER][4], const Channel& mine, Data* to, int width,
    int here, int left, const Place& k) {
    const bool whole = is_whole(left, k);
    EACH(i, PER) {
        const int item = item_of(i, k.tid), pair = item % PAIRS, first = item / PAIRS * 4;
        if (!is_item(item)) break;
        float y[2][4];
        EACH(m, 2) load_quad(y[m], y_s + (pair + m * PAIRS) * ROW + first);
        Data* at = to + (first * width + 2 * pair);
        EACH(j, 4) {
            float low = fmaf(mine.skip[0], low_of(u[i][j]), y[0][j]) * (GATE ? silu(low_of(gate[i][j])) : 1.f);
            float high = fmaf(mine.skip[1], high_of(u[i][j]), y[1][j]) * (GATE ? silu(high_of(gate[i][j])) : 1.f);
            const bool inside = first + j < left;
            if (whole) {
                store_pair(at + j * width, low, high, 0, 2);
            } else if (first + j < here) {
                store_pair(at + j * width, inside ? low : 0.f, inside ? high : 0.f, 2 * pair, k.count);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) s6_forward(const Args p) {
    float* dt_s = (float*)shared_memory;  // a row's y takes the place of its dt
    float* in_s = dt_s + WIDTH * ROW;
    float* b_s = in_s + WIDTH * ROW;
    float* c_s = b_s + TILE * STATES;
    int* code_s = (int*)(c_s + TILE * STATES);

    const Place k = place<false>(p, p.chunks, 0);
    const Thread s = thread_of(k.tid);
    Source from = source(p, k, k.start);
    const Channel mine = channel_parameters(p, k);
    float rate[CHANNELS][OWN], h[CHANNELS][OWN];
    read_rates(rate, p, k, s);
    if (CHAINED && k.chunk > 0) wait_for(ready_at(p, k, k.chunk - 1), k.tid);
    EACH(r, CHANNELS) {
        int channel = channel_of(s.row + r * SLOTS);
        EACH(n, OWN) h[r][n] = 0.f;
        if (channel >= k.count) continue;
        if (k.chunk > 0) {
            load_carry(h[r], p.carry + carry_at(p, k.chunk - 1, k.row, k.first + channel) * STATES + s.state);
        } else if (!PACKED) {
            read_state(h[r], p.h0, k.row, k.first + channel, p, s.state);
        }
    }

    Raw raw;
    auto fetch = [&](int left) {
        fetch_rows(raw.u, from.u, p.u_step, left, k);
        fetch_rows(raw.delta, from.delta, p.delta_step, left, k);
        if (GATE) fetch_rows(raw.gate, from.gate, p.gate_step, left, k);
        fetch_map(raw.b, from.b, p.b_step, left, p.states, k.tid);
        fetch_map(raw.c, from.c, p.c_step, left, p.states, k.tid);
    };
    int left = steps_left(k, k.start);
    fetch(left);
    Data* to = p.y + ((k.row * p.time + k.start) * p.width + k.first);
    for (Long tile = k.start; tile < k.stop; tile += TILE) {
        prepare(dt_s, in_s, raw.u, raw.delta, mine, left, k.tid);
        store_map(b_s, raw.b, k.tid);
        store_map(c_s, raw.c, k.tid);
        if (PACKED) mark_edges(code_s, p, tile, left, k.tid);
        Pair u[PER][4], gate[PER][4];
        EACH(i, PER) EACH(j, 4) u[i][j] = raw.u[i][j], gate[i][j] = raw.gate[i][j];
        __syncthreads();
        const int next = steps_left(k, tile + TILE);
        if (tile + TILE < k.stop) {
            from.move(p, TILE);
            fetch(next);
        }
        if (DATA != 0 && tile % MARK == 0) {  // OFFSET is too much for slow states: taken back for MARK steps at once
            EACH(r, CHANNELS) {
                const bool slow = is_slow(dt_s[(s.row + r * SLOTS) * ROW], rate[r]);
                const float excess = slow ? MARK * (float)LN2 * (SLOW_OFFSET - OFFSET) : 0.f;
                EACH(n, OWN) h[r][n] = fmaf(h[r][n], excess, h[r][n]);
            }
        }
        if (p.marks && tile % MARK == 0) {
            EACH(r, CHANNELS) {
                int channel = channel_of(s.row + r * SLOTS);
                Long at = (tile / MARK * p.batch + k.row) * p.width + k.first + channel;
                if (channel < k.count) save_states(p.marks + at * STATES + s.state, h[r]);
            }
        }
#pragma unroll 1
        for (int q = 0; q < QUADS; ++q) {
            float y[4 * CHANNELS];
            if (PACKED && has_edge(code_s, q)) {
                four_steps<true>(h, y, rate, dt_s, in_s, b_s, c_s, code_s, q, p, k, s);
            } else {
                four_steps<false>(h, y, rate, dt_s, in_s, b_s, c_s, code_s, q, p, k, s);
            }
            fold<4 * CHANNELS, LANES, 1>(y, s.lane);
            __syncwarp();  // all lanes of a channel have read its dt
            const int first = first_value<4 * CHANNELS, LANES>(s.part);
            constexpr int LEFT = values_left<4 * CHANNELS, LANES>();
            float* to = dt_s + (s.row + first / 4 * SLOTS) * ROW + 4 * q + first % 4;
            EACH(i, LEFT) to[i / 4 * SLOTS * ROW + i % 4] = y[i];
        }
        __syncthreads();
        finish(dt_s, u, gate, mine, to, p.width, (int)min((Long)TILE, k.stop - tile), left, k);
        to += (Long)TILE * p.width;
        left = next;
    }
    if (CHAINED && k.chunk < p.chunks - 1) {
        EACH(r, CHANNELS) {
            int channel = channel_of(s.row + r * SLOTS);
            if (channel >= k.count) continue;
            save_states(p.carry + carry_at(p, k.chunk, k.row, k.first + channel) * STATES + s.state, h[r]);
        }
        tell(ready_at(p, k, k.chunk), k.tid);
    }
    if (!PACKED && k.stop == p.time) {
        EACH(r, CHANNELS) {
            int channel = channel_of(s.row + r * SLOTS);
            if (channel < k.count) write_state(p.last, h[r], k.row, k.first + channel, p, s.state);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) s6_tail(const Args p) { tail<false>(p); }
extern "C" __global__ void s6_link(const Args p) { link<false>(p); }
