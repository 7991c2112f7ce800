// The product of a step: weights of this block, which stay where they are for the whole sequence, times the operand.
//
// Warp (wm, wk) has tiles [wm MPW, + MPW) of rows and of every chunk of the operand tiles [wk KPC, + KPC) of
// columns: the first REGS of the latter in registers, the next SHARED in shared memory, the rest comes from global
// memory at every step. Sums of the warps that share rows meet in shared memory.
//
// Where SHARE blocks of a grid share columns, each multiplies the rows of all of them, and sends the sums to the blocks
// that own the rows. A block may be a step ahead of another one of them, no more, so there are two places for sums.

// Sums of every SPLIT-th tile: a product waits for the one before it in the same sum, and four hide that.
#define SPLIT (DATA == 0 || MPW * NT > 2 ? 1 : 4 / (MPW * NT))

struct Held {
    Four tile[MPW][REGS > 0 ? REGS : 1][FOURS];
};

// A tile as `arrange` of _launch.py lays it out: by blocks that own rows, tiles of rows and all tiles of columns.
__device__ __forceinline__ const Four* tile_at(const Args& args, const Block& b, int m, int k) {
    Long row = (Long)(b.member - b.rank + m / OWN_MT) * OWN_MT + m % OWN_MT;
    return args.weight + ((row * SHARE + b.rank) * KT + k) * (32 * FOURS) + threadIdx.x % 32 * FOURS;
}

// Tile i of a warp: its place in the chunk, and whether there is one.
__device__ __forceinline__ int inside_chunk(int wk, int i) { return wk * KPC + i % KPC; }
__device__ __forceinline__ bool has_tile(int inside) { return WK * KPC == CHUNK_TILES || inside < CHUNK_TILES; }

__device__ __forceinline__ void hold_weights(Held& held, const Block& b, const Args& args) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wm = warp % WM, wk = warp / WM;
    EACH(m, MPW) {
        EACH(i, REGS + SHARED) {
            int inside = inside_chunk(wk, i);
            if (has_tile(inside)) {
                const Four* from = tile_at(args, b, wm * MPW + m, i / KPC * CHUNK_TILES + inside);
                EACH(f, FOURS) {
                    if (i < REGS) {
                        held.tile[m][i][f] = load_stream(from + f);
                    } else {
                        b.tiles[(((warp * MPW + m) * SHARED + i - REGS) * FOURS + f) * 32 + lane] = load_stream(from + f);
                    }
                }
            }
        }
    }
}

#if DATA == 0
#define SUMS 16

// float32 without the matrix unit: a lane multiplies as many numbers of the tile as it would hold there, rows r and
// r + 8, columns 2 q, 2 q + 1 and 8 further, and the four lanes of a row add up at the end.
__device__ __forceinline__ void multiply_tile(float (*sum)[SUMS], const Four* a, const float* v, int k) {
    int q = threadIdx.x % 4;
    float w[8];
    EACH(f, 2) {
        w[4 * f] = __uint_as_float(a[f].x), w[4 * f + 1] = __uint_as_float(a[f].y);
        w[4 * f + 2] = __uint_as_float(a[f].z), w[4 * f + 3] = __uint_as_float(a[f].w);
    }
    const float* from = v + (Long)(k * 16 / UNITS) * ELEMENTS + k * 16 % UNITS + 2 * q;
    EACH(j, NT) {
        EACH(n, 8) {
            const float* row = from + (8 * j + n) * UNITS;
            float2 low = *(const float2*)row, high = *(const float2*)(row + 8);
            EACH(half, 2) {
                float s = sum[j][2 * n + half];
                s = fmaf(w[2 * half], low.x, s);
                s = fmaf(w[2 * half + 1], low.y, s);
                s = fmaf(w[4 + 2 * half], high.x, s);
                sum[j][2 * n + half] = fmaf(w[4 + 2 * half + 1], high.y, s);
            }
        }
    }
}

__device__ __forceinline__ void finish(float* sum, float* d) {
    fold<16, 4, 1>(sum, threadIdx.x % 32);  // lane q of a row: columns 2 q and 2 q + 1
    d[0] = sum[0], d[2] = sum[1], d[1] = sum[2], d[3] = sum[3];
}
#else
#define SUMS 4

__device__ __forceinline__ void load_operand(unsigned (*b)[2], const Data* v, int k) {
    int lane = threadIdx.x % 32, row = lane % 8, piece = k * 16 % UNITS / 8 + (lane / 8 & 1);
    const Data* slice = v + k * 16 / UNITS * ELEMENTS;
    EACH(j, NT / 2) {
        int n = 16 * j + row + (lane & 16) / 2;
        load_matrices<4>(b[2 * j], slice + n * UNITS + ((piece ^ twist(n)) << 3));
    }
    if (NT % 2) {
        int n = 8 * (NT - 1) + row;
        load_matrices<2>(b[NT - 1], slice + n * UNITS + ((piece ^ twist(n)) << 3));
    }
}

__device__ __forceinline__ void finish(float* sum, float* d) { EACH(i, 4) d[i] = sum[i]; }
#endif

__device__ __forceinline__ float* sums_of(const Block& b, int step) {
    return b.sums + (SUM_PLACES > 1 ? (step & 1) * SUMS_OF_STEP : 0);
}

// The bytes of other blocks' sums in a step; one thread.
__device__ __forceinline__ void announce_sums(const Block& b, int step) {
    bar_expect(b.shared_sums + (step & 1), (SHARE - 1) * WK * OWN_MT * NT * 512);
}

// Waits for other blocks' sums; all threads. False if that took too long.
__device__ __forceinline__ bool receive_sums(const Args& args, const Block& b, int step) {
    if (SHARE == 1) return true;
    bool came = wait_for(args, b.shared_sums + (step & 1), step >> 1 & 1);
    if (threadIdx.x == 0 && came) announce_sums(b, step + 2);
    return came;
}

// Sums of this warp's tiles, as sums[rank of who multiplied][wk][tile][8 rows of the batch][lane][4].
// `came` is false where the operand did not come.
__device__ __forceinline__ void multiply_all(const Held& held, const Args& args, const Block& b, int step, bool& came) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wm = warp % WM, wk = warp / WM;
    float sum[SPLIT][MPW][NT][SUMS];
    EACH(s, SPLIT) EACH(m, MPW) EACH(j, NT) EACH(i, SUMS) sum[s][m][j][i] = 0.f;
    const Data* v = operand(b, step);
    EACH(i, KPW) {
        if (i % KPC == 0) v = enter_chunk(args, b, step, i / KPC, came);
        int inside = inside_chunk(wk, i);
        if (!EMPTY && has_tile(inside)) {
#if DATA != 0
            unsigned columns[NT][2];
            load_operand(columns, v, inside);
#endif
            EACH(m, MPW) {
                Four a[FOURS];
                EACH(f, FOURS) {
                    if (i < REGS) {
                        a[f] = held.tile[m][i < REGS ? i : 0][f];
                    } else if (i < REGS + SHARED) {
                        a[f] = b.tiles[(((warp * MPW + m) * SHARED + i - REGS) * FOURS + f) * 32 + lane];
                    } else {
                        a[f] = load_stream(tile_at(args, b, wm * MPW + m, i / KPC * CHUNK_TILES + inside) + f);
                    }
                }
#if DATA == 0
                multiply_tile(sum[0][m], a, v, inside);
#else
                EACH(j, NT) multiply(sum[i % SPLIT][m][j], a[0], columns[j]);
#endif
            }
        }
        if (i % KPC == KPC - 1) leave_chunk(b, i / KPC);
    }
    int r = lane / 4, q = lane % 4;
    EACH(m, MPW) {
        EACH(j, NT) {
            float d[4];
            EACH(s, SPLIT - 1) EACH(i, SUMS) sum[0][m][j][i] += sum[s + 1][m][j][i];
            finish(sum[0][m][j], d);
            int tile = wm * MPW + m, owner = tile / OWN_MT;
            int place = ((b.rank * WK + wk) * OWN_MT + tile % OWN_MT) * NT + j;
            Four* to = (Four*)(sums_of(b, step) + place * SUM_TILE + r * 20 + q * 4);
            Four four = {__float_as_uint(d[0]), __float_as_uint(d[1]), __float_as_uint(d[2]), __float_as_uint(d[3])};
            if (SHARE == 1 || owner == b.rank) {
                *to = four;
            } else {
                push_four(to, four, b.shared_sums + (step & 1), owner);
            }
        }
    }
}

// The product's row m of own units for a row of the batch.
__device__ __forceinline__ float sum_of(const Block& b, int step, int row, int m) {
    int lane = m % 8 * 20 + row % 8 / 2 * 4, number = m / 8 % 2 * 2 + row % 2;
    const float* from = sums_of(b, step) + (m / 16 * NT + row / 8) * SUM_TILE + lane + number;
    float total = 0.f;
    EACH(k, SHARE * WK) total += from[k * OWN_MT * NT * SUM_TILE];
    return total;
}
