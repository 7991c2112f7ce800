// Where everything lies: sizes, arguments, which sequence a row holds at which step.
//
// A group of BLOCKS blocks runs ROWS rows; each block owns UNITS units of the layer. The operand of a step's
// product (h forward, the cotangents of the gates backward) is a vector of numbers for each row, in slices
// [slice][row][UNITS]: what a block contributes is one piece of PARTS slices.
//
// Macros: DATA, KIND, BACK, UNITS, BLOCKS, ROWS, WM, WK, MPW, KPW, REGS, SHARED, CLUSTER, GRID, POLLED, PLACES,
// CHUNKS, RING, FULL, NARROW, BYTES, KEEP, FLUSH, EMPTY; _plan.py says what they mean.

#define PARTS (BACK ? GATES : 1)   // slices of a block
#define SHARE (GRID ? CLUSTER : 1)  // blocks that multiply the same rows of weights, each a share of the columns
#define SLICES (BLOCKS * PARTS / SHARE)           // that a block multiplies
#define OWN_MT ((BACK ? 1 : GATES) * UNITS / 16)  // tiles of 16 rows of weights, of a block's own units
#define MT (SHARE * OWN_MT)                       // that it multiplies
#define KT (SLICES * UNITS / 16)                  // tiles of 16 columns
#define NT ((ROWS + 7) / 8)
#define THREADS (32 * WM * WK)
#define ELEMENTS (UNITS * ROWS)
#define EACH_THREAD ((ELEMENTS + THREADS - 1) / THREADS)
#define PIECE (PARTS * ELEMENTS)     // numbers that a block contributes
#define VECTOR (SLICES * ELEMENTS)   // numbers of an operand that a block multiplies
#define SUM_TILE 160                 // floats of a tile's sums: four of a lane, and 16 bytes behind every fourth lane
#define SUM_PLACES (SHARE > 1 ? 2 : 1)
#define FOURS (DATA == 0 ? 2 : 1)    // of a lane in a tile
#define STAGED (GRID ? POLLED : BLOCKS > 1)  // pieces are gathered before they are sent
#define CHUNK (VECTOR / CHUNKS)      // of an operand that comes from global memory
#define CHUNK_TILES (KT / CHUNKS)
#define KPC (KPW / CHUNKS)           // tiles of a warp in a chunk
#define USES (CHUNKS / RING)         // of a place for a chunk, in a step
#define OPERANDS (GRID ? 1 : 2)      // in shared memory at a time, or RING chunks of one
#define BARS (2 * RING)              // of operands, or full and empty of places for chunks; RING is 1 in a cluster

// Whether a unit of the block is one of the layer's: where FULL blocks fill it all are.
#define IS_UNIT(unit) (FULL || (unit) < args.width)

struct Args {
    const Data *x, *dy;
    const Four* weight;
    const float *bias, *h0, *c0, *dh, *dc;
    const Long *order, *lengths, *bounds;
    Data *y, *dx, *dinner;
    float *last_h, *last_c, *cells, *dh0, *dc0, *dbias;
    Kept* gates;
    Data* exchange;
    int *arrived, *status;
    Long x_step, dy_step, time, tokens, patience;
    int width, sequences, groups;
};

// Bytes of shared memory in its order; _plan.py adds them up too. A matrix reads up to 7 rows past the last.
#define V_BYTES (((GRID ? RING * CHUNK : VECTOR) + 7 * UNITS) * (int)sizeof(Data))
#define STAGE_BYTES (STAGED ? PIECE * (int)sizeof(Data) : 0)
#define SUMS_OF_STEP (SHARE * WK * OWN_MT * NT * SUM_TILE)
#define SUM_BYTES (SUM_PLACES * SUMS_OF_STEP * 4)
#define TILE_BYTES (WM * WK * MPW * SHARED * FOURS * 512)
#define ROW_BYTES (2 * ROWS * 24)
static_assert(BYTES == OPERANDS * V_BYTES + STAGE_BYTES + SUM_BYTES + TILE_BYTES + ROW_BYTES + 8 * BARS + 32,
              "_plan.py counts bytes of shared memory otherwise");

struct Row {      // what a row does in a step
    Long in, out;  // where its token begins: of x or dy, whose steps may lie apart, and of what has one number a unit
    int sequence, flags;  // sequence is negative: nothing
};
enum { FIRST = 1, LAST = 2, BEHIND = 4 };  // step of a sequence, in the direction of the pass; one more backwards

struct Block {
    Data* v;  // operands: two, or RING chunks of one where blocks read it from global memory
    Data* stage;
    float* sums;
    Four* tiles;
    Row* rows;  // [2][ROWS]
    Long *full, *empty;  // barriers: an operand is there, a place for a chunk is free
    Long* shared_sums;   // two: sums of other blocks are there
    int* failed;
    int group, member, rank;
};

__device__ __forceinline__ Block place_block() {
    char* memory = (char*)shared_memory;
    Block b;
    b.v = (Data*)memory;
    memory += OPERANDS * V_BYTES;
    b.stage = (Data*)memory;
    memory += STAGE_BYTES;
    b.sums = (float*)memory;
    memory += SUM_BYTES;
    b.tiles = (Four*)memory;
    memory += TILE_BYTES;
    b.rows = (Row*)memory;
    memory += ROW_BYTES;
    b.full = (Long*)memory;
    b.empty = b.full + RING;
    b.shared_sums = b.full + BARS;
    b.failed = (int*)(b.full + BARS + 2);
    b.group = blockIdx.x / BLOCKS;
    b.member = blockIdx.x % BLOCKS;
    b.rank = b.member % SHARE;
    return b;
}

__device__ __forceinline__ Data* operand(const Block& b, int step) {
    return b.v + (step & OPERANDS - 1) * (V_BYTES / (int)sizeof(Data));
}
__device__ __forceinline__ Long* bar_of(const Block& b, int step) { return b.full + (step & 1); }
__device__ __forceinline__ Row* rows_of(const Block& b, int step) { return b.rows + (step & 1) * ROWS; }

// Row n's piece of 16 bytes c lies where c ^ twist(n) says, so that 8 rows' pieces lie in different banks.
__device__ __forceinline__ int twist(int n) {
    constexpr int PIECES = UNITS / 8 < 8 ? UNITS / 8 : 8;
    constexpr int APART = UNITS < 64 ? 64 / UNITS : 1;
    return DATA == 0 ? 0 : n / APART & (PIECES - 1);
}
__device__ __forceinline__ int place(int row, int u) { return row * UNITS + ((u >> 3 ^ twist(row)) << 3) + (u & 7); }

// Sequences are dealt out to all groups' rows, to and fro, longest first. A thread walks along one row.
struct Walk {
    Long turn, next_start;
    int slot, length, next_length, next_sequence, step;
    Row row;
};

__device__ __forceinline__ Long clamp(Long x, Long most) { return x < 0 ? 0 : x > most ? most : x; }

__device__ __forceinline__ void look_ahead(Walk& w, const Args& args) {
    Long slots = (Long)args.groups * ROWS;
    for (;;) {
        Long rank = w.turn * slots + (w.turn & 1 ? slots - 1 - w.slot : w.slot);
        ++w.turn;
        if (rank >= args.sequences) {
            // Going back on the way, a row may have no turn and still have the next.
            w.next_sequence = -1;
            if (w.turn * slots >= args.sequences) return;
            continue;
        }
        w.next_sequence = args.order ? (int)args.order[rank] : (int)rank;
        if (args.bounds) {
            w.next_start = clamp(args.bounds[w.next_sequence], args.tokens);
            w.next_length = (int)clamp(args.bounds[w.next_sequence + 1] - w.next_start, args.tokens - w.next_start);
        } else {
            w.next_start = w.next_sequence * args.time;
            w.next_length = (int)(args.lengths ? clamp(args.lengths[w.next_sequence], args.time) : args.time);
        }
        if (w.next_length > 0) return;
    }
}

__device__ __forceinline__ Walk first_walk(const Args& args, int slot) {
    Walk w = {0, 0, slot, 0, 0, -1, 0, {0, 0, -1, 0}};
    look_ahead(w, args);
    return w;
}

__device__ __forceinline__ Row walk(Walk& w, const Args& args) {
    Long step = BACK ? args.dy_step : args.x_step;
    ++w.step;
    if (w.row.sequence < 0 || w.step >= w.length + FLUSH) {
        w.row.sequence = w.next_sequence, w.length = w.next_length, w.step = 0;
        Long at = w.next_start + (BACK ? w.length - 1 : 0);
        w.row.in = at * step, w.row.out = at * args.width;
        if (w.row.sequence >= 0) look_ahead(w, args);
    } else if (w.step < w.length) {
        w.row.in += BACK ? -step : step;
        w.row.out += BACK ? -args.width : args.width;
    }
    w.row.flags = (w.step == 0 ? FIRST : 0) | (w.step == w.length - 1 ? LAST : 0) | (w.step == w.length ? BEHIND : 0);
    return w.row;
}
