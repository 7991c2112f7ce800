// One step of an RNN, LSTM or GRU layer: both products, the gates and the new states in one launch.
//
// A cluster of CLUSTER blocks (one where the batch is small) owns CLUSTER * UNITS units and shares out the columns of
// x and h among its blocks, so that each block brings only its share of them to shared memory; sums meet there. A warp
// takes 16 rows of weights in their ordinary layout and 32 columns at a time: lane (r, q) reads 16 bytes, columns 8 q
// and following, of rows r and r + 8, and of row r of the batch. The matrix unit numbers columns otherwise, but in the
// same way for both operands, so nothing is rearranged. DEPTH such pieces are on their way at any time; the first set
// out before x and h are there. float32 is multiplied by FMA.
//
// cuda.py sets DATA, KIND, VEC (rows begin at 16 bytes), UNITS, CLUSTER, NT, MPW and WM. Needs _device.cuh, _eights.cuh,
// and cluster.cuh and cells.cuh of _recurrent_cuda.

#define THREADS 256
#define WK (THREADS / 32 / WM)
#define SUMS (KIND >= 2 ? 4 : 1)  // of a unit; a GRU's candidate has one of x and one of h
#define OWNED (CLUSTER * UNITS)   // units of a cluster
#define COLUMNS (8 * NT)          // rows of the batch
#define PITCH (WM * MPW * 16 + 4)  // of sums: no two lanes in one bank, writing or reading
#define DEPTH (8 / (MPW * FOURS))
#define EACH_THREAD ((UNITS * COLUMNS + THREADS - 1) / THREADS)

#ifndef ON_CPU
// The number at the same place in the shared memory of another block of the cluster.
__device__ __forceinline__ float read_from(const float* p, int block) {
    float v;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(address_in(shared_address(p), block)) : "memory");
    return v;
}
#endif

struct Args {  // the same fields in the same order as in cuda.py
    const Data *x, *in_weight, *in_bias, *weight, *bias;
    const float *h0, *c0;
    Data* y;
    float *h, *c;
    Long x_row;
    int batch, in_width, width, clusters;  // clusters: of one part of the batch
    int pitch;                             // of a row of x and h in shared memory
};

struct Share {  // chunks of 32 columns of a block: first those of h, then those of x
    int h_first, h_count, x_first, count;
};

__device__ __forceinline__ Share share_of(const Args& p, int rank) {
    int h = (p.width + 31) / 32, x = (p.in_width + 31) / 32;
    Share s;
    s.h_first = rank * h / CLUSTER;
    s.h_count = (rank + 1) * h / CLUSTER - s.h_first;
    s.x_first = rank * x / CLUSTER;
    s.count = s.h_count + (rank + 1) * x / CLUSTER - s.x_first;
    return s;
}

#if DATA == 0
typedef Eight Wide;
__device__ __forceinline__ Wide wide_of(const float* row, int at, int size) { return eight_of<true>(row, at, size); }
__device__ __forceinline__ Eight narrowed(const Wide& v) { return v; }
#else
struct Wide {  // eight numbers of h as they lie in memory
    float v[8];
};

__device__ __forceinline__ Wide wide_of(const float* row, int at, int size) {
    Wide w;
#if VEC
    float4 low = {0.f, 0.f, 0.f, 0.f}, high = low;
    if (at < size) low = *(const float4*)(row + at), high = *(const float4*)(row + at + 4);
    w.v[0] = low.x, w.v[1] = low.y, w.v[2] = low.z, w.v[3] = low.w;
    w.v[4] = high.x, w.v[5] = high.y, w.v[6] = high.z, w.v[7] = high.w;
#else
    EACH(i, 8) w.v[i] = at + i < size ? row[at + i] : 0.f;
#endif
    return w;
}

__device__ __forceinline__ Eight narrowed(const Wide& w) {
    return {{{narrow_pair(w.v[0], w.v[1]), narrow_pair(w.v[2], w.v[3]), narrow_pair(w.v[4], w.v[5]),
              narrow_pair(w.v[6], w.v[7])}}};
}
#endif

struct Rows {  // of weights that a lane reads: gate and unit of each; a unit past the last is negative
    int gate[MPW][2], unit[MPW][2];
};

__device__ __forceinline__ Rows rows_of(const Args& p, int wm, int first_unit) {
    Rows rows;
    EACH(m, MPW) {
        EACH(half, 2) {
            int i = (wm * MPW + m) * 16 + threadIdx.x % 32 / 4 + 8 * half;
            int unit = first_unit + i % OWNED;
            rows.gate[m][half] = i / OWNED;
            rows.unit[m][half] = i < SUMS * OWNED && unit < p.width ? unit : -1;
        }
    }
    return rows;
}

struct Piece {  // of weights: 16 MPW rows, 32 columns
    Eight row[MPW][2];
};

__device__ __forceinline__ void load_piece(Piece& piece, const Args& p, const Share& s, const Rows& rows, int chunk) {
    bool of_h = chunk < s.h_count;
    int size = of_h ? p.width : p.in_width;
    int at = (of_h ? s.h_first + chunk : s.x_first + chunk - s.h_count) * 32 + threadIdx.x % 4 * 8;
    const Data* from = of_h ? p.weight : p.in_weight;
    EACH(m, MPW) {
        EACH(half, 2) {
            int gate = rows.gate[m][half], unit = rows.unit[m][half];
            bool there = unit >= 0 && chunk < s.count;
#if KIND == 3
            there = there && gate != (of_h ? 2 : 3);
            gate = min(gate, 2);
#endif
            piece.row[m][half] =
                there ? eight_of<true>(from + ((Long)gate * p.width + unit) * size, at, size) : zeros();
        }
    }
}

// The block's columns of x and h for its rows of the batch. A thread asks for BATCH pieces before it looks at any: all that
// is between asking and looking, rounding of h too, would make it wait for one piece after the other.
#define BATCH (NT < 8 ? NT : 8)
__device__ __forceinline__ void bring_x(const Args& p, const Share& s, Data* operand, int first_row) {
    int pieces = (s.count - s.h_count) * 4, total = min(COLUMNS, p.batch - first_row) * pieces;
#pragma unroll 1
    for (int e = threadIdx.x; e < total; e += BATCH * THREADS) {
        Eight v[BATCH];
        int to[BATCH];
        EACH(i, BATCH) {
            int at = min(e + i * THREADS, total - 1), n = at / pieces, k = at % pieces;
            to[i] = n * p.pitch + 32 * s.h_count + 8 * k;
            v[i] = eight_of<true>(p.x + (first_row + n) * p.x_row, s.x_first * 32 + 8 * k, p.in_width);
        }
        EACH(i, BATCH) if (e + i * THREADS < total) *(Eight*)(operand + to[i]) = v[i];
    }
}

__device__ __forceinline__ void bring_h(const Args& p, const Share& s, Data* operand, int first_row) {
    int pieces = s.h_count * 4, total = min(COLUMNS, p.batch - first_row) * pieces;
#pragma unroll 1
    for (int e = threadIdx.x; e < total; e += BATCH * THREADS) {
        Wide v[BATCH];
        int to[BATCH];
        EACH(i, BATCH) {
            int at = min(e + i * THREADS, total - 1), n = at / pieces, k = at % pieces;
            to[i] = n * p.pitch + 8 * k;
            v[i] = wide_of(p.h0 + (Long)(first_row + n) * p.width, s.h_first * 32 + 8 * k, p.width);
        }
        EACH(i, BATCH) if (e + i * THREADS < total) *(Eight*)(operand + to[i]) = narrowed(v[i]);
    }
}

#if DATA == 0
__device__ __forceinline__ void multiply_piece(float (*sum)[NT][SPLIT][LANE_SUMS], const Piece& piece, const Data* v,
                                               int pitch) {
    EACH(j, NT) {
        EACH(n, 8) {
            const float4* at = (const float4*)(v + (8 * j + n) * pitch);
            EACH(f, 2) {
                float4 b = at[f];
                EACH(m, MPW) {
                    EACH(half, 2) {
                        Four a = piece.row[m][half].of[f];
                        float s = sum[m][j][0][2 * n + half];
                        s = fmaf(__uint_as_float(a.x), b.x, s);
                        s = fmaf(__uint_as_float(a.y), b.y, s);
                        s = fmaf(__uint_as_float(a.z), b.z, s);
                        sum[m][j][0][2 * n + half] = fmaf(__uint_as_float(a.w), b.w, s);
                    }
                }
            }
        }
    }
}
#else
__device__ __forceinline__ void multiply_piece(float (*sum)[NT][SPLIT][LANE_SUMS], const Piece& piece, const Data* v,
                                               int pitch) {
    EACH(j, NT) {
        Four b = *(const Four*)(v + (8 * j + threadIdx.x % 32 / 4) * pitch);
        unsigned first[2] = {b.x, b.y}, second[2] = {b.z, b.w};
        EACH(m, MPW) {
            Four low = piece.row[m][0].of[0], high = piece.row[m][1].of[0];
            multiply(sum[m][j][0], Four{low.x, high.x, low.y, high.y}, first);
            multiply(sum[m][j][SPLIT - 1], Four{low.z, high.z, low.w, high.w}, second);
        }
    }
}
#endif

struct Mine {  // a unit of a row of the batch, for the gates: one of this block's own
    int unit, row;
    Unit state;
    Data bias[SUMS];  // widened when it is needed: to convert it is to wait for it
};

__device__ __forceinline__ Mine mine_of(const Args& p, int e, int first_unit, int first_row) {
    Mine m;
    m.unit = first_unit + e % UNITS, m.row = first_row + e / UNITS;
    EACH(i, SUMS) m.bias[i] = 0;
    m.state = {0.f, 0.f, 0.f};
    if (e >= UNITS * COLUMNS || m.unit >= p.width || m.row >= p.batch) {
        m.unit = -1;
        return m;
    }
    if (p.in_bias) EACH(g, GATES) m.bias[g] = p.in_bias[g * p.width + m.unit];
#if KIND == 3
    if (p.bias) m.bias[3] = p.bias[m.unit];
#endif
    Long at = (Long)m.row * p.width + m.unit;
    m.state.h = p.h0[at];
    if (CELL) m.state.c = p.c0[at];
    return m;
}

// The sums of all warps and blocks for one of this block's units.
__device__ __forceinline__ float sum_of(const float* sums, int n, int row) {
    float total = 0.f;
    EACH(k, WK) {
        const float* from = sums + (k * COLUMNS + n) * PITCH + row;
#if CLUSTER > 1
        EACH(b, CLUSTER) total += read_from(from, b);
#else
        total += *from;
#endif
    }
    return total;
}

__device__ __forceinline__ void finish_unit(const Args& p, Mine& m, const float* sums, int n, int row) {
    float z[4];
    EACH(g, SUMS) z[g] = sum_of(sums, n, g * OWNED + row) + widen(m.bias[g]);
    advance(m.state, z, z[SUMS - 1]);
    Long at = (Long)m.row * p.width + m.unit;
    p.y[at] = narrow(m.state.h);
    p.h[at] = m.state.h;
    if (CELL) p.c[at] = m.state.c;
}

extern "C" __global__ void __launch_bounds__(THREADS, DATA != 0 && NT == 1 ? 2 : 1) recurrent_step(const Args p) {
    const int rank = blockIdx.x % CLUSTER, cluster = blockIdx.x / CLUSTER;
    const int first_unit = cluster % p.clusters * OWNED, first_row = cluster / p.clusters * COLUMNS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wm = warp % WM, wk = warp / WM;
    const Share share = share_of(p, rank);
    const Rows rows = rows_of(p, wm, first_unit);
    Data* operand = (Data*)shared_memory;
    float* sums = (float*)shared_memory;  // in the place of the operand, when all have read it

    Piece piece[DEPTH];
    EACH(d, DEPTH) load_piece(piece[d], p, share, rows, wk + d * WK);
    Mine mine[EACH_THREAD];
    EACH(i, EACH_THREAD) mine[i] = mine_of(p, threadIdx.x + i * THREADS, first_unit + rank * UNITS, first_row);
    bring_x(p, share, operand, first_row);
    bring_h(p, share, operand, first_row);
    __syncthreads();

    float sum[MPW][NT][SPLIT][LANE_SUMS];
    EACH(m, MPW) EACH(j, NT) EACH(s, SPLIT) EACH(i, LANE_SUMS) sum[m][j][s][i] = 0.f;
    for (int first = wk; first < share.count; first += DEPTH * WK) {
        EACH(d, DEPTH) {
            int chunk = first + d * WK;
            if (chunk < share.count) multiply_piece(sum, piece[d], operand + chunk * 32 + lane % 4 * 8, p.pitch);
            load_piece(piece[d], p, share, rows, chunk + DEPTH * WK);
        }
    }
    __syncthreads();
    EACH(m, MPW) {
        EACH(j, NT) {
            float d[4];
            finish(sum[m][j], d);
            float* to = sums + (wk * COLUMNS + 8 * j + lane % 4 * 2) * PITCH + (wm * MPW + m) * 16 + lane / 4;
            to[0] = d[0], to[PITCH] = d[1], to[8] = d[2], to[PITCH + 8] = d[3];
        }
    }
#if CLUSTER > 1
    cluster_sync();
#else
    __syncthreads();
#endif
    EACH(i, EACH_THREAD) {
        int e = threadIdx.x + i * THREADS;
        if (mine[i].unit >= 0) finish_unit(p, mine[i], sums, e / UNITS, rank * UNITS + e % UNITS);
    }
#if CLUSTER > 1
    cluster_sync();  // a block stays while others read its sums
#endif
}
