// The loop over time of both passes: wait for the operand, multiply, do the units' work, send the next operand.
//
// Two barriers of the block a step, and one exchange (exchange.cuh). What others wait for goes first; results are
// written behind it where they fit into registers that long.

#define LATER (EACH_THREAD <= 2)

// A unit's numbers of the next operand, and its states where another sequence begins.
__device__ __forceinline__ void prepare(
    const Args& args, const Block& b, Unit& state, const Row& next, Data* piece, int row, int u, float* out
) {
    int unit = b.member * UNITS + u;
    bool there = next.sequence >= 0 && IS_UNIT(unit);
    if (there && next.flags & FIRST) enter(args, state, next, unit, out);
    EACH(g, PARTS) {
        piece[g * ELEMENTS + place(row, u)] = narrow(there ? out[g] : 0.f);
    }
}

// The element of this thread's turn i: false where there is none.
__device__ __forceinline__ bool element(int i, int& row, int& u) {
    int e = threadIdx.x + i * THREADS;
    row = e / UNITS, u = e % UNITS;
    return EACH_THREAD * THREADS == ELEMENTS || e < ELEMENTS;
}

struct Own {  // what this thread has of its units
    Unit state[EACH_THREAD];
    In in[EACH_THREAD];  // of the step to come
};

// What is needed of a step but for its product.
__device__ __forceinline__ void read_all(In* in, const Args& args, const Block& b, const Row* rows) {
    int row, u;
    EACH(i, EACH_THREAD) {
        if (!EMPTY && element(i, row, u) && rows[row].sequence >= 0 && IS_UNIT(b.member * UNITS + u)) {
            read(in[i], args, rows[row], b.member * UNITS + u);
        }
    }
}

// The first operand, and what is needed of the first step.
__device__ __forceinline__ void begin(Own& own, const Args& args, const Block& b) {
    float out[GATES];
    int row, u;
    const Row* rows = rows_of(b, 0);
    EACH(i, EACH_THREAD) {
        own.state[i].h = own.state[i].c = own.state[i].bias = 0.f;
        if (element(i, row, u)) {
            EACH(g, GATES) out[g] = 0.f;
            prepare(args, b, own.state[i], rows[row], piece_of(args, b, 0), row, u, out);
        }
    }
    send(args, b, 0);
    read_all(own.in, args, b, rows);
}

// One step of all rows: false behind the last, or where a block waited too long.
__device__ __forceinline__ bool run_step(
    Own& own, Walk& mine, const Held& held, const Args& args, const Block& b, int step
) {
    const Row *now = rows_of(b, step), *next = rows_of(b, step + 1);
    bool alive = false;
    int row, u;
    if (threadIdx.x < ROWS) {
        Row then = walk(mine, args);
        rows_of(b, step + 1)[threadIdx.x] = then;
        alive = then.sequence >= 0;
    }
    bool came = receive(args, b, step);
    multiply_all(held, args, b, step, came);
    came = came && receive_sums(args, b, step);
    if (!came) *b.failed = 1;
    bool more = __syncthreads_or(alive);
    if (*b.failed) return false;
    Done done[EACH_THREAD];
    Row was[EACH_THREAD];  // the next step's rows may take this one's place in shared memory
    float out[GATES];
    EACH(i, EACH_THREAD) {
        if (element(i, row, u)) {
            EACH(g, GATES) out[g] = 0.f;
            was[i] = now[row];
            if (!EMPTY && was[i].sequence >= 0 && IS_UNIT(b.member * UNITS + u)) {
                done[i] = work(args, b, step, own.state[i], own.in[i], was[i], row, u, out);
                if (!LATER) record(args, done[i], was[i], b.member * UNITS + u);
            }
            if (more) prepare(args, b, own.state[i], next[row], piece_of(args, b, step + 1), row, u, out);
        }
    }
    if (more) {
        send(args, b, step + 1);
        read_all(own.in, args, b, next);  // there by the next product's end; into other registers they would have to
    }                                     // be there at this step's, to be moved
    if (LATER) {
        EACH(i, EACH_THREAD) {
            if (!EMPTY && element(i, row, u) && was[i].sequence >= 0 && IS_UNIT(b.member * UNITS + u)) {
                record(args, done[i], was[i], b.member * UNITS + u);
            }
        }
    }
    return more;
}

__device__ __forceinline__ void init_bars(const Block& b) {
    for (int i = 0; i < BARS; ++i) bar_init(b.full + i, GRID && i >= RING ? WM * WK : 1);
    bar_init(b.shared_sums, 1), bar_init(b.shared_sums + 1, 1);
    bar_publish();
    if (!GRID && BLOCKS > 1) announce(b, 0), announce(b, 1);
    if (SHARE > 1) announce_sums(b, 0), announce_sums(b, 1);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) recurrent_scan(const Args args) {
    Block b = place_block();
    int thread = threadIdx.x;
    Held held;
    hold_weights(held, b, args);
    if (thread == 0) {
        *b.failed = 0;
        init_bars(b);
    }
    Walk mine;
    if (thread < ROWS) {
        mine = first_walk(args, b.group * ROWS + thread);
        b.rows[thread] = walk(mine, args);
    }
    __syncthreads();
    if (CLUSTER > 1) cluster_sync();

    Own own;
    begin(own, args, b);
    for (int step = 0; run_step(own, mine, held, args, b, step); ++step) {
    }
    int row, u;
    EACH(i, EACH_THREAD) {
        if (*b.failed) own.state[i].bias = __int_as_float(0x7fc00000);
        if (element(i, row, u) && IS_UNIT(b.member * UNITS + u)) {
            leave(args, b, own.state[i], row, b.member * UNITS + u);
        }
    }
    if (*b.failed) {
        if (thread == 0) {
            if (GRID) atomicExch(failure_of(args), 1);
            *args.status = 1;
        }
        int unit = b.member * UNITS + thread % UNITS;
        if (IS_UNIT(unit)) poison(args, unit);
    }
    if (CLUSTER > 1) cluster_sync();  // nobody may be gone while others write here
}
