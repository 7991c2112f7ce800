// How the S6 scan's kernels divide their work, and how they read it.
//
// A block runs WIDTH channels of one row through one chunk of time, TILE steps after TILE steps. A thread holds
// OWN states of each of CHANNELS channels; LANES threads side by side hold a channel's STATES = LANES OWN
// states, so a warp has 32 / LANES = SLOTS channels side by side, CHANNELS times. States past N are padding.
//
// _launch.py sets DATA, LANES, OWN, CHANNELS, WARPS, TILE, MARK, BLOCKS, and what the arguments are: GATE, SOFTPLUS,
// ZOH, PACKED, CHAINED where chunks wait for each other, and PAIRED where two channels side by side can be read at once.

#define THREADS (32 * WARPS)
#define SLOTS (32 / LANES)
#define STATES (LANES * OWN)
#define WIDTH (WARPS * SLOTS * CHANNELS)
#define PAIRS (WIDTH / 2)
#define QUADS (TILE / 4)
#define ROW (TILE + 4)  // floats; rows then start at different banks
#define ITEMS (PAIRS * QUADS)
#define PER ((ITEMS + THREADS - 1) / THREADS)  // items of one thread: 2 channels x 4 steps each
#define MAPS ((TILE * STATES + THREADS - 1) / THREADS)
#define VECTORS (OWN / 4)
// Powers of two: what decayed by more is left out of a tail. That is an eighth of float32's last place, and half of it
// for 16-bit data.
#define CUT (DATA == 0 ? 27.f : 24.f)

struct Args {  // the same fields in the same order as in _launch.py
    const Data *u, *delta, *b, *c, *gate, *dy;
    const float *a, *skip, *bias, *h0, *dh;
    const Long *lengths, *bounds;
    Data *y;
    float *last, *marks, *carry, *total;
    Data *du, *ddelta, *dgate, *db, *dc;
    float *part_maps, *part_a, *part_width, *dh0;
    int* ready;
    Long u_row, delta_row, gate_row, dy_row, b_row, c_row, b_group, c_group, dgate_row;
    Long batch, time, chunk;
    int u_step, delta_step, gate_step, dy_step, b_step, c_step, dgate_step;  // a tile's steps times these fit into an int
    int width, states, groups, parts, chunks, sequences;
};

// What one block works on.
struct Place {
    int row, chunk, group, part, first, count, tid;  // channels first ... first + count - 1
    Long start, stop, valid;  // steps of the chunk; those from `valid` on are padding
};

// A chained chunk waits for the one before it, so those come first in the grid: blocks are started in its order.
template <bool REVERSED>
__device__ __forceinline__ Place place(const Args& p, int chunks, int skipped) {
    Place k;
    int block = blockIdx.x, each = p.width / p.groups, blocks = p.groups * p.parts;
    int e = block % blocks;
    block /= blocks;
    if (CHAINED) {
        k.row = block % p.batch;
        k.chunk = REVERSED ? chunks - 1 - block / p.batch : block / p.batch;
    } else {
        k.chunk = block % chunks + skipped;
        k.row = block / chunks;
    }
    k.group = e / p.parts;
    k.part = e % p.parts;
    k.first = k.group * each + k.part * WIDTH;
    k.count = min(WIDTH, each - k.part * WIDTH);
    k.tid = threadIdx.x;
    k.start = k.chunk * p.chunk;
    k.stop = min(k.start + p.chunk, p.time);
    k.valid = k.stop;
    if (p.lengths) k.valid = max(k.start, min(k.stop, p.lengths[k.row]));
    return k;
}

// Steps of a tile that are there.
__device__ __forceinline__ int steps_left(const Place& k, Long tile) { return (int)max(0ll, min((Long)TILE, k.valid - tile)); }

// Rows of shared memory hold the even channels first, then the odd ones: threads that write pairs of channels
// then write neighbouring rows.
__device__ __forceinline__ int channel_of(int row) { return 2 * (row % PAIRS) + row / PAIRS; }

// The channels, lane and states of a thread while it steps through time.
struct Thread {
    int lane, slot, part, row, state;
};

__device__ __forceinline__ Thread thread_of(int tid) {
    Thread s;
    s.lane = tid % 32;
    s.part = s.lane % LANES;
    s.slot = s.lane / LANES;
    s.row = tid / 32 * (SLOTS * CHANNELS) + s.slot;  // channel r of the thread is in row + r SLOTS
    s.state = s.part * OWN;
    return s;
}

__device__ __forceinline__ int item_of(int i, int tid) { return tid + i * THREADS; }
__device__ __forceinline__ bool is_item(int item) { return ITEMS % THREADS == 0 || item < ITEMS; }

__device__ __forceinline__ Pair pair_at(const Data* x, bool low, bool high) {
#if PAIRED
    return low ? *(const Pair*)x : Pair{};
#else
    return join(low ? x[0] : Data{}, high ? x[1] : Data{});
#endif
}

__device__ __forceinline__ void store_pair(Data* x, float low, float high, int channel, int count) {
#if PAIRED
    if (channel < count) *(Pair*)x = narrow_pair(low, high);
#else
    if (channel < count) x[0] = narrow(low);
    if (channel + 1 < count) x[1] = narrow(high);
#endif
}

// Whether a tile is whole, so that nothing has to be left out.
__device__ __forceinline__ bool is_whole(int left, const Place& k) {
    return PAIRED && ITEMS % THREADS == 0 && left == TILE && k.count == WIDTH;
}

// Items of one tile of a (T, E) tensor; x points at its first step and the block's first channel, and `left`
// steps are there.
__device__ __forceinline__ void fetch_rows(Pair (&out)[PER][4], const Data* x, int step, int left, const Place& k) {
    if (is_whole(left, k)) {
        EACH(i, PER) {
            const int item = item_of(i, k.tid);
            const Data* at = x + (item / PAIRS * 4 * step + 2 * (item % PAIRS));
            EACH(j, 4) out[i][j] = *(const Pair*)(at + j * step);
        }
        return;
    }
    EACH(i, PER) {
        const int item = item_of(i, k.tid), channel = 2 * (item % PAIRS), first = item / PAIRS * 4;
        const Data* at = x + (first * step + channel);
        const bool low = is_item(item) && channel < k.count, high = is_item(item) && channel + 1 < k.count;
        EACH(j, 4) {
            const bool inside = first + j < left;
            out[i][j] = pair_at(at + j * step, inside && low, inside && high);
        }
    }
}

// One tile of a (T, N) map, TILE x STATES numbers over the block's threads.
__device__ __forceinline__ void fetch_map(Data (&out)[MAPS], const Data* x, int step, int left, int states, int tid) {
    if ((TILE * STATES) % THREADS == 0 && left == TILE && states == STATES) {
        EACH(i, MAPS) {
            const int at = tid + i * THREADS;
            out[i] = x[at / STATES * step + at % STATES];
        }
        return;
    }
    EACH(i, MAPS) {
        const int at = tid + i * THREADS, n = at % STATES, t = at / STATES;
        out[i] = t < TILE && n < states && t < left ? x[t * step + n] : Data{};
    }
}

__device__ __forceinline__ void store_map(float* shared, const Data (&in)[MAPS], int tid) {
    EACH(i, MAPS) {
        const int at = tid + i * THREADS;
        if ((TILE * STATES) % THREADS == 0 || at < TILE * STATES) shared[at] = widen(in[i]);
    }
}

__device__ __forceinline__ void load_states(float* out, const float* from) {
    EACH(m, VECTORS) {
        float4 v = ((const float4*)from)[m];
        out[4 * m] = v.x, out[4 * m + 1] = v.y, out[4 * m + 2] = v.z, out[4 * m + 3] = v.w;
    }
}

__device__ __forceinline__ void save_states(float* to, const float* in) {
    EACH(m, VECTORS) ((float4*)to)[m] = make_float4(in[4 * m], in[4 * m + 1], in[4 * m + 2], in[4 * m + 3]);
}

__device__ __forceinline__ void load_quad(float* out, const float* from) {
    float4 v = *(const float4*)from;
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}

__device__ __forceinline__ void save_quad(float* to, const float* in) {
    *(float4*)to = make_float4(in[0], in[1], in[2], in[3]);
}

// Numbers of an (S, E, N) tensor without padding; absent ones are 0.
__device__ __forceinline__ void read_state(float* out, const float* x, Long sequence, int channel, const Args& p, int state) {
    EACH(n, OWN) {
        bool real = x && channel < p.width && state + n < p.states;
        out[n] = real ? x[(sequence * p.width + channel) * p.states + state + n] : 0.f;
    }
}

__device__ __forceinline__ void write_state(float* x, const float* in, Long sequence, int channel, const Args& p, int state) {
    EACH(n, OWN) {
        if (state + n < p.states) x[(sequence * p.width + channel) * p.states + state + n] = in[n];
    }
}

// Rates times log2(e), so that a decay is one exponential of base 2. Padding decays and takes no input.
__device__ __forceinline__ void read_rates(float (&out)[CHANNELS][OWN], const Args& p, const Place& k, const Thread& s) {
    EACH(r, CHANNELS) {
        int channel = channel_of(s.row + r * SLOTS);
        EACH(n, OWN) {
            bool real = channel < k.count && s.state + n < p.states;
            out[r][n] = real ? p.a[(Long)(k.first + channel) * p.states + s.state + n] * LOG2E : -1.f;
        }
    }
}

// `ex2` errs to one side: on average by 0.09 units of 2^-24 at arguments from -2^-9 to 0, by 0.3 to 0.45 at those
// from -1/4 to -2^-8. A state sums that up over all the steps it remembers, so it is made good in the argument.
#define SLOW -0x1.6p-9f
#define OFFSET 0x1.ep-26f
#define SLOW_OFFSET 0x1.2p-27f

// Whether the slowest of a thread's states decays so slowly.
__device__ __forceinline__ bool is_slow(float dt, const float (&rate)[OWN]) {
    float slowest = rate[0];
    EACH(n, OWN) slowest = fmaxf(slowest, rate[n]);
    return DATA != 0 && dt * slowest > SLOW;
}

__device__ __forceinline__ float offset_of(float dt, const float (&rate)[OWN]) {
    return is_slow(dt, rate) ? SLOW_OFFSET : OFFSET;
}

// Of a state over a step. Float32 data are to be as exact as float32 goes.
__device__ __forceinline__ float decay_of(float dt, float rate, float offset) {
#if DATA == 0
    return exact_ex2(dt * rate);
#else
    return ex2(fmaf(dt, rate, offset));
#endif
}

__device__ __forceinline__ float step_size(float x) { return SOFTPLUS ? softplus(x) : x; }

// (e^{dt a} - 1) / a, the zero-order hold; rate = a log2(e).
__device__ __forceinline__ float hold(float dt, float rate) {
    float a = rate * LN2;
    return expm1f(dt * a) / a;
}

// What a step adds to a state: `in` is dt u, or u with zero-order hold.
__device__ __forceinline__ float drive(float dt, float in, float b, float rate) {
#if ZOH
    return hold(dt, rate) * in * b;
#else
    return in * b;
#endif
}

// Which sequence a step belongs to, and whether it is its first or last step: 4 sequence + first + 2 last.
__device__ __forceinline__ int code_of(const Args& p, Long t) {
    int low = 0, high = p.sequences - 1;  // the last sequence that begins at or before t
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (p.bounds[middle] <= t) low = middle;
        else high = middle - 1;
    }
    return 4 * low + (p.bounds[low] == t) + 2 * (p.bounds[low + 1] == t + 1);
}

__device__ __forceinline__ void mark_edges(int* code, const Args& p, Long tile, int left, int tid) {
    if (tid < TILE) code[tid] = tid < left ? code_of(p, tile + tid) : 0;
}

__device__ __forceinline__ bool has_edge(const int* code, int quad) {
    const int* at = code + 4 * quad;
    return (at[0] | at[1] | at[2] | at[3]) & 3;
}

// Where the state between chunks k and k + 1 is kept, and the sum of step sizes that belongs to it.
__device__ __forceinline__ Long carry_at(const Args& p, int slot, int row, int channel) {
    return ((Long)slot * p.batch + row) * p.width + channel;
}

// One flag per chunk and block of channels, for chained chunks.
__device__ __forceinline__ int* ready_at(const Args& p, const Place& k, int chunk) {
    return p.ready + (((Long)chunk * p.batch + k.row) * p.groups + k.group) * p.parts + k.part;
}

__device__ __forceinline__ void wait_for(const int* ready, int tid) {
    if (tid == 0) {
        while (*(volatile const int*)ready == 0) {
        }
        __threadfence();
    }
    __syncthreads();
}

__device__ __forceinline__ void tell(int* ready, int tid) {
    __threadfence();
    __syncthreads();
    if (tid == 0) *(volatile int*)ready = 1;
}

// States that another block of this launch has written.
__device__ __forceinline__ void load_carry(float* out, const float* from) {
    EACH(m, VECTORS) {
        float4 v = __ldcg((const float4*)from + m);
        out[4 * m] = v.x, out[4 * m + 1] = v.y, out[4 * m + 2] = v.z, out[4 * m + 3] = v.w;
    }
}
