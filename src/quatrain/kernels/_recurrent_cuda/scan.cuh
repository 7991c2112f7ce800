// The loop over time of both passes: wait for the operand, multiply, do the units' work, send the next operand.
//
// Two barriers of the block a step, and one exchange (exchange.cuh). What others wait for goes first; results are
// written behind it where they fit into registers that long.
//
// With two sets of rows the block works on one while the operand of the other is exchanged. All blocks of a group walk
// along the same rows, and so agree when a set ends.

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

struct Set {  // of rows: what this thread has of its units
    Unit state[EACH_THREAD];
    In in[EACH_THREAD];  // read a step ahead
    bool alive;
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

// The first operand of a set, and what is needed of its first step.
__device__ __forceinline__ void begin(Set& own, const Args& args, const Block& b, int phase) {
    float out[GATES];
    int row, u;
    const Row* rows = rows_of(b, phase, 0);
    own.alive = true;
    EACH(i, EACH_THREAD) {
        own.state[i].h = own.state[i].c = own.state[i].bias = 0.f;
        if (element(i, row, u)) {
            EACH(g, GATES) out[g] = 0.f;
            prepare(args, b, own.state[i], rows[row], piece_of(args, b, phase), row, u, out);
        }
    }
    send(args, b, phase);
    read_all(own.in, args, b, rows);
}

// One step of a set, whose `time`-th it is; `by_turns`: the other set's comes next. False where a block waited too long.
__device__ __forceinline__ bool run_step(
    Set& own, Walk& mine, const Held& held, const Args& args, Block& b, int phase, int time, bool by_turns
) {
    int step = PHASES * time + phase, at = (int)threadIdx.x - phase * ROWS, row, u;
    const Row *now = rows_of(b, phase, time), *next = rows_of(b, phase, time + 1);
    bool alive = false;
    if (0 <= at && at < ROWS) {
        Row then = walk(mine, args);
        rows_of(b, phase, time + 1)[at] = then;
        alive = then.sequence >= 0;
    }
    bool came = receive(args, b, step);
    multiply_all(held, args, b, step, came);
    came = came && receive_sums(args, b);
    if (!came) *b.failed = 1;
    own.alive = __syncthreads_or(alive);
    if (*b.failed) return false;
    if (by_turns) fetch(args, b, step + 1);
    In then[EACH_THREAD];
    if (own.alive) read_all(then, args, b, next);
    Done done[EACH_THREAD];
    Row was[EACH_THREAD];  // the next step's rows may take this one's place in shared memory
    float out[GATES];
    EACH(i, EACH_THREAD) {
        if (element(i, row, u)) {
            EACH(g, GATES) out[g] = 0.f;
            was[i] = now[row];
            if (!EMPTY && was[i].sequence >= 0 && IS_UNIT(b.member * UNITS + u)) {
                done[i] = work(args, b, own.state[i], own.in[i], was[i], row, u, out);
                if (!LATER) record(args, done[i], was[i], b.member * UNITS + u);
            }
            if (own.alive) {
                prepare(args, b, own.state[i], next[row], piece_of(args, b, step + PHASES), row, u, out);
            }
        }
    }
    if (own.alive) {
        send(args, b, step + PHASES);
    } else if (PHASES > 1) {
        __syncthreads();  // the other set's product takes the place of the sums
    }
    if (LATER) {
        EACH(i, EACH_THREAD) {
            if (!EMPTY && element(i, row, u) && was[i].sequence >= 0 && IS_UNIT(b.member * UNITS + u)) {
                record(args, done[i], was[i], b.member * UNITS + u);
            }
        }
    }
    EACH(i, EACH_THREAD) own.in[i] = then[i];
    return true;
}

// All steps of all sets, or those until a block waited too long.
__device__ __forceinline__ void run_all(Set* sets, Walk& mine, const Held& held, const Args& args, Block& b) {
    bool more = true;
    for (int time = 0; more; ++time) {
        more = false;
        EACH(phase, PHASES) {
            if (PHASES == 1 || sets[phase].alive) {
                bool by_turns = PHASES > 1 && sets[PHASES - 1 - phase].alive;
                if (!run_step(sets[phase], mine, held, args, b, phase, time, by_turns)) return;
                more = more || sets[phase].alive;
                ++b.turn;
            }
        }
    }
}

__device__ __forceinline__ void init_bars(const Block& b) {
    for (int i = 0; i < BARS; ++i) bar_init(b.full + i, GRID && i >= RING ? WM * WK : 1);
    bar_init(b.shared_sums, 1), bar_init(b.shared_sums + 1, 1);
    bar_publish();
    for (int step = 0; !GRID && BLOCKS > 1 && step < 2 * PHASES; ++step) announce(b, step);
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
    if (thread < PHASES * ROWS) {
        mine = first_walk(args, b.group * (PHASES * ROWS) + thread);
        rows_of(b, thread / ROWS, 0)[thread % ROWS] = walk(mine, args);
    }
    __syncthreads();
    if (CLUSTER > 1) cluster_sync();

    Set sets[PHASES];
    EACH(phase, PHASES) {
        if (phase > 0) __syncthreads();  // the piece before may still be read where it was gathered
        begin(sets[phase], args, b, phase);
    }
    run_all(sets, mine, held, args, b);
    int row, u;
    EACH(phase, PHASES) {
        EACH(i, EACH_THREAD) {
            Unit& state = sets[phase].state[i];
            if (*b.failed) state.bias = __int_as_float(0x7fc00000);
            if (element(i, row, u) && IS_UNIT(b.member * UNITS + u)) {
                leave(args, b, state, phase * ROWS + row, b.member * UNITS + u);
            }
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
