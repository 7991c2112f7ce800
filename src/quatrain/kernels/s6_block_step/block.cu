// One step of a whole Mamba block in one cooperative launch: norm, in_proj, convolution, x_proj, dt_proj, the state,
// the gate, out_proj and the residual sum.
//
// Blocks are one for each multiprocessor and all run at once. Each owns CH channels and OUT numbers of the result.
//  1. in_proj for the own channels' u and z, from x, which each block normalises itself; convolution.
//  2. x_proj's columns of the own channels: a partial sum for each of its rows. Exchange: who owns a row adds them up.
//  3. Exchange: all rows. dt_proj, the state's step and the gate for the own channels. Exchange: y of all channels.
//  4. out_proj for the own numbers of the result.
// Matrices go from memory to the registers that the matrix unit reads, 16 bytes a lane, in their ordinary layout: lane
// (r, q) holds columns 8 q and following of rows r and r + 8, and of row r of the batch, which renumbers the columns of
// both operands in the same way. out_proj's first pieces set out before the exchanges. float32 is multiplied by FMA.
//
// What is exchanged is polled (_polled.cuh). Its memory has two halves that launches use in turn: each clears what the
// last one used, which all have read. `space` begins with the number of the launch, what is used of both halves, and
// the launch that gave up waiting.
//
// cuda.py sets DATA, VEC (rows begin at 16 bytes), CH, OUT, NT, WM_IN, WM_OUT, CW, VN, NORM and ZOH. Needs _device.cuh,
// _eights.cuh, and cluster.cuh of _recurrent_cuda and _polled.cuh.

#define THREADS 256
#define WARPS (THREADS / 32)
#define COLUMNS (8 * NT)           // rows of the batch
#define DEPTH (8 / FOURS)          // pieces of a warp on their way
#define AHEAD (16 / NT < DEPTH ? 16 / NT : DEPTH)  // operands on their way
#define PAIRS ((CH * COLUMNS + THREADS - 1) / THREADS)
#define KEPT_PAIRS (PAIRS < 3 ? PAIRS : 3)
#define RESULTS ((OUT * COLUMNS + THREADS - 1) / THREADS)
#define HEADER 8  // of `space`, 16 bytes each

struct Args {  // the same fields in the same order as in cuda.py
    const Data *x, *norm_weight, *in_weight, *conv_weight, *conv_bias, *x_weight, *dt_weight, *dt_bias, *a_log, *skip,
        *out_weight, *conv0;
    const float* h0;
    Data *y, *conv;
    float* h;
    int *space, *status;
    Long x_row, patience, half;  // 16 bytes each in a half of `space`
    int batch, width, inner, states, rank, blocks;
    float eps;
};

struct Room {  // of a block, in shared memory
    int rows;       // of x_proj, a multiple of 4 with those that pad
    int rank, states;  // pitches
    Data* norm;        // its weights
    float *scale, *u, *gate, *x_weight, *dt_weight, *a, *small, *low, *sums;
};
#define SMALL (CW + 3)  // numbers of a channel: the convolution's weights and bias, dt's bias, skip

__device__ __forceinline__ int to_four(int n) { return (n + 3) / 4 * 4; }

__device__ __forceinline__ Room room_of(const Args& p) {
    Room r;
    r.rows = to_four(p.rank + 2 * p.states), r.rank = to_four(p.rank) + 4, r.states = to_four(p.states);
    r.norm = (Data*)shared_memory;
    r.scale = (float*)(r.norm + (p.width + 7) / 8 * 8);
    r.u = r.scale + COLUMNS;
    r.gate = r.u + COLUMNS * CH;
    r.x_weight = r.gate + COLUMNS * CH;
    r.dt_weight = r.x_weight + CH * r.rows;
    r.a = r.dt_weight + CH * r.rank;
    r.small = r.a + CH * r.states;
    r.low = r.small + to_four(CH * SMALL);
    r.sums = r.low + p.batch * r.rows;
    return r;
}

struct Exchange {
    Four *partial, *low, *y;  // (groups of rows, blocks), (groups of rows), (batch, channels)
    int epoch, pitch;         // numbers from one row of y to the next
    Long used;
};

__device__ __forceinline__ Exchange exchange_of(const Args& p, const Room& r, int epoch) {
    Exchange e;
    int groups = r.rows / 4 * p.batch;
    e.epoch = epoch;
    e.pitch = (p.blocks * CH + 31) / 32 * 32;
    e.partial = (Four*)p.space + HEADER + (epoch & 1) * p.half;
    e.low = e.partial + (Long)groups * p.blocks;
    e.y = e.low + groups;
    e.used = e.y + (Long)p.batch * e.pitch / PER_FOUR - e.partial;
    return e;
}

// Waits for 16 bytes if they are not there. If that takes too long, they become NaN.
__device__ __forceinline__ void await(const Args& p, int epoch, Four& v, const Four* from) {
    if (is_there(v) || ask(v, from, p.space + 3, epoch + 1, p.patience)) return;
    v = {0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu};
    atomicExch(p.space + 3, epoch + 1);
    *p.status = 1;
}

__device__ __forceinline__ void widen_eight(const Eight& e, float* v) {
    EACH(f, FOURS) {
        unsigned word[4] = {e.of[f].x, e.of[f].y, e.of[f].z, e.of[f].w};
        EACH(i, 4) {
#if DATA == 0
            v[4 * f + i] = __int_as_float((int)word[i]);
#else
            v[2 * i] = low_of(word[i]), v[2 * i + 1] = high_of(word[i]);
#endif
        }
    }
}

__device__ __forceinline__ Eight narrow_eight(const float* v) {
    Eight e;
#if DATA == 0
    EACH(f, 2) {
        const float* w = v + 4 * f;
        e.of[f] = {(unsigned)__float_as_int(w[0]), (unsigned)__float_as_int(w[1]), (unsigned)__float_as_int(w[2]),
                   (unsigned)__float_as_int(w[3])};
    }
#else
    e.of[0] = {narrow_pair(v[0], v[1]), narrow_pair(v[2], v[3]), narrow_pair(v[4], v[5]), narrow_pair(v[6], v[7])};
#endif
    return e;
}

// -- products

template <int HALVES>
struct Panel {  // what a lane reads of a matrix: rows r and r + 8 of its warp's 16, or none
    const Data* row[HALVES];
    int size, chunks;  // columns; in pieces of 32
};

template <int HALVES>
struct Piece {
    Eight row[HALVES];
};

template <int HALVES>
__device__ __forceinline__ void load_piece(Piece<HALVES>& piece, const Panel<HALVES>& m, int chunk) {
    int at = chunk * 32 + threadIdx.x % 4 * 8;
    EACH(i, HALVES) piece.row[i] = m.row[i] ? eight_of<true>(m.row[i], at, m.size) : zeros();
}

#if DATA == 0
#define TURNS COLUMNS  // a lane multiplies its 8 columns for a row of the batch at a time
__device__ __forceinline__ int row_of_turn(int turn) { return turn; }

template <int HALVES>
__device__ __forceinline__ void multiply_piece(float (*sum)[SPLIT][LANE_SUMS], int turn, const Piece<HALVES>& piece,
                                               const Eight& v) {
    float b[8];
    widen_eight(v, b);
    EACH(i, HALVES) {
        float a[8];
        widen_eight(piece.row[i], a);
        float& s = sum[turn / 8][0][2 * (turn % 8) + i];
        EACH(k, 8) s = fmaf(a[k], b[k], s);
    }
}
#else
#define TURNS NT
__device__ __forceinline__ int row_of_turn(int turn) { return 8 * turn + threadIdx.x % 32 / 4; }

template <int HALVES>
__device__ __forceinline__ void multiply_piece(float (*sum)[SPLIT][LANE_SUMS], int turn, const Piece<HALVES>& piece,
                                               const Eight& v) {
    Four b = v.of[0], low = piece.row[0].of[0], high = {0, 0, 0, 0};
    if constexpr (HALVES > 1) high = piece.row[1].of[0];
    unsigned first[2] = {b.x, b.y}, second[2] = {b.z, b.w};
    multiply(sum[turn][0], Four{low.x, high.x, low.y, high.y}, first);
    multiply(sum[turn][SPLIT - 1], Four{low.z, high.z, low.w, high.w}, second);
}
#endif

// Rows of the batch that are multiplied at a time: for all of them operands are asked for before any is used.
#define AT_ONCE (DATA == 0 ? 1 : NT)

// The sums of all warps for the rows of a panel, WM warps of them side by side: `sums[k][n][row]`. All threads.
// `source.ask(row of the batch, column)` asks for 8 numbers, `source.take` waits for them.
template <int WM, int HALVES, class Source>
__device__ __forceinline__ void product(float* sums, const Panel<HALVES>& m, Piece<HALVES>* piece, const Source& source) {
    constexpr int WK = WARPS / WM, PITCH = 16 * WM + 4;
    const int lane = threadIdx.x % 32, wm = threadIdx.x / 32 % WM, wk = threadIdx.x / 32 / WM;
    float sum[NT][SPLIT][LANE_SUMS];
    EACH(j, NT) EACH(s, SPLIT) EACH(i, LANE_SUMS) sum[j][s][i] = 0.f;
    for (int first = wk; first < m.chunks; first += DEPTH * WK) {
        EACH(group, DEPTH / AHEAD) {
            EACH(turn, TURNS / AT_ONCE) {
                if (DATA == 0 && turn >= source.rows) continue;
                Eight v[AHEAD][AT_ONCE];
                EACH(o, AHEAD) {
                    int chunk = first + (group * AHEAD + o) * WK;
                    EACH(t, AT_ONCE) {
                        v[o][t] = zeros();
                        int row = row_of_turn(turn * AT_ONCE + t);
                        if (chunk < m.chunks && row < source.rows) v[o][t] = source.ask(row, chunk * 32 + lane % 4 * 8);
                    }
                }
                EACH(o, AHEAD) {
                    int chunk = first + (group * AHEAD + o) * WK;
                    if (chunk >= m.chunks) continue;
                    EACH(t, AT_ONCE) {
                        int row = row_of_turn(turn * AT_ONCE + t);
                        if (row < source.rows) source.take(v[o][t], row, chunk * 32 + lane % 4 * 8);
                    }
                    __syncwarp();
                    EACH(t, AT_ONCE) multiply_piece(sum, turn * AT_ONCE + t, piece[group * AHEAD + o], v[o][t]);
                }
            }
            EACH(o, AHEAD) {
                int d = group * AHEAD + o;
                load_piece(piece[d], m, first + (d + DEPTH) * WK);
            }
        }
    }
    EACH(j, NT) {
        float d[4];
        finish(sum[j], d);
        float* to = sums + (wk * COLUMNS + 8 * j + lane % 4 * 2) * PITCH + wm * 16 + lane / 4;
        to[0] = d[0], to[PITCH] = d[1];
        if (HALVES > 1) to[8] = d[2], to[PITCH + 8] = d[3];
    }
}

template <int WM>
__device__ __forceinline__ float sum_of(const float* sums, int n, int row) {
    float total = 0.f;
    EACH(k, WARPS / WM) total += sums[(k * COLUMNS + n) * (16 * WM + 4) + row];
    return total;
}

template <int WM, int HALVES>
__device__ __forceinline__ void begin(const Panel<HALVES>& m, Piece<HALVES>* piece) {
    EACH(d, DEPTH) load_piece(piece[d], m, (int)threadIdx.x / 32 / WM + d * (WARPS / WM));
}

#define HALVES_IN (2 * CH > 8 ? 2 : 1)
#define HALVES_OUT (OUT > 8 ? 2 : 1)

__device__ __forceinline__ Panel<HALVES_IN> in_panel(const Args& p) {  // rows: u of all own channels, then z
    Panel<HALVES_IN> m;
    m.size = p.width, m.chunks = (p.width + 31) / 32;
    EACH(half, HALVES_IN) {
        int i = threadIdx.x / 32 % WM_IN * 16 + threadIdx.x % 32 / 4 + 8 * half;
        int channel = blockIdx.x * CH + i % CH;
        bool there = i < 2 * CH && channel < p.inner;
        m.row[half] = there ? p.in_weight + ((Long)(i / CH) * p.inner + channel) * p.width : nullptr;
    }
    return m;
}

__device__ __forceinline__ Panel<HALVES_OUT> out_panel(const Args& p) {
    Panel<HALVES_OUT> m;
    m.size = p.inner, m.chunks = (p.inner + 31) / 32;
    EACH(half, HALVES_OUT) {
        int i = threadIdx.x / 32 % WM_OUT * 16 + threadIdx.x % 32 / 4 + 8 * half, row = blockIdx.x * OUT + i;
        m.row[half] = i < OUT && row < p.width ? p.out_weight + (Long)row * p.inner : nullptr;
    }
    return m;
}

struct Normed {  // what in_proj reads
    const Args& p;
    const Room& r;
    int rows;
    __device__ __forceinline__ Eight ask(int n, int at) const { return eight_of<false>(p.x + n * p.x_row, at, p.width); }
    __device__ __forceinline__ void take(Eight& e, int n, int at) const {
#if NORM
        float v[8], w[8];
        widen_eight(e, v);
        if (at >= p.width) return;
        widen_eight(*(const Eight*)(r.norm + at), w);
        EACH(i, 8) v[i] = v[i] * r.scale[n] * w[i];
        e = narrow_eight(v);
#endif
    }
};

struct Gated {  // what out_proj reads
    const Args& p;
    const Exchange& e;
    int rows;
    __device__ __forceinline__ const Four* place(int n, int at, int f) const {
        return e.y + ((Long)n * e.pitch + at) / PER_FOUR + f;
    }
    __device__ __forceinline__ Eight ask(int n, int at) const {
        Eight v;
        EACH(f, FOURS) v.of[f] = load_relaxed(place(n, at, f));
        return v;
    }
    __device__ __forceinline__ void take(Eight& v, int n, int at) const {
        EACH(f, FOURS) await(p, e.epoch, v.of[f], place(n, at, f));
    }
};

// -- the steps

// 1 / rms of each row, a warp a row; and the norm's weights.
__device__ __forceinline__ void find_scales(const Args& p, const Room& r) {
#if NORM
    for (int at = (THREADS - 1 - threadIdx.x) * 8; at < p.width; at += THREADS * 8) {  // from the last warp on
        *(Eight*)(r.norm + at) = eight_of<false>(p.norm_weight, at, p.width);
    }
    for (int n = threadIdx.x / 32; n < p.batch; n += WARPS) {
        float total = 0.f;
        for (int at = threadIdx.x % 32 * 8; at < p.width; at += 1024) {
            Eight e[4];
            EACH(i, 4) e[i] = eight_of<false>(p.x + n * p.x_row, at + i * 256, p.width);
            EACH(i, 4) {
                float v[8];
                widen_eight(e[i], v);
                EACH(k, 8) total = fmaf(v[k], v[k], total);
            }
        }
        fold<1, 32, 1>(&total, threadIdx.x % 32);
        if (threadIdx.x % 32 == 0) r.scale[n] = 1.f / sqrtf(total / (float)p.width + p.eps);
    }
#endif
}

// e^x for any x, to a few places.
__device__ __forceinline__ float power(float x) {
    float high = x * LOG2E, low = fmaf(x, LOG2E, -high), y = exact_ex2(high);
    return fmaf(y, low * LN2, y);
}

// Weights of the own channels, as float32; zeros where a channel or a row only pads.
__device__ __forceinline__ void bring_small(const Args& p, const Room& r) {
    const int first = blockIdx.x * CH, count = min(CH, p.inner - first), rows = p.rank + 2 * p.states;
    const int thread = threadIdx.x;  // warps share out what is to be brought, so that all of it is waited for at once
    for (int i = thread; thread < 128 && i < CH * r.rows; i += 128) {
        int c = i % CH, row = i / CH;
        r.x_weight[c * r.rows + row] = c < count && row < rows ? widen(p.x_weight[(Long)row * p.inner + first + c]) : 0.f;
    }
    for (int i = thread - 128; thread >= 128 && thread < 192 && i < CH * r.rank; i += 64) {
        int c = i / r.rank, k = i % r.rank;
        r.dt_weight[i] = c < count && k < p.rank ? widen(p.dt_weight[(Long)(first + c) * p.rank + k]) : 0.f;
    }
    for (int i = thread - 192; thread >= 192 && thread < 224 && i < CH * r.states; i += 32) {
        int c = i / r.states, n = i % r.states;
        r.a[i] = c < count && n < p.states ? -power(widen(p.a_log[(Long)(first + c) * p.states + n])) : -1.f;
    }
    for (int i = thread - 224; thread >= 224 && i < CH * SMALL; i += 32) {
        int c = i / SMALL, k = i % SMALL, channel = first + c;
        float v = 0.f;
        if (c < count) {
            if (k < CW) v = widen(p.conv_weight[(Long)channel * CW + k]);
            else if (k == CW) v = p.conv_bias ? widen(p.conv_bias[channel]) : 0.f;
            else if (k == CW + 1) v = p.dt_bias ? widen(p.dt_bias[channel]) : 0.f;
            else v = p.skip ? widen(p.skip[channel]) : 0.f;
        }
        r.small[i] = v;
    }
}

struct Tail {  // the convolution's last inputs
    Data v[CW - 1];
};
__device__ __forceinline__ Tail tail_of(const Args& p, int e) {
    Tail t;
    int n = e / CH, channel = blockIdx.x * CH + e % CH;
    EACH(k, CW - 1) {
        bool there = n < p.batch && channel < p.inner;
        t.v[k] = there ? p.conv0[((Long)n * (CW - 1) + k) * p.inner + channel] : (Data)0;
    }
    return t;
}

// The convolution of an own channel of a row of the batch, and z.
__device__ __forceinline__ void convolve(const Args& p, const Room& r, const Tail& tail, int e) {
    int n = e / CH, c = e % CH, channel = blockIdx.x * CH + c;
    if (n >= p.batch) return;
    const float* weight = r.small + c * SMALL;
    Data last = narrow(sum_of<WM_IN>(r.sums, n, c));
    float u = weight[CW];
    EACH(k, CW - 1) u = fmaf(weight[k], widen(tail.v[k]), u);
    u = fmaf(weight[CW - 1], widen(last), u);
    r.u[e] = widen(narrow(silu(u)));
    r.gate[e] = silu(sum_of<WM_IN>(r.sums, n, CH + c));
    if (channel >= p.inner) return;
    Data* to = p.conv + (Long)n * (CW - 1) * p.inner + channel;
    EACH(k, CW - 1) to[(Long)k * p.inner] = k < CW - 2 ? tail.v[k < CW - 2 ? k + 1 : 0] : last;
}

// Partial sums of x_proj over the own channels.
__device__ __forceinline__ void send_partials(const Args& p, const Room& r, const Exchange& e) {
    int across = r.rows / 4;
    for (int g = threadIdx.x; g < across * p.batch; g += THREADS) {
        int n = g / across, row = g % across * 4;
        float s[4] = {0.f, 0.f, 0.f, 0.f};
        EACH(c, CH) {
            float u = r.u[n * CH + c];
            float4 w = *(const float4*)(r.x_weight + c * r.rows + row);
            s[0] = fmaf(w.x, u, s[0]), s[1] = fmaf(w.y, u, s[1]), s[2] = fmaf(w.z, u, s[2]), s[3] = fmaf(w.w, u, s[3]);
        }
        Four v = {filled(__float_as_uint(s[0])), filled(__float_as_uint(s[1])), filled(__float_as_uint(s[2])),
                  filled(__float_as_uint(s[3]))};
        store_relaxed(e.partial + (Long)g * p.blocks + blockIdx.x, v);
    }
}

// Adds up the partial sums of the groups of rows that this warp owns.
__device__ __forceinline__ void add_partials(const Args& p, const Room& r, const Exchange& e) {
    const int lane = threadIdx.x % 32, groups = r.rows / 4 * p.batch;
    for (int g = blockIdx.x + threadIdx.x / 32 * p.blocks; g < groups; g += WARPS * p.blocks) {
        const Four* from = e.partial + (Long)g * p.blocks;
        float s[4] = {0.f, 0.f, 0.f, 0.f};
        for (int first = lane; first < p.blocks; first += 32 * 8) {
            Four v[8];
            EACH(i, 8) v[i] = first + 32 * i < p.blocks ? load_relaxed(from + first + 32 * i) : Four{0, 0, 0, 0};
            EACH(i, 8) {
                await(p, e.epoch, v[i], from + first + 32 * i);
                s[0] += __uint_as_float(v[i].x), s[1] += __uint_as_float(v[i].y);
                s[2] += __uint_as_float(v[i].z), s[3] += __uint_as_float(v[i].w);
            }
        }
        __syncwarp();
        fold<4, 32, 1>(s, lane);
        if (lane % 8 == 0) store_word((unsigned*)(e.low + g) + lane / 8, filled(__float_as_uint(s[0])));
    }
}

__device__ __forceinline__ void receive_low(const Args& p, const Room& r, const Exchange& e) {
    const int groups = r.rows / 4 * p.batch;
    for (int first = threadIdx.x; first < groups; first += 4 * THREADS) {
        Four v[4];
        EACH(i, 4) v[i] = first + i * THREADS < groups ? load_relaxed(e.low + first + i * THREADS) : Four{0, 0, 0, 0};
        EACH(i, 4) {
            int g = first + i * THREADS;
            await(p, e.epoch, v[i], e.low + g);
            if (g < groups) ((Four*)r.low)[g] = v[i];
        }
    }
}

// What the next launch will use of the exchange's memory: `used` of it the last one has.
__device__ __forceinline__ void clear_last(const Args& p, int epoch, int used) {
    int last = epoch & 1 ^ 1;
    Four* half = (Four*)p.space + HEADER + last * p.half;
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < used; i += p.blocks * THREADS) {
        store_relaxed(half + i, {EMPTY_WORD, EMPTY_WORD, EMPTY_WORD, EMPTY_WORD});
    }
}

struct __align__(VN * sizeof(float)) States {
    float v[VN];
};
#define LANES 4  // of a channel of a row of the batch
#define EACH_ROUND (THREADS / LANES)

// States of an own channel, this lane's turn `k` of them.
__device__ __forceinline__ States states_of(const Args& p, int e, int k) {
    States s;
    int n = e / CH, channel = blockIdx.x * CH + e % CH, at = (k * LANES + threadIdx.x % LANES) * VN;
    bool there = n < p.batch && channel < p.inner && at < p.states;
    if (there) return *(const States*)(p.h0 + ((Long)n * p.inner + channel) * p.states + at);
    EACH(v, VN) s.v[v] = 0.f;
    return s;
}

// (e^{dt a} - 1) / a, the zero-order hold.
__device__ __forceinline__ float hold(float dt, float a) { return expm1f(dt * a) / a; }

// dt_proj, the states' step, skip and gate of the own channels; y of two channels is a word for all.
__device__ __forceinline__ void advance_states(const Args& p, const Room& r, const Exchange& exchange, States next) {
    const int part = threadIdx.x % LANES, total = CH * p.batch;
    const int turns = (p.states + LANES * VN - 1) / (LANES * VN);
    for (int begin = 0; begin < total; begin += EACH_ROUND) {
        const int e = begin + threadIdx.x / LANES, at = min(e, total - 1);
        const int n = at / CH, c = at % CH, channel = blockIdx.x * CH + c;
        const bool real = e < total && channel < p.inner;
        const float* low = r.low + n * r.rows;
        const float u = r.u[at];
        float dt = 0.f;
        for (int k = part * 4; k < p.rank; k += 4 * LANES) {
            float4 w = *(const float4*)(r.dt_weight + c * r.rank + k), v = *(const float4*)(low + k);
            dt = fmaf(w.x, v.x, fmaf(w.y, v.y, fmaf(w.z, v.z, fmaf(w.w, v.w, dt))));
        }
        dt += __shfl_xor_sync(ALL_LANES, dt, 1);
        dt += __shfl_xor_sync(ALL_LANES, dt, 2);
        dt = softplus(dt + r.small[c * SMALL + CW + 1]);
        float y = 0.f;
        for (int k = 0; k < turns; ++k) {
            States h = next;
            next = k + 1 < turns ? states_of(p, e, k + 1) : states_of(p, e + EACH_ROUND, 0);
            int first = (k * LANES + part) * VN;
            if (first >= p.states) continue;
            const float *a = r.a + c * r.states + first, *b = low + p.rank + first, *of_c = b + p.states;
            EACH(v, VN) {
                const float in = (ZOH ? hold(dt, a[v]) : dt) * u;
                h.v[v] = fmaf(exact_ex2(dt * a[v] * LOG2E), h.v[v], in * b[v]);
                y = fmaf(of_c[v], h.v[v], y);
            }
            if (real) *(States*)(p.h + ((Long)n * p.inner + channel) * p.states + first) = h;
        }
        y += __shfl_xor_sync(ALL_LANES, y, 1);
        y += __shfl_xor_sync(ALL_LANES, y, 2);
        y = fmaf(r.small[c * SMALL + CW + 2], u, y) * r.gate[at];
        if (channel >= p.inner) y = 0.f;
        Long place = (Long)n * exchange.pitch + channel;
#if DATA == 0
        if (e < total && part == 0) store_word((unsigned*)exchange.y + place, filled(__float_as_uint(y)));
#else
        float neighbour = __shfl_xor_sync(ALL_LANES, y, LANES);
        if (e < total && part == 0 && c % 2 == 0) {
            store_word((unsigned*)exchange.y + place / 2, filled(narrow_pair(y, neighbour)));
        }
#endif
    }
    if (blockIdx.x + 1 != p.blocks) return;
    const int words = PER_FOUR / 4, end = p.blocks * CH / words, missing = exchange.pitch / words - end;
    for (int i = threadIdx.x; i < missing * p.batch; i += THREADS) {  // who reads y asks for 16 bytes
        store_word((unsigned*)exchange.y + (Long)(i / missing) * (exchange.pitch / words) + end + i % missing, 0);
    }
}

__device__ __forceinline__ void prefetch_rows(const void* from, Long bytes) {
    for (Long i = (Long)threadIdx.x * 128; i < bytes; i += THREADS * 128) prefetch_line((const char*)from + i);
}

// What later steps read, on its way to L2 while in_proj waits for its matrix.
__device__ __forceinline__ void prefetch(const Args& p) {
    const int first = blockIdx.x * CH, count = min(CH, p.inner - first);
    for (int i = threadIdx.x; i < p.rank + 2 * p.states; i += THREADS) {
        prefetch_line(p.x_weight + (Long)i * p.inner + first);
    }
    prefetch_rows(p.dt_weight + (Long)first * p.rank, (Long)count * p.rank * sizeof(Data));
    prefetch_rows(p.a_log + (Long)first * p.states, (Long)count * p.states * sizeof(Data));
    const int lines = (count * p.states * (int)sizeof(float) + 127) / 128;
    for (int i = threadIdx.x; i < lines * p.batch; i += THREADS) {
        prefetch_line(p.h0 + ((Long)(i / lines) * p.inner + first) * p.states + i % lines * 32);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) s6_block_step(const Args p) {
    const Room r = room_of(p);
    const Panel<HALVES_IN> in = in_panel(p);
    Piece<HALVES_IN> in_piece[DEPTH];
    begin<WM_IN>(in, in_piece);
    prefetch(p);
    const int epoch = *(volatile const int*)p.space;
    Tail tail[KEPT_PAIRS];
    EACH(i, KEPT_PAIRS) tail[i] = tail_of(p, threadIdx.x + i * THREADS);
    find_scales(p, r);
    bring_small(p, r);
    __syncthreads();
    const int used = *(volatile const int*)(p.space + 1 + (epoch & 1 ^ 1));
    product<WM_IN>(r.sums, in, in_piece, Normed{p, r, p.batch});

    const Panel<HALVES_OUT> out = out_panel(p);
    Piece<HALVES_OUT> out_piece[DEPTH];
    begin<WM_OUT>(out, out_piece);
    const States first_states = states_of(p, threadIdx.x / LANES, 0);
    __syncthreads();
    EACH(i, PAIRS) {
        int e = threadIdx.x + i * THREADS;
        if (e < CH * COLUMNS) convolve(p, r, i < KEPT_PAIRS ? tail[i < KEPT_PAIRS ? i : 0] : tail_of(p, e), e);
    }
    __syncthreads();
    const Exchange exchange = exchange_of(p, r, epoch);
    send_partials(p, r, exchange);
    add_partials(p, r, exchange);
    clear_last(p, epoch, used);
    receive_low(p, r, exchange);
    __syncthreads();
    advance_states(p, r, exchange, first_states);

    float residual[RESULTS];
    EACH(i, RESULTS) {
        int e = threadIdx.x + i * THREADS, n = e / OUT, row = blockIdx.x * OUT + e % OUT;
        residual[i] = NORM && n < p.batch && row < p.width ? widen(p.x[n * p.x_row + row]) : 0.f;
    }
    product<WM_OUT>(r.sums, out, out_piece, Gated{p, exchange, p.batch});
    __syncthreads();
    EACH(i, RESULTS) {
        int e = threadIdx.x + i * THREADS, n = e / OUT, row = blockIdx.x * OUT + e % OUT;
        if (n >= p.batch || row >= p.width) continue;
        p.y[(Long)n * p.width + row] = narrow(residual[i] + sum_of<WM_OUT>(r.sums, n, e % OUT));
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {  // this block has y of all others, which know the number by then
        p.space[1 + (epoch & 1)] = (int)exchange.used;
        p.space[0] = epoch + 1;
    }
}
