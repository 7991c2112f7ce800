// Reading and preparing the rows of a tile; what the forward kernels and the tails share.

struct Raw {  // a tile on its way from memory, in registers
    Pair u[PER][4], delta[PER][4], gate[PER][4];
    Data b[MAPS], c[MAPS];
};

struct Source {  // where a block's rows of a tile begin
    const Data *u, *delta, *gate, *dy, *b, *c;

    __device__ __forceinline__ void move(const Args& p, Long steps) {
        u += steps * p.u_step;
        delta += steps * p.delta_step;
        if (GATE) gate += steps * p.gate_step;
        if (dy) dy += steps * p.dy_step;
        b += steps * p.b_step;
        c += steps * p.c_step;
    }
};

// Rows of the tile that begins at step t.
__device__ __forceinline__ Source source(const Args& p, const Place& k, Long t) {
    Source s;
    s.u = p.u + k.row * p.u_row + k.first;
    s.delta = p.delta + k.row * p.delta_row + k.first;
    s.gate = GATE ? p.gate + k.row * p.gate_row + k.first : nullptr;
    s.dy = p.dy ? p.dy + k.row * p.dy_row + k.first : nullptr;
    s.b = p.b + k.row * p.b_row + k.group * p.b_group;
    s.c = p.c + k.row * p.c_row + k.group * p.c_group;
    s.move(p, t);
    return s;
}

struct Channel {  // parameters of the two channels whose rows a thread prepares
    float bias[2], skip[2];
};

__device__ __forceinline__ Channel channel_parameters(const Args& p, const Place& k) {
    Channel c;
    EACH(m, 2) {
        int channel = 2 * (k.tid % PAIRS) + m;
        bool real = channel < k.count;
        c.bias[m] = real && p.bias ? p.bias[k.first + channel] : 0.f;
        c.skip[m] = real && p.skip ? p.skip[k.first + channel] : 0.f;
    }
    return c;
}

// Step sizes of one item's four steps, 0 past the end, so that the state passes through.
__device__ __forceinline__ void step_sizes(
    float (&dt)[2][4], const Pair (&delta)[4], const Channel& c, int first, int left) {
    EACH(j, 4) {
        const bool inside = first + j < left;
        dt[0][j] = inside ? step_size(low_of(delta[j]) + c.bias[0]) : 0.f;
        dt[1][j] = inside ? step_size(high_of(delta[j]) + c.bias[1]) : 0.f;
    }
}

__device__ __forceinline__ void save_item(float* rows, const float (&x)[2][4], int item) {
    EACH(m, 2) save_quad(rows + (item % PAIRS + m * PAIRS) * ROW + item / PAIRS * 4, x[m]);
}

// dt and the input that `drive` takes, as rows of time.
__device__ __forceinline__ void prepare(
    float* dt_s, float* in_s, const Pair (&u)[PER][4], const Pair (&delta)[PER][4], const Channel& c, int left,
    int tid) {
    EACH(i, PER) {
        const int item = item_of(i, tid);
        if (!is_item(item)) break;
        float dt[2][4], in[2][4];
        step_sizes(dt, delta[i], c, item / PAIRS * 4, left);
        EACH(j, 4) {
            in[0][j] = low_of(u[i][j]) * (ZOH ? 1.f : dt[0][j]);
            in[1][j] = high_of(u[i][j]) * (ZOH ? 1.f : dt[1][j]);
        }
        save_item(dt_s, dt, item);
        save_item(in_s, in, item);
    }
}

// Cotangents of the ungated output, as rows of time.
__device__ __forceinline__ void prepare_back(
    float* dy_s, const Pair (&dy)[PER][4], const Pair (&gate)[PER][4], int tid) {
    EACH(i, PER) {
        const int item = item_of(i, tid);
        if (!is_item(item)) break;
        float out[2][4];
        EACH(j, 4) {
            out[0][j] = low_of(dy[i][j]) * (GATE ? silu(low_of(gate[i][j])) : 1.f);
            out[1][j] = high_of(dy[i][j]) * (GATE ? silu(high_of(gate[i][j])) : 1.f);
        }
        save_item(dy_s, out, item);
    }
}

// A chunk alone, walked from its end (or, reversed, from its beginning): what its inputs leave in its last state
// (reversed: what its cotangents send to the state before it). Each term is weighed with the decay of the steps
// walked so far, so a state's walk stops once nothing further can count (2^-CUT of an input), and the whole walk when all have: then `total` is -1, else the sum of dt.
template <bool REVERSED>
__device__ __forceinline__ void tail(const Args& p) {
    float* dt_s = (float*)shared_memory;
    float* in_s = dt_s + WIDTH * ROW;
    float* map_s = in_s + WIDTH * ROW;
    int* code_s = (int*)(map_s + TILE * STATES);

    const Place k = place<REVERSED>(p, p.chunks - 1, REVERSED ? 1 : 0);
    const Thread s = thread_of(k.tid);
    const Channel mine = channel_parameters(p, k);
    // A thread's states lie LANES apart, so that those of one index are of about one speed: they end together.
    float rate[CHANNELS][OWN], sum[CHANNELS][OWN], walked[CHANNELS];
    EACH(r, CHANNELS) {
        const int channel = channel_of(s.row + r * SLOTS);
        walked[r] = 0.f;
        EACH(n, OWN) {
            const int state = s.part + n * LANES;
            const bool real = channel < k.count && state < p.states;
            rate[r][n] = real ? p.a[(Long)(k.first + channel) * p.states + state] * LOG2E : -1.f;
            sum[r][n] = 0.f;
        }
    }
    unsigned alive = (1u << OWN / 2) - 1;  // pairs of states that can still count, in any of the warp's lanes
    const int tiles = (int)((k.stop - k.start + TILE - 1) / TILE);
    const int step = REVERSED ? p.dy_step : p.u_step, map_step = REVERSED ? p.c_step : p.b_step;
    bool ended = false;

    Raw raw;
    Long tile = k.start + (Long)(REVERSED ? 0 : tiles - 1) * TILE;
    Source from = source(p, k, tile);
    auto fetch = [&](int left) {
        fetch_rows(raw.delta, from.delta, p.delta_step, left, k);
        fetch_rows(raw.u, REVERSED ? from.dy : from.u, step, left, k);
        if (REVERSED && GATE) fetch_rows(raw.gate, from.gate, p.gate_step, left, k);
        fetch_map(raw.b, REVERSED ? from.c : from.b, map_step, left, p.states, k.tid);
    };
    fetch(steps_left(k, tile));
    for (int i = 0; i < tiles && !ended; ++i) {
        const int left = steps_left(k, tile);
        if (REVERSED) {
            EACH(i, PER) {
                const int item = item_of(i, k.tid);
                float dt[2][4];
                if (!is_item(item)) break;
                step_sizes(dt, raw.delta[i], mine, item / PAIRS * 4, left);
                save_item(dt_s, dt, item);
            }
            prepare_back(in_s, raw.u, raw.gate, k.tid);
        } else {
            prepare(dt_s, in_s, raw.u, raw.delta, mine, left, k.tid);
        }
        EACH(i, MAPS) {  // in the order of the threads' states
            const int at = item_of(i, k.tid), n = at % STATES;
            if (at < TILE * STATES) map_s[at - n + n % LANES * OWN + n / LANES] = widen(raw.b[i]);
        }
        if (PACKED) mark_edges(code_s, p, tile, left, k.tid);
        __syncthreads();
        const Long next = tile + (REVERSED ? TILE : -TILE);
        if (i + 1 < tiles) {
            from.move(p, REVERSED ? TILE : -TILE);
            fetch(steps_left(k, next));
        }
        for (int quads = 0; quads < QUADS && !ended; ++quads) {
            const int q = REVERSED ? quads : QUADS - 1 - quads;
            float dt[CHANNELS][4], in[CHANNELS][4];
            EACH(r, CHANNELS) {
                load_quad(dt[r], dt_s + (s.row + r * SLOTS) * ROW + 4 * q);
                load_quad(in[r], in_s + (s.row + r * SLOTS) * ROW + 4 * q);
            }
            const bool edge = PACKED && has_edge(code_s, q);
            float way[CHANNELS][4];  // sums of the step sizes that a step's term passes
            EACH(jj, 4) {
                const int j = REVERSED ? jj : 3 - jj;
                EACH(r, CHANNELS) {
                    if (PACKED && ended) in[r][j] = 0.f, dt[r][j] = 0.f;
                    if (REVERSED) walked[r] += dt[r][j];
                    way[r][j] = walked[r];
                    if (!REVERSED) walked[r] += dt[r][j];
                }
                if (PACKED && edge && !ended && (code_s[4 * q + j] & (REVERSED ? 2 : 1))) {
                    const float* from_state = REVERSED ? p.dh : p.h0;
                    EACH(r, CHANNELS) EACH(n, OWN) {
                        const int channel = channel_of(s.row + r * SLOTS), state = s.part + n * LANES;
                        if (!from_state || channel >= k.count || state >= p.states) continue;
                        const Long at = (Long)(code_s[4 * q + j] / 4) * p.width + k.first + channel;
                        sum[r][n] = fmaf(ex2(rate[r][n] * walked[r]), from_state[at * p.states + state], sum[r][n]);
                    }
                    ended = true;
                }
            }
            EACH(pair, OWN / 2) {
                if (!(alive >> pair & 1)) continue;
                float2 m[4];
                EACH(j, 4) m[j] = *(const float2*)(map_s + (4 * q + j) * STATES + s.state + 2 * pair);
                EACH(j, 4) EACH(r, CHANNELS) EACH(i, 2) {
                    const int n = 2 * pair + i;
                    const float b = i ? m[j].y : m[j].x;
                    const float add = REVERSED ? in[r][j] * b : drive(dt[r][j], in[r][j], b, rate[r][n]);
                    sum[r][n] = fmaf(ex2(rate[r][n] * way[r][j]), add, sum[r][n]);
                }
            }
        }
        EACH(pair, OWN / 2) {
            bool lives = false;
            EACH(r, CHANNELS) EACH(i, 2) {
                const bool real = channel_of(s.row + r * SLOTS) < k.count && s.part + (2 * pair + i) * LANES < p.states;
                lives = lives || (real && !(rate[r][2 * pair + i] * walked[r] < -CUT));
            }
            if (!__any_sync(ALL_LANES, lives)) alive &= ~(1u << pair);
        }
        if (__syncthreads_and(alive == 0 || ended)) ended = true;
        tile = next;
    }
    const int slot = REVERSED ? k.chunk - 1 : k.chunk;
    EACH(r, CHANNELS) {
        int channel = channel_of(s.row + r * SLOTS);
        if (channel >= k.count) continue;
        Long at = carry_at(p, slot, k.row, k.first + channel);
        EACH(n, OWN) p.carry[at * STATES + s.part + n * LANES] = sum[r][n];
        if (s.part == 0) p.total[at] = ended ? -1.f : walked[r];
    }
}

// From chunk to chunk: afterwards `carry` holds the state before each chunk but the first (reversed: the
// cotangent of the state after each chunk but the last).
template <bool REVERSED>
__device__ __forceinline__ void link(const Args& p) {
    Long i = (Long)blockIdx.x * THREADS + threadIdx.x, each = (Long)p.width * STATES;
    if (i >= p.batch * each) return;
    const int row = (int)(i / each), channel = (int)(i % each / STATES), n = (int)(i % STATES);
    const bool real = n < p.states;
    const float rate = real ? p.a[(Long)channel * p.states + n] * LOG2E : -1.f;
    const float* first = REVERSED ? p.dh : p.h0;
    float h = real && first && !PACKED ? first[((Long)row * p.width + channel) * p.states + n] : 0.f;
    constexpr int AHEAD = 8;  // reads in flight: none waits for the one before
    for (int first = 0; first < p.chunks - 1; first += AHEAD) {
        float total[AHEAD], added[AHEAD];
        Long at[AHEAD];
        EACH(j, AHEAD) {
            const int slot = min(first + j, p.chunks - 2);
            at[j] = carry_at(p, REVERSED ? p.chunks - 2 - slot : slot, row, channel);
            total[j] = p.total[at[j]];
            added[j] = p.carry[at[j] * STATES + n];
        }
        EACH(j, AHEAD) {
            if (first + j >= p.chunks - 1) break;
            h = total[j] < 0.f ? added[j] : fmaf(ex2(rate * total[j]), h, added[j]);
            p.carry[at[j] * STATES + n] = h;
        }
    }
}
