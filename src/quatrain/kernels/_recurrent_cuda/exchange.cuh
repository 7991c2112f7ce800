// How blocks exchange operands and wait for each other.
//
// Sets of rows have places and counters of their own, and what is said here holds for the steps of each alone: those of
// another set may go on or have ended.
//
// Between the blocks of a cluster, each pushes its piece into all others' shared memory, where a barrier counts the
// bytes. Whoever has an operand knows that all have read the one before the last, so that two places for it are enough
// and nobody waits to write.
//
// In a grid pieces go through global memory. Small operands are POLLED: numbers themselves say that they are there,
// for a word with all bits set is none (`EMPTY_WORD`), and a reader asks for its 16 bytes until it has them. There are
// PLACES for operands. With operand t here, all have read t - 1, and its writer clears it for t - 1 + PLACES. Whoever
// asks for that finds it cleared, since both have passed a fence in between, which there is every PLACES / 4 steps: the
// writer before it wrote operand t + 1 + PLACES / 4, the reader behind it and before t - 1 + PLACES.
//
// With two sets of rows the next step's operand, which is the other set's, is read behind the product of this step as
// far as it is there, while the gates are at work. That is behind the set's last step, as `receive` is.
//
// Large ones are counted: who has written counts up, and reads the operand when all have, in CHUNKS chunks, of which
// RING are in shared memory at a time.
//
// No wait is without end: who has waited for `patience` leaves NaN and a mark in `status`.

// Announces the bytes of a step's operand to this block's barrier; one thread.
__device__ __forceinline__ void announce(const Block& b, int step) { bar_expect(bar_of(b, step), VECTOR * sizeof(Data)); }

// Waits for a barrier's phase; false if that took too long.
__device__ __forceinline__ bool wait_for(const Args& args, Long* bar, int parity) {
    if (bar_try(bar, parity)) return true;
    Long until = nanoseconds() + args.patience;
    while (!bar_try(bar, parity)) {
        if (nanoseconds() > until) return false;
    }
    return true;
}

// Where a block says that it has given up.
__device__ __forceinline__ int* failure_of(const Args& args) { return args.arrived + args.groups * PHASES; }

// Where blocks count up that have published a step's operand, and to what.
__device__ __forceinline__ int* counter_of(const Args& args, const Block& b, int step) {
    return args.arrived + b.group * PHASES + step % PHASES;
}
__device__ __forceinline__ int all_written(int step) { return BLOCKS * (step / PHASES + 1); }

// Waits until all blocks of the group have published a step's operand; one thread.
__device__ __forceinline__ bool wait_for_group(const Args& args, const Block& b, int step) {
    Long until = 0;
    for (int i = 1; load_acquire(counter_of(args, b, step)) - all_written(step) < 0; ++i) {
        if (i % 64) continue;
        Long now = nanoseconds();
        if (until == 0) until = now + args.patience;
        if (now > until || load_acquire(failure_of(args))) return false;
    }
    return true;
}

__device__ __forceinline__ Data* published(const Args& args, const Block& b, int step) {
    return args.exchange + ((Long)(step & PHASES * PLACES - 1) * args.groups + b.group) * (BLOCKS * PIECE);
}
// What of it this block multiplies.
__device__ __forceinline__ const Data* own_share(const Args& args, const Block& b, int step) {
    return published(args, b, step) + b.rank * VECTOR;
}

// Begins to read a chunk, when its place is free; one thread. False if that took too long.
__device__ __forceinline__ bool read_chunk(const Args& args, const Block& b, int step, int turn, int chunk) {
    int place = chunk % RING, use = turn * USES + chunk / RING;
    if (USES > 1 && use > 0 && !wait_for(args, b.empty + place, use - 1 & 1)) return false;
    bar_expect(b.full + place, CHUNK * sizeof(Data));
    load_to(b.v + place * CHUNK, own_share(args, b, step) + chunk * CHUNK, CHUNK * sizeof(Data), b.full + place);
    return true;
}

// Where a chunk of the operand is, once it is there; all threads.
__device__ __forceinline__ const Data* enter_chunk(const Args& args, const Block& b, int step, int chunk, bool& came) {
    if (!GRID || POLLED) return operand(b, step);
    int later = chunk - 1 + RING;
    if (chunk > 0 && later < CHUNKS) {
        if (threadIdx.x == 0 && came) came = read_chunk(args, b, step, b.turn, later);
        __syncwarp();
    }
    int place = chunk % RING;
    came = came && wait_for(args, b.full + place, b.turn * USES + chunk / RING & 1);
    return b.v + place * CHUNK;
}

// Whoever reads chunks for this block may overwrite this one.
__device__ __forceinline__ void leave_chunk(const Block& b, int chunk) {
    if (!GRID || POLLED || USES == 1) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) bar_arrive(b.empty + chunk % RING);
}

#define POLLED_FOURS (VECTOR * (int)sizeof(Data) / 16)

// Reads a polled operand into shared memory, or what is missing there of one that was `fetched`; all threads.
__device__ __forceinline__ bool poll(const Args& args, const Block& b, int step) {
    constexpr int EACH_ASKS = (POLLED_FOURS + THREADS - 1) / THREADS, AT_ONCE = EACH_ASKS < 8 ? EACH_ASKS : 8;
    const Four* from = (const Four*)own_share(args, b, step);
    Four* to = (Four*)b.v;
    bool came = true;
    if (b.fetched) copies_end();
    for (int first = threadIdx.x; first < POLLED_FOURS; first += AT_ONCE * THREADS) {
        Four v[AT_ONCE];
        EACH(i, AT_ONCE) {
            int at = first + i * THREADS;
            v[i] = {0, 0, 0, 0};
            if (at < POLLED_FOURS) v[i] = b.fetched ? to[at] : load_relaxed(from + at);
        }
        came = came && ask_all<THREADS>(v, from + first, failure_of(args), 1, args.patience);
        EACH(i, AT_ONCE) {
            int at = first + i * THREADS;
            if (at < POLLED_FOURS) to[at] = v[i];
        }
    }
    return came;
}

// Asks who has written the next step's operand: the answer is there when the product is done.
__device__ __forceinline__ void ask_ahead(const Args& args, Block& b, int step) {
    if (PHASES > 1 && GRID && !POLLED && threadIdx.x == 0) b.seen = load_relaxed(counter_of(args, b, step));
}

// Begins to read what is there of the operand of `step`, which is the other set's and the next one; all threads, when
// all are behind their products.
__device__ __forceinline__ void fetch(const Args& args, Block& b, int step) {
    if (!GRID) return;
    if (POLLED) {
        const Four* from = (const Four*)own_share(args, b, step);
        for (int i = threadIdx.x; i < POLLED_FOURS; i += THREADS) copy_four((Four*)b.v + i, from + i);
        b.fetched = true;
    } else if (threadIdx.x == 0 && b.seen - all_written(step) >= 0) {
        fence_device();
        fence_copies();
        for (int chunk = 0; chunk < RING; ++chunk) read_chunk(args, b, step, b.turn + 1, chunk);
        b.fetched = true;
    }
}

// Gets a step's operand on its way, or waits for it; all threads. False where it did not come.
__device__ __forceinline__ bool receive(const Args& args, Block& b, int step) {
    bool came = true;
    if (!GRID) {
        if (BLOCKS == 1) return true;
        came = wait_for(args, bar_of(b, step), step / (2 * PHASES) & 1);
        if (threadIdx.x == 0 && came) announce(b, step + 2 * PHASES);
        return came;
    }
    if (POLLED) {
        came = poll(args, b, step);
        b.fetched = false;
        __syncthreads();
        return came;
    }
    if (threadIdx.x == 0 && !b.fetched) {
        came = wait_for_group(args, b, step);
        fence_copies();
        for (int chunk = 0; chunk < RING && came; ++chunk) came = read_chunk(args, b, step, b.turn, chunk);
    }
    b.fetched = false;
    __syncwarp();
    return came;
}

// Where this block's piece of a step's operand is written.
__device__ __forceinline__ Data* piece_of(const Args& args, const Block& b, int step) {
    if (STAGED) return b.stage;
    return BLOCKS == 1 ? operand(b, step) : published(args, b, step) + b.member * PIECE;
}

// Makes the piece known to the group; all threads, after they have written it.
__device__ __forceinline__ void send(const Args& args, const Block& b, int step) {
    constexpr int FOURS_OF_PIECE = PIECE * (int)sizeof(Data) / 16;
    const Four* from = (const Four*)b.stage;
    if (GRID && !POLLED) fence_copies();
    __syncthreads();
    if (POLLED) {
        Four* to = (Four*)(published(args, b, step) + b.member * PIECE);
        for (int i = threadIdx.x; i < FOURS_OF_PIECE; i += THREADS) {
            Four v = from[i];
            store_relaxed(to + i, {filled(v.x), filled(v.y), filled(v.z), filled(v.w)});
        }
        if (step < 2 * PHASES) return;
        Four* last = (Four*)(published(args, b, step - 2 * PHASES) + b.member * PIECE);
        for (int i = threadIdx.x; i < FOURS_OF_PIECE; i += THREADS) {
            store_relaxed(last + i, {EMPTY_WORD, EMPTY_WORD, EMPTY_WORD, EMPTY_WORD});
        }
        if (step / PHASES % (PLACES / 4) == 0) fence_device();  // it costs as much as half a step
        return;
    }
    if (GRID) {
        if (threadIdx.x == 0) {
            __threadfence();
            add_release(counter_of(args, b, step), 1);
        }
        return;
    }
    if (BLOCKS == 1) return;
    Four* to = (Four*)(operand(b, step) + b.member * PIECE);
    Long* bar = bar_of(b, step);
    for (int i = threadIdx.x; i < FOURS_OF_PIECE * BLOCKS; i += THREADS) {
        int block = i / FOURS_OF_PIECE, four = i % FOURS_OF_PIECE;
        push_four(to + four, from[four], bar, (block + b.member) % BLOCKS);
    }
}
