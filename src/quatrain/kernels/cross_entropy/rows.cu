// Cross-entropy of rows of logits: a block takes one row, reads it for its largest logit and the sum of exponentials,
// and once more, from the cache, to put the slope in its place.
//
// cuda.py sets DATA, VEC (logits read at once) and SLOPES.

#define WARPS (THREADS / 32)
#define IGNORE -100
#define LEAST -1e30f

struct Args {  // the same fields in the same order as in cuda.py
    const Data* logits;
    const Long* targets;
    Data* slopes;  // may be the logits
    const float* scales;  // of the rows' slopes; absent: 1
    float* losses;
    Long vocab;
};

struct __align__(VEC * sizeof(Data)) Pack {
    Data v[VEC];
};

struct Sum {  // of exponentials of x - most
    float most, sum;
};

// e^x for x <= 0; NaN stays NaN.
__device__ __forceinline__ float faded(float x) { return x < -200.f ? 0.f : exponential(x); }

__device__ __forceinline__ void add(Sum& a, float most, float sum) {
    const float both = fmaxf(a.most, most);
    a.sum = a.sum * faded(a.most - both) + sum * faded(most - both);
    a.most = both;
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy(const Args p) {
    float* shared = (float*)shared_memory;  // 2 WARPS
    const int tid = threadIdx.x;
    const Long row = blockIdx.x, target = p.targets[row];
    const Data* x = p.logits + row * p.vocab;
    const bool scored = target != IGNORE;
    Sum mine = {LEAST, 0.f};
    for (Long at = (Long)tid * VEC; at < p.vocab; at += THREADS * VEC) {
        const Pack raw = *(const Pack*)(x + at);
        float v[VEC], most = LEAST, sum = 0.f;
        EACH(i, VEC) v[i] = widen(raw.v[i]), most = fmaxf(most, v[i]);
        most = fmaxf(most, mine.most);
        EACH(i, VEC) sum += faded(v[i] - most);
        mine.sum = mine.sum * faded(mine.most - most) + sum;
        mine.most = most;
    }
    for (int mask = 16; mask; mask /= 2) {
        const float most = __shfl_xor_sync(ALL_LANES, mine.most, mask);
        const float sum = __shfl_xor_sync(ALL_LANES, mine.sum, mask);
        add(mine, most, sum);
    }
    if (tid % 32 == 0) shared[tid / 32] = mine.most, shared[WARPS + tid / 32] = mine.sum;
    const bool known = target >= 0 && target < p.vocab;
    const float own = scored && known ? widen(x[target]) : 0.f;  // before its slope takes its place
    __syncthreads();
    Sum all = {LEAST, 0.f};
    EACH(w, WARPS) add(all, shared[w], shared[WARPS + w]);
    const float lse = all.most + logf(all.sum);
    if (tid == 0 && p.losses) p.losses[row] = !scored ? 0.f : known ? lse - own : __int_as_float(0x7fc00000);
    if (!SLOPES) return;
    const float most = all.most, weight = p.scales ? p.scales[row] : 1.f, scale = scored ? weight / all.sum : 0.f;
    Data* to = p.slopes + row * p.vocab;
    for (Long at = (Long)tid * VEC; at < p.vocab; at += THREADS * VEC) {
        const Pack raw = *(const Pack*)(x + at);
        Pack out;
        EACH(i, VEC) {
            float slope = scored ? faded(widen(raw.v[i]) - most) * scale : 0.f;
            if (scored && at + i == target) slope -= weight;
            out.v[i] = narrow(slope);
        }
        *(Pack*)(to + at) = out;
    }
}
