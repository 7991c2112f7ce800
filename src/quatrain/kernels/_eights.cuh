// Eight numbers at a time, 16 bytes of 16-bit data: what a lane reads of a row of weights or of the batch when a matrix
// product takes both in their ordinary layout. Lane (r, q) reads columns 8 q and following of row r, which the matrix unit
// takes for others, the same ones on both sides. Needs _device.cuh and cluster.cuh of _recurrent_cuda.
//
// Macros: DATA; VEC, rows begin at 16 bytes.

#define FOURS (DATA == 0 ? 2 : 1)  // 16 bytes each, of 8 numbers
#define PER_FOUR (16 / (int)sizeof(Data))
#define SPLIT (DATA == 0 ? 1 : 2)  // sums of a lane for each number: the matrix unit cuts off instead of rounding
#define LANE_SUMS (DATA == 0 ? 16 : 4)  // by FMA a lane has 8 columns for 8 rows of the batch

struct Eight {  // numbers
    Four of[FOURS];
};

__device__ __forceinline__ Eight zeros() {
    Eight e;
    EACH(f, FOURS) e.of[f] = {0, 0, 0, 0};
    return e;
}

// Numbers `at` and following of a row of `size`, 0 past its end; STREAM: they are read once.
template <bool STREAM>
__device__ __forceinline__ Eight eight_of(const Data* row, int at, int size) {
    Eight e = zeros();
    if (at >= size) return e;
#if VEC
    EACH(f, FOURS) {
        const Data* from = row + at + f * PER_FOUR;
        e.of[f] = STREAM ? load_stream(from) : *(const Four*)from;
    }
#else
    unsigned word[4 * FOURS];
    EACH(i, 4 * FOURS) {
#if DATA == 0
        word[i] = at + i < size ? (unsigned)__float_as_int(row[at + i]) : 0;
#else
        word[i] = join(at + 2 * i < size ? row[at + 2 * i] : 0, at + 2 * i + 1 < size ? row[at + 2 * i + 1] : 0);
#endif
    }
    EACH(f, FOURS) e.of[f] = {word[4 * f], word[4 * f + 1], word[4 * f + 2], word[4 * f + 3]};
#endif
    return e;
}

// A lane's numbers of a tile of the product: rows r and r + 8, columns 2 q and 2 q + 1 (d[0], d[1], then d[2], d[3]).
__device__ __forceinline__ void finish(float (*sum)[LANE_SUMS], float* d) {
#if DATA == 0
    fold<16, 4, 1>(sum[0], threadIdx.x % 32);  // the four lanes of a row add up
    d[0] = sum[0][0], d[2] = sum[0][1], d[1] = sum[0][2], d[3] = sum[0][3];
#else
    EACH(i, 4) d[i] = sum[0][i] + sum[SPLIT - 1][i];
#endif
}
