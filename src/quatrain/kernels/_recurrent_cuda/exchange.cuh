// How blocks exchange operands and wait for each other.
//
// Between the blocks of a cluster, each pushes its piece into all others' shared memory, where a barrier counts the
// bytes. In a grid, each writes it to global memory, counts up, and reads the whole operand when all have: in CHUNKS
// chunks, of which RING are in shared memory at a time, and of which each block of a cluster reads its share for all.
// In both cases whoever has an operand knows that all have read the one before the last, so that two places for it
// are enough and nobody waits to write.
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

// Begins to read a chunk, when its place is free; one thread. False if that took too long.
__device__ __forceinline__ bool read_chunk(const Args& args, const Block& b, int step, int chunk) {
    constexpr int SHARE = CHUNK / CLUSTER;
    int place = chunk % RING, use = step * USES + chunk / RING;
    if (USES > 1 && use > 0 && !wait_for(args, b.empty + place, use - 1 & 1)) return false;
    bar_expect(b.full + place, CHUNK * sizeof(Data));
    int first = CLUSTER > 1 ? cluster_rank() * SHARE : 0;
    load_to(b.v + place * CHUNK + first, published(args, b, step) + chunk * CHUNK + first, SHARE * sizeof(Data),
            b.full + place, (unsigned short)((1 << CLUSTER) - 1));
    return true;
}

// Where a chunk of the operand is, once it is there; all threads.
__device__ __forceinline__ const Data* enter_chunk(const Args& args, const Block& b, int step, int chunk, bool& came) {
    if (!GRID || MOVE) return operand(b, step);
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
    if (!GRID || MOVE || USES == 1) return;
    __syncwarp();
    int lane = threadIdx.x % 32;
    if (lane < CLUSTER) bar_arrive(b.empty + chunk % RING, lane);
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
    if (MOVE == 0) {
        if (threadIdx.x == 0) {
            came = wait_for_group(args, b, step);
            fence_copies();
            for (int chunk = 0; chunk < RING && came; ++chunk) came = read_chunk(args, b, step, chunk);
        }
        __syncwarp();
        return came;
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
    Long* bar = bar_of(b, step);
    constexpr int SIZE = PIECE * (int)sizeof(Data);
    if (MOVE == 0) {
        int block = threadIdx.x;
        if (block < BLOCKS) push(to, from, SIZE, bar, (block + b.member) % BLOCKS);
    } else {
        for (int i = threadIdx.x; i < SIZE / 16 * BLOCKS; i += THREADS) {
            int block = i / (SIZE / 16), four = i % (SIZE / 16);
            push_four((Four*)to + four, ((const Four*)from)[four], bar, (block + b.member) % BLOCKS);
        }
    }
}
