// The forward pass of one unit of one row; scan.cuh calls it.

struct In {  // what is read of a step before its product is there
    Data drive[GATES];
};

__device__ __forceinline__ void read(In& in, const Args& args, const Row& now, int unit) {
    const Data* from = args.x + now.in;
    EACH(g, GATES) in.drive[g] = from[g * args.width + unit];
}

struct Done {  // what a step leaves behind
    float z[4], h, c;
};

__device__ __forceinline__ Done work(
    const Args& args, const Block& b, int step, Unit& state, const In& in, const Row& now, int row, int u, float* out
) {
    Done done;
    float inner = 0.f;
    EACH(g, GATES) {
        float product = sum_of(b, step, row, g * UNITS + u);
        if (KIND == 3 && g == 2) {
            inner = product + (args.bias ? args.bias[b.member * UNITS + u] : 0.f);
            product = 0.f;
        }
        done.z[g] = widen(in.drive[g]) + product;
    }
    advance(state, done.z, inner);
    done.h = out[0] = state.h;
    done.c = state.c;
    return done;
}

__device__ __forceinline__ void record(const Args& args, const Done& done, const Row& now, int unit) {
    args.y[now.out + unit] = narrow(done.h);
    if (KEEP) {
        Kept* gates = args.gates + now.out * KEPT;
        EACH(g, KEPT) gates[g * args.width + unit] = keep(done.z[g]);
        if (WIDE) args.cells[now.out + unit] = CELL ? done.c : done.h;
    }
    if (now.flags & LAST) {
        Long to = (Long)now.sequence * args.width + unit;
        args.last_h[to] = done.h;
        if (CELL) args.last_c[to] = done.c;
    }
}

// Before the first step of a sequence.
__device__ __forceinline__ void enter(const Args& args, Unit& state, const Row& next, int unit, float* out) {
    Long from = (Long)next.sequence * args.width + unit;
    state.h = args.h0 ? args.h0[from] : 0.f;
    state.c = CELL && args.c0 ? args.c0[from] : 0.f;
    out[0] = state.h;
}

__device__ __forceinline__ void leave(const Args&, const Block&, const Unit&, int, int) {}

// What a pass that could not end leaves behind for a unit.
__device__ __forceinline__ void poison(const Args& args, int unit) {
    float nan = __int_as_float(0x7fc00000);
    for (Long i = threadIdx.x / UNITS; i < args.tokens; i += THREADS / UNITS) args.y[i * args.width + unit] = narrow(nan);
    for (Long i = threadIdx.x / UNITS; i < args.sequences; i += THREADS / UNITS) {
        args.last_h[i * args.width + unit] = nan;
        if (CELL) args.last_c[i * args.width + unit] = nan;
    }
}
