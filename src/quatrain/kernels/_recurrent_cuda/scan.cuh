// The loop over time of both passes: wait for the operand, multiply, do the units' work, send the next operand.
//
// Two barriers of the block a step, and one exchange. Between the blocks of a cluster, each pushes its piece into
// all others' shared memory, where a barrier counts the bytes. In a grid, each writes it to global memory, counts up
// and reads the whole operand when all have. In both cases whoever has an operand knows that all have read
// the one before the last, so that two places for it are enough and nobody waits to write.
//
// No wait is without end: who has waited for `patience` leaves NaN and a mark in `status`.

// Announces the bytes of a step's operand to this block's barrier; one thread.
__device__ __forceinline__ void announce(const Block& b, int step) {
    bar_expect(b.bars + (GRID ? 0 : step & 1), VECTOR * sizeof(Data));
}

// Waits for a barrier's phase; false if that took too long.
__device__ __forceinline__ bool wait_for(const Args& args, Long* bar, int parity) {
    if (bar_try(bar, parity)) return true;
    Long until = nanoseconds() + args.patience;
    while (!bar_try(bar, parity)) {
        if (nanoseconds() > until) return false;
    }
    return true;
}

// Waits until all blocks of the group have published a step's operand; one thread.
__device__ __forceinline__ bool wait_for_group(const Args& args, const Block& b, int step) {
    int wanted = BLOCKS * (step + 1);
    Long until = 0;
    for (int i = 1; load_acquire(args.arrived + b.group) - wanted < 0; ++i) {
        if (i % 64) continue;
        Long now = nanoseconds();
        if (until == 0) until = now + args.patience;
        if (now > until || load_acquire(args.arrived + args.groups)) return false;
    }
    return true;
}

__device__ __forceinline__ Data* published(const Args& args, const Block& b, int step) {
    return args.exchange + ((Long)(step & 1) * args.groups + b.group) * VECTOR;
}

// Gets a step's operand into `operand(b, step)`; all threads. False where it did not come.
__device__ __forceinline__ bool receive(const Args& args, const Block& b, int step) {
    bool came = true;
    if (!GRID) {
        if (BLOCKS == 1) return true;
        came = wait_for(args, b.bars + (step & 1), step >> 1 & 1);
        if (threadIdx.x == 0 && came) announce(b, step + 2);
        return came;
    }
    if (MOVE == 0) {
        if (threadIdx.x == 0) {
            came = wait_for_group(args, b, step);
            if (came) {
                fence_copies();
                announce(b, step);
                constexpr int SHARE = VECTOR / CLUSTER;
                int first = CLUSTER > 1 ? cluster_rank() * SHARE : 0;
                load_to(b.v + first, published(args, b, step) + first, SHARE * sizeof(Data), b.bars,
                        (unsigned short)((1 << CLUSTER) - 1));
            }
        }
        __syncwarp();
        return came && wait_for(args, b.bars, step & 1);
    }
    if (threadIdx.x == 0) came = wait_for_group(args, b, step);
    __syncthreads();
    const Four* from = (const Four*)published(args, b, step);
    constexpr int COUNT = VECTOR * (int)sizeof(Data) / 16;
    for (int i = threadIdx.x; i < COUNT; i += THREADS) ((Four*)b.v)[i] = load_fresh(from + i);
    __syncthreads();
    return came;
}

// Where this block's piece of a step's operand is written.
__device__ __forceinline__ Data* piece_of(const Args& args, const Block& b, int step) {
    if (GRID) return published(args, b, step) + b.member * PIECE;
    return BLOCKS == 1 ? operand(b, step) : b.stage + (step & 1) * PIECE;
}

// Makes the piece known to the group; all threads, after they have written it.
__device__ __forceinline__ void send(const Args& args, const Block& b, int step) {
    if (COPY && MOVE == 0 || GRID) fence_copies();
    __syncthreads();
    if (GRID) {
        if (threadIdx.x == 0) {
            __threadfence();
            add_release(args.arrived + b.group, 1);
        }
        return;
    }
    if (BLOCKS == 1) return;
    Data* to = operand(b, step) + b.member * PIECE;
    const Data* from = piece_of(args, b, step);
    Long* bar = b.bars + (step & 1);
    constexpr int BYTES = PIECE * (int)sizeof(Data);
    if (MOVE == 0) {
        int block = threadIdx.x;
        if (block < BLOCKS) push(to, from, BYTES, bar, (block + b.member) % BLOCKS);
    } else {
        for (int i = threadIdx.x; i < BYTES / 16 * BLOCKS; i += THREADS) {
            int block = i / (BYTES / 16), four = i % (BYTES / 16);
            push_four((Four*)to + four, ((const Four*)from)[four], bar, (block + b.member) % BLOCKS);
        }
    }
}

// A unit's numbers of the next operand, and its states where another sequence begins.
__device__ __forceinline__ void prepare(
    const Args& args, const Block& b, Unit& state, const Row& next, Data* piece, int row, int u, float* out
) {
    int unit = b.member * UNITS + u;
    bool there = next.at >= 0 && unit < args.width;
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

extern "C" __global__ void __launch_bounds__(THREADS, 1) recurrent_scan(const Args args) {
    Block b = place_block();
    int thread = threadIdx.x;
    Held held;
    hold_weights(held, b, args);
    if (thread == 0) {
        *b.failed = 0;
        bar_init(b.bars), bar_init(b.bars + 1);
        bar_publish();
        if (COPY) announce(b, 0), announce(b, 1);
    }
    Walk mine;
    if (thread < ROWS) {
        mine = first_walk(args, b.group * ROWS + thread);
        b.rows[thread] = walk(mine, args);
    }
    __syncthreads();
    if (CLUSTER > 1) cluster_sync();

    Unit state[EACH_THREAD];
    float out[GATES];
    int row, u;
    EACH(i, EACH_THREAD) {
        state[i].h = state[i].c = 0.f;
        if (element(i, row, u)) {
            EACH(g, GATES) out[g] = 0.f;
            prepare(args, b, state[i], b.rows[row], piece_of(args, b, 0), row, u, out);
        }
    }
    send(args, b, 0);

    bool more = true;
    for (int step = 0; more; ++step) {
        const Row *now = b.rows + (step & 1) * ROWS, *next = b.rows + (step + 1 & 1) * ROWS;
        In in[EACH_THREAD];
        EACH(i, EACH_THREAD) {
            if (!EMPTY && element(i, row, u) && now[row].at >= 0 && b.member * UNITS + u < args.width) {
                read(in[i], args, now[row], b.member * UNITS + u);
                if (u % 16 == 0) read_later(args, now[row], b.member * UNITS + u);
            }
        }
        bool alive = false;
        if (thread < ROWS) {
            Row then = walk(mine, args);
            b.rows[(step + 1 & 1) * ROWS + thread] = then;
            alive = then.at >= 0;
        }
        if (!receive(args, b, step)) *b.failed = 1;
        if (!EMPTY) multiply_all(held, operand(b, step), b, args);
        more = __syncthreads_or(alive);
        if (*b.failed) break;
        EACH(i, EACH_THREAD) {
            if (element(i, row, u)) {
                EACH(g, GATES) out[g] = 0.f;
                bool valid = now[row].at >= 0 && b.member * UNITS + u < args.width;
                if (!EMPTY && valid) work(args, b, state[i], in[i], now[row], row, u, out);
                if (more) prepare(args, b, state[i], next[row], piece_of(args, b, step + 1), row, u, out);
            }
        }
        if (more) send(args, b, step + 1);
    }
    if (*b.failed) {
        if (thread == 0) {
            if (GRID) atomicExch(args.arrived + args.groups, 1);
            *args.status = 1;
        }
        int unit = b.member * UNITS + thread % UNITS;
        if (unit < args.width) poison(args, unit);
    }
    if (CLUSTER > 1) cluster_sync();  // nobody may be gone while others write here
}
