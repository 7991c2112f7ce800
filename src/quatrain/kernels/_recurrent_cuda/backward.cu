// The backward pass of one unit of one row; scan.cuh calls it. README.md has the derivation.

struct In {
    Data dy;
    Kept gates[KEPT];
    float now, before;
};

__device__ __forceinline__ void read(In& in, const Args& args, const Row& now, int unit) {
    if (now.flags & BEHIND) return;
    in.dy = args.dy[now.in + unit];
    const Kept* gates = args.gates + now.out * KEPT;
    EACH(g, KEPT) in.gates[g] = gates[g * args.width + unit];
    const float* cells = args.cells + now.out + unit;
    if (CELL) in.now = *cells;
    if (WIDE) {
        const float* start = CELL ? args.c0 : args.h0;
        bool there = !(now.flags & LAST);
        in.before = there ? cells[-args.width] : start ? start[(Long)now.sequence * args.width + unit] : 0.f;
    }
}

struct Done {  // what a step leaves behind: cotangents of the drives, or of the initial state
    float z[4], inner, h, c;
};

__device__ __forceinline__ Done work(
    const Args& args, const Block& b, int step, Unit& state, const In& in, const Row& now, int row, int u, float* out
) {
    Done done;
    state.h += sum_of(b, step, row, u);
    if (now.flags & BEHIND) {
        done.h = state.h, done.c = state.c;
        return done;
    }
    state.h += widen(in.dy);
    EACH(g, KEPT) done.z[g] = kept(in.gates[g]);
    done.inner = retreat(state, done.z, in.now, in.before);
    EACH(g, GATES) out[g] = done.z[g];
    if (KIND == 3) {
        out[GATES - 1] = done.inner;
        state.bias += done.inner;
    }
    return done;
}

__device__ __forceinline__ void record(const Args& args, const Done& done, const Row& now, int unit) {
    if (now.flags & BEHIND) {
        Long to = (Long)now.sequence * args.width + unit;
        args.dh0[to] = done.h;
        if (CELL) args.dc0[to] = done.c;
        return;
    }
    Data* dx = args.dx + now.out * GATES;
    EACH(g, GATES) dx[g * args.width + unit] = narrow(done.z[g]);
    if (KIND == 3) args.dinner[now.out + unit] = narrow(done.inner);
}

// Before the last step of a sequence: nothing came through the product yet.
__device__ __forceinline__ void enter(const Args& args, Unit& state, const Row& next, int unit, float* out) {
    Long from = (Long)next.sequence * args.width + unit;
    state.h = args.dh ? args.dh[from] : 0.f;
    state.c = CELL && args.dc ? args.dc[from] : 0.f;
    EACH(g, GATES) out[g] = 0.f;
}

// Behind the last step of a row.
__device__ __forceinline__ void leave(const Args& args, const Block& b, const Unit& state, int row, int unit) {
    if (KIND == 3) args.dbias[((Long)b.group * ROWS + row) * args.width + unit] = state.bias;
}

__device__ __forceinline__ void poison(const Args& args, int unit) {
    float nan = __int_as_float(0x7fc00000);
    for (Long i = threadIdx.x / UNITS; i < args.tokens; i += THREADS / UNITS) {
        EACH(g, GATES) args.dx[(i * GATES + g) * args.width + unit] = narrow(nan);
        if (KIND == 3) args.dinner[i * args.width + unit] = narrow(nan);
    }
    if (!FLUSH) return;
    for (Long i = threadIdx.x / UNITS; i < args.sequences; i += THREADS / UNITS) {
        args.dh0[i * args.width + unit] = nan;
        if (CELL) args.dc0[i * args.width + unit] = nan;
    }
}
