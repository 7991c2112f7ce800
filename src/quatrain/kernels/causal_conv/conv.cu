// Causal depthwise convolution. A thread walks VEC channels of one row through one chunk of time, the last TAPS - 1
// inputs in registers; nothing is shared between threads, so a warp reads VEC x 32 channels side by side.
//
// cuda.py sets DATA, WIDE (weights are float), TAPS, VEC, SILU and PACKED.

#define THREADS 128
#define PAST (TAPS - 1)
#define AHEAD 8  // steps whose reads are on their way together
#define BACK_AHEAD 8

#if WIDE
typedef float Parameter;
__device__ __forceinline__ float parameter(const float* x, Long at) { return x[at]; }
#else
typedef Data Parameter;
__device__ __forceinline__ float parameter(const Data* x, Long at) { return widen(x[at]); }
#endif

struct Args {  // the same fields in the same order as in cuda.py
    const Data *x, *h0, *dy, *dh;
    const Parameter *weight, *bias;
    const Long *lengths, *bounds;
    Data *y, *last, *dx, *dh0;
    float* part;
    Parameter *dweight, *dbias;
    Long x_row, dy_row, dx_row, batch, time, chunk, chunks, columns, walks;
    int x_step, dy_step, dx_step, width, sequences;
};

#if VEC == 1
struct Pack {
    Data v;
};
__device__ __forceinline__ void unpack(float* out, const Pack& x) { out[0] = widen(x.v); }
__device__ __forceinline__ Pack pack(const float* x) { return {narrow(x[0])}; }
#else
struct __align__(VEC * sizeof(Data)) Pack {
    Pair v[VEC / 2];
};
__device__ __forceinline__ void unpack(float* out, const Pack& x) {
    EACH(i, VEC / 2) out[2 * i] = low_of(x.v[i]), out[2 * i + 1] = high_of(x.v[i]);
}
__device__ __forceinline__ Pack pack(const float* x) {
    Pack y;
    EACH(i, VEC / 2) y.v[i] = narrow_pair(x[2 * i], x[2 * i + 1]);
    return y;
}
#endif

__device__ __forceinline__ Pack pack_at(const Data* x, bool there) { return there ? *(const Pack*)x : Pack{}; }

struct Sequence {  // and the steps where it begins and ends
    int number;
    Long begin, end;
};

__device__ __forceinline__ Sequence sequence_at(const Args& p, Long row, Long t) {
#if PACKED
    int low = 0, high = p.sequences - 1;  // the last sequence that begins at or before t
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (p.bounds[middle] <= t) low = middle;
        else high = middle - 1;
    }
    return {low, p.bounds[low], p.bounds[low + 1]};
#else
    return {(int)row, 0, p.lengths ? max(0ll, min(p.time, p.lengths[row])) : p.time};
#endif
}

__device__ __forceinline__ void advance(const Args& p, Sequence& s, Long t) {
    if (!PACKED) return;
    while (t >= s.end && s.number + 1 < p.sequences) {
        s.begin = s.end;
        s.end = p.bounds[++s.number + 1];
    }
}

// Where a walk begins and which channels are its own.
struct Walk {
    Long row, chunk, start, stop;
    int first;
};

__device__ __forceinline__ bool begin(const Args& p, Walk& k) {
    const Long i = (Long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= p.walks) return false;
    const Long rest = i / p.columns;
    k.first = (int)(i % p.columns) * VEC;
    k.chunk = rest % p.chunks;
    k.row = rest / p.chunks;
    k.start = k.chunk * p.chunk;
    k.stop = min(p.time, k.start + p.chunk);
    return true;
}

__device__ __forceinline__ void read_parameters(float (&weight)[TAPS][VEC], float (&bias)[VEC], const Args& p, int first) {
    EACH(v, VEC) {
        EACH(j, TAPS) weight[j][v] = parameter(p.weight, (Long)(first + v) * TAPS + j);
        bias[v] = p.bias ? parameter(p.bias, first + v) : 0.f;
    }
}

// The inputs before step t, which may be those of h0.
__device__ __forceinline__ void read_past(
    float (&past)[PAST][VEC], const Args& p, const Sequence& s, const Data* x, Long t, int first) {
    EACH(k, PAST) {
        const Long at = t - PAST + k, in_state = at - s.begin + PAST;
        Pack raw = Pack{};
        if (at >= s.begin && at >= 0) raw = *(const Pack*)(x + at * p.x_step);
        else if (p.h0 && in_state >= 0 && in_state < PAST) raw = *(const Pack*)(p.h0 + (s.number * (Long)PAST + in_state) * p.width + first);
        unpack(past[k], raw);
    }
}

__device__ __forceinline__ void convolve(
    float (&z)[VEC], const float (&past)[PAST][VEC], const float (&x)[VEC], const float (&weight)[TAPS][VEC],
    const float (&bias)[VEC]) {
    EACH(v, VEC) {
        float sum = bias[v];
        EACH(k, PAST) sum = fmaf(weight[k][v], past[k][v], sum);
        z[v] = fmaf(weight[PAST][v], x[v], sum);
    }
}

__device__ __forceinline__ void shift(float (&past)[PAST][VEC], const float (&x)[VEC]) {
    EACH(v, VEC) {
        EACH(k, PAST - 1) past[k][v] = past[k + 1][v];
        past[PAST - 1][v] = x[v];
    }
}

// Entry of a state, of a flat index into (S, PAST, E): which sequence, place and channel.
struct Entry {
    Sequence s;
    int place, channel;
    const Data* x;  // the channel's first step
};

__device__ __forceinline__ bool entry_of(const Args& p, Entry& e) {
    const Long i = (Long)(blockIdx.x - (p.walks + THREADS - 1) / THREADS) * THREADS + threadIdx.x;
    if (i >= (Long)p.sequences * PAST * p.width) return false;
    e.channel = (int)(i % p.width);
    e.place = (int)(i / p.width % PAST);
    const int number = (int)(i / p.width / PAST);
#if PACKED
    e.s = {number, max(0ll, min(p.time, p.bounds[number])), max(0ll, min(p.time, p.bounds[number + 1]))};
    e.x = p.x + e.channel;
#else
    e.s = sequence_at(p, number, 0);
    e.x = p.x + number * p.x_row + e.channel;
#endif
    return true;
}

// Input of an entry's channel at step t, which may lie in h0.
__device__ __forceinline__ float input_at(const Args& p, const Entry& e, Long t) {
    if (t >= e.s.begin) return widen(e.x[t * p.x_step]);
    const Long in_state = t - e.s.begin + PAST;
    return p.h0 && in_state >= 0 ? widen(p.h0[(e.s.number * (Long)PAST + in_state) * p.width + e.channel]) : 0.f;
}

__device__ __forceinline__ Long entry_at(const Args& p, const Entry& e, Long place) {
    return (e.s.number * (Long)PAST + place) * p.width + e.channel;
}

extern "C" __global__ void __launch_bounds__(THREADS) conv_forward(const Args p) {
    Walk k;
    if (!begin(p, k)) {
        Entry e;
        if (blockIdx.x >= (p.walks + THREADS - 1) / THREADS && entry_of(p, e)) {
            p.last[entry_at(p, e, e.place)] = narrow(input_at(p, e, e.s.end - PAST + e.place));
        }
        return;
    }
    float weight[TAPS][VEC], bias[VEC], past[PAST][VEC];
    read_parameters(weight, bias, p, k.first);
    const Data* x = p.x + k.row * p.x_row + k.first;
    Sequence s = sequence_at(p, k.row, k.start);
    read_past(past, p, s, x, k.start, k.first);
    const Long valid = PACKED ? p.time : s.end;
    Pack raw[AHEAD];
    x += k.start * p.x_step;
    EACH(j, AHEAD) raw[j] = pack_at(x + (Long)j * p.x_step, k.start + j < min(k.stop, valid));
    Data* to = p.y + (k.row * p.time + k.start) * p.width + k.first;
    for (Long tile = k.start; tile < k.stop; tile += AHEAD) {
        Pack now[AHEAD];
        EACH(j, AHEAD) now[j] = raw[j];
        x += (Long)AHEAD * p.x_step;
        EACH(j, AHEAD) raw[j] = pack_at(x + (Long)j * p.x_step, tile + AHEAD + j < min(k.stop, valid));
        EACH(j, AHEAD) {
            const Long t = tile + j;
            float here[VEC], z[VEC];
            unpack(here, now[j]);
            if (PACKED) {
                advance(p, s, t);
                if (t == s.begin && t > k.start) read_past(past, p, s, nullptr, t, k.first);
            }
            convolve(z, past, here, weight, bias);
            shift(past, here);
            if (SILU) EACH(v, VEC) z[v] = silu(z[v]);
            if (t >= valid) EACH(v, VEC) z[v] = 0.f;
            if (t < k.stop) *(Pack*)to = pack(z);
            to += p.width;
        }
    }
}

// Cotangent of z from that of y.
__device__ __forceinline__ float through_silu(float dy, float z) {
    if (!SILU) return dy;
    const float s = sigmoid(z);
    return dy * s * fmaf(z, 1.f - s, 1.f);
}

// dh0: what the first steps of a sequence send to the inputs before it, and a short sequence's state passes on.
__device__ __forceinline__ void state_gradient(const Args& p, const Entry& e) {
    const Long length = e.s.end - e.s.begin;
    const Data* dy = p.dy + (PACKED ? 0 : e.s.number * p.dy_row) + e.channel;
    float sum = 0.f;
    for (int i = PAST - e.place; i < TAPS; ++i) {  // the input is i steps before step t
        const Long t = e.s.begin + e.place - PAST + i;
        if (t >= e.s.end) break;
        float z = p.bias ? parameter(p.bias, e.channel) : 0.f;
        for (int j = 0; j < TAPS; ++j) z = fmaf(parameter(p.weight, (Long)e.channel * TAPS + j), input_at(p, e, t - PAST + j), z);
        const float dz = through_silu(widen(dy[t * p.dy_step]), z);
        sum = fmaf(parameter(p.weight, (Long)e.channel * TAPS + PAST - i), dz, sum);
    }
    if (p.dh && e.place >= length) sum += widen(p.dh[entry_at(p, e, e.place - length)]);
    p.dh0[entry_at(p, e, e.place)] = narrow(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) conv_backward(const Args p) {
    Walk k;
    if (!begin(p, k)) {
        Entry e;
        if (p.dh0 && blockIdx.x >= (p.walks + THREADS - 1) / THREADS && entry_of(p, e)) state_gradient(p, e);
        return;
    }
    float weight[TAPS][VEC], bias[VEC], past[PAST][VEC];
    float dweight[TAPS][VEC], dbias[VEC], dx[TAPS][VEC];  // dx[i]: of the input i steps back
    read_parameters(weight, bias, p, k.first);
    EACH(v, VEC) {
        dbias[v] = 0.f;
        EACH(j, TAPS) dweight[j][v] = 0.f, dx[j][v] = 0.f;
    }
    const Data* x = p.x + k.row * p.x_row + k.first;
    const Data* dy = p.dy + k.row * p.dy_row + k.first;
    Sequence s = sequence_at(p, k.row, k.start), behind = s;
    read_past(past, p, s, x, k.start, k.first);
    const Long valid = PACKED ? p.time : s.end, stop = k.stop + PAST;
    x += k.start * p.x_step;
    dy += k.start * p.dy_step;
    Pack raw[BACK_AHEAD], raw_dy[BACK_AHEAD];
    auto fetch = [&](Long tile) {
        EACH(j, BACK_AHEAD) {
            const bool there = tile + j < min(stop, valid);
            raw[j] = pack_at(x + (Long)j * p.x_step, there);
            raw_dy[j] = pack_at(dy + (Long)j * p.dy_step, there);
        }
    };
    fetch(k.start);
    Data* to = p.dx + k.row * p.dx_row + (k.start - PAST) * p.dx_step + k.first;
    for (Long tile = k.start; tile < stop; tile += BACK_AHEAD) {
        Pack now[BACK_AHEAD], now_dy[BACK_AHEAD];
        EACH(j, BACK_AHEAD) now[j] = raw[j], now_dy[j] = raw_dy[j];
        x += (Long)BACK_AHEAD * p.x_step;
        dy += (Long)BACK_AHEAD * p.dy_step;
        fetch(tile + BACK_AHEAD);
        EACH(j, BACK_AHEAD) {
            const Long t = tile + j;
            float here[VEC], dz[VEC], z[VEC];
            unpack(here, now[j]);
            unpack(dz, now_dy[j]);
            if (PACKED) {
                advance(p, s, t);
                if (t == s.begin && t > k.start) read_past(past, p, s, nullptr, t, k.first);
            }
            if (SILU) {
                convolve(z, past, here, weight, bias);
                EACH(v, VEC) dz[v] = through_silu(dz[v], z[v]);
            }
            if (t < k.stop) {  // later ones are the next chunk's
                EACH(v, VEC) {
                    EACH(i, PAST) dweight[i][v] = fmaf(dz[v], past[i][v], dweight[i][v]);
                    dweight[PAST][v] = fmaf(dz[v], here[v], dweight[PAST][v]);
                    dbias[v] += dz[v];
                }
            }
            shift(past, here);
            const Long reach = PACKED ? t - s.begin : TAPS;  // inputs of other sequences stay out
            EACH(i, TAPS) {
                if (i <= reach) EACH(v, VEC) dx[i][v] = fmaf(weight[PAST - i][v], dz[v], dx[i][v]);
            }
            const Long done = t - PAST;
            if (done >= k.start && done < k.stop) {
                if (p.dh) {
                    advance(p, behind, done);
                    const Long place = done - behind.end + PAST;
                    if (place >= 0 && done < behind.end) {
                        float more[VEC];
                        unpack(more, *(const Pack*)(p.dh + (behind.number * (Long)PAST + place) * p.width + k.first));
                        EACH(v, VEC) dx[PAST][v] += more[v];
                    }
                }
                *(Pack*)to = pack(dx[PAST]);
            }
            to += p.dx_step;
            EACH(v, VEC) {
                EACH(i, PAST) dx[PAST - i][v] = dx[PAST - i - 1][v];
                dx[0][v] = 0.f;
            }
        }
    }
    float* part = p.part + (k.row * p.chunks + k.chunk) * (TAPS + 1) * p.width + k.first;
    EACH(v, VEC) {
        EACH(j, TAPS) part[(Long)j * p.width + v] = dweight[j][v];
        part[(Long)TAPS * p.width + v] = dbias[v];
    }
}

// Gradients of weight and bias: sums over the walks, in a fixed order.
extern "C" __global__ void __launch_bounds__(THREADS) conv_sum(const Args p) {
    float* sums = (float*)shared_memory;  // THREADS
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32, groups = THREADS / 32;
    const Long column = (Long)blockIdx.x * 32 + lane, count = (Long)(TAPS + 1) * p.width;
    float sum = 0.f;
    if (column < count) {
#pragma unroll 8
        for (Long i = group; i < p.batch * p.chunks; i += groups) sum += p.part[i * count + column];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (group > 0 || column >= count) return;
    for (int g = 1; g < groups; ++g) sum += sums[g * 32 + lane];
    const int j = (int)(column / p.width), channel = (int)(column % p.width);
#if WIDE
    if (j < TAPS) p.dweight[(Long)channel * TAPS + j] = sum;
    else if (p.dbias) p.dbias[channel] = sum;
#else
    if (j < TAPS) p.dweight[(Long)channel * TAPS + j] = narrow(sum);
    else if (p.dbias) p.dbias[channel] = narrow(sum);
#endif
}
