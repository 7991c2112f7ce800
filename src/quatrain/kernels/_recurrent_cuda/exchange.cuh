// How blocks exchange operands and wait for each other.
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
__device__ __forceinline__ int* failure_of(const Args& args) { return args.arrived + args.groups; }

// Where blocks of the group count up that have published a step's operand.
__device__ __forceinline__ int* counter_of(const Args& args, const Block& b) { return args.arrived + b.group; }

// Waits until all blocks of the group have published a step's operand; one thread.
__device__ __forceinline__ bool wait_for_group(const Args& args, const Block& b, int step) {
    int wanted = BLOCKS * (step + 1);
    Long until = 0;
    for (int i = 1; load_acquire(counter_of(args, b)) - wanted < 0; ++i) {
        if (i % 64) continue;
        Long now = nanoseconds();
        if (until == 0) until = now + args.patience;
        if (now > until || load_acquire(failure_of(args))) return false;
    }
    return true;
}

__device__ __forceinline__ Data* published(const Args& args, const Block& b, int step) {
    return args.exchange + ((Long)(step & PLACES - 1) * args.groups + b.group) * (BLOCKS * PIECE);
}
// What of it this block multiplies.
__device__ __forceinline__ const Data* own_share(const Args& args, const Block& b, int step) {
    return published(args, b, step) + b.rank * VECTOR;
}

// Begins to read a chunk, when its place is free; one thread. False if that took too long.
__device__ __forceinline__ bool read_chunk(const Args& args, const Block& b, int step, int chunk) {
    int place = chunk % RING, use = step * USES + chunk / RING;
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
        if (threadIdx.x == 0 && came) came = read_chunk(args, b, step, later);
        __syncwarp();
    }
    int place = chunk % RING;
    came = came && wait_for(args, b.full + place, step * USES + chunk / RING & 1);
    return b.v + place * CHUNK;
}

// Whoever reads chunks for this block may overwrite this one.
__device__ __forceinline__ void leave_chunk(const Block& b, int chunk) {
    if (!GRID || POLLED || USES == 1) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) bar_arrive(b.empty + chunk % RING);
}

// Reads a polled operand into shared memory; all threads.
__device__ __forceinline__ bool poll(const Args& args, const Block& b, int step) {
    constexpr int COUNT = VECTOR * (int)sizeof(Data) / 16, EACH_ASKS = (COUNT + THREADS - 1) / THREADS;
    constexpr int AT_ONCE = EACH_ASKS < 8 ? EACH_ASKS : 8;
    const Four* from = (const Four*)own_share(args, b, step);
    Four* to = (Four*)b.v;
    bool came = true;
    for (int first = threadIdx.x; first < COUNT; first += AT_ONCE * THREADS) {
        Four v[AT_ONCE];
        EACH(i, AT_ONCE) {
            int at = first + i * THREADS;
            v[i] = {0, 0, 0, 0};
            if (at < COUNT) v[i] = load_relaxed(from + at);
        }
        came = came && ask_all<THREADS>(v, from + first, failure_of(args), 1, args.patience);
        EACH(i, AT_ONCE) {
            int at = first + i * THREADS;
            if (at < COUNT) to[at] = v[i];
        }
    }
    return came;
}

// Gets a step's operand on its way, or waits for it; all threads. False where it did not come.
__device__ __forceinline__ bool receive(const Args& args, const Block& b, int step) {
    bool came = true;
    if (!GRID) {
        if (BLOCKS == 1) return true;
        came = wait_for(args, bar_of(b, step), step >> 1 & 1);
        if (threadIdx.x == 0 && came) announce(b, step + 2);
        return came;
    }
    if (POLLED) {
        came = poll(args, b, step);
        __syncthreads();
        return came;
    }
    if (threadIdx.x == 0) {
        came = wait_for_group(args, b, step);
        fence_copies();
        for (int chunk = 0; chunk < RING && came; ++chunk) came = read_chunk(args, b, step, chunk);
    }
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
        if (step < 2) return;
        Four* last = (Four*)(published(args, b, step - 2) + b.member * PIECE);
        for (int i = threadIdx.x; i < FOURS_OF_PIECE; i += THREADS) {
            store_relaxed(last + i, {EMPTY_WORD, EMPTY_WORD, EMPTY_WORD, EMPTY_WORD});
        }
        if (step % (PLACES / 4) == 0) fence_device();  // it costs as much as half a step
        return;
    }
    if (GRID) {
        if (threadIdx.x == 0) {
            __threadfence();
            add_release(counter_of(args, b), 1);
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
