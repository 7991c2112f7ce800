// One Newton iteration of a recurrence with a block-diagonal Jacobian, and, for diagonal cells, the recurrence itself.
//
// A thread owns one unit of one chunk of time. `reduce` composes the chunk's affine maps, `carry` carries the state
// from chunk to chunk, `apply` evaluates again and writes the new iterate. Macros: LSTM (else a tanh RNN), DIAGONAL
// (the product is taken here, unit by unit), NARROW (x, z and h are bfloat16; everything else is float).

typedef long long Long;
// Reads go through __ldg: no kernel writes what it reads, so loads of later steps may pass stores of earlier ones.
#if NARROW
typedef unsigned short Data;
__device__ __forceinline__ float read(const Data* p) { return __uint_as_float((unsigned)__ldg(p) << 16); }
__device__ __forceinline__ Data narrow(float v) {
    const unsigned bits = __float_as_uint(v);  // to nearest even; v is finite
    return (Data)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#else
typedef float Data;
__device__ __forceinline__ float read(const Data* p) { return __ldg(p); }
__device__ __forceinline__ Data narrow(float v) { return v; }
#endif
#define GATES (LSTM ? 4 : 1)
#define STATES (LSTM ? 2 : 1)  // h, and c of an LSTM

struct Args {
    const Data* x;        // (B, T, GATES, D)
    const Data* z;        // the same shape: weight h_{t-1} of the last iterate; not read if DIAGONAL
    const float* weight;  // (GATES, D): the diagonal of the recurrent matrix, zeros for fixed-point iteration
    const Data* h;        // (B, T + 1, D), the last iterate behind its initial state
    const float* c;
    Data* new_h;
    float* new_c;
    float* maps;    // (B, chunks, STATES, STATES, D)
    float* states;  // (B, chunks, STATES, D): what a chunk adds, then the state that it begins with
    int* change;    // bits of max |new - old| and of max |new h|
    Long batch, time, width, chunks, chunk;
};

struct Step {
    float value[STATES], jacobian[STATES][STATES];
};

__device__ __forceinline__ float sigmoid(float v) { return 1.f / (1.f + expf(-v)); }

__device__ __forceinline__ Step evaluate(const float (&z)[GATES], const float (&w)[GATES], float c) {
    Step s;
#if LSTM
    const float i = sigmoid(z[0]), f = sigmoid(z[1]), g = tanhf(z[2]), o = sigmoid(z[3]);
    const float cell = f * c + i * g, squashed = tanhf(cell);
    const float slope = o * (1.f - squashed * squashed);  // dh / dcell
    const float through = c * f * (1.f - f) * w[1] + g * i * (1.f - i) * w[0] + i * (1.f - g * g) * w[2];
    s.value[0] = o * squashed, s.value[1] = cell;
    s.jacobian[0][0] = squashed * o * (1.f - o) * w[3] + slope * through, s.jacobian[0][1] = slope * f;
    s.jacobian[1][0] = through, s.jacobian[1][1] = f;
#else
    s.value[0] = tanhf(z[0]);
    s.jacobian[0][0] = (1.f - s.value[0] * s.value[0]) * w[0];
#endif
    return s;
}

struct Place {
    Long b, chunk, d, first, last;
    bool outside;
};

__device__ __forceinline__ Place place(const Args& p, Long chunks, Long steps) {
    const Long n = (Long)blockIdx.x * blockDim.x + threadIdx.x, row = n / p.width;
    Place k = {row / chunks, row % chunks, n % p.width, 0, 0, n >= p.batch * chunks * p.width};
    k.first = k.chunk * steps;
    k.last = k.first + steps < p.time ? k.first + steps : p.time;
    return k;
}

__device__ __forceinline__ void read_weights(float (&w)[GATES], const Args& p, Long d) {
    for (int g = 0; g < GATES; g++) w[g] = p.weight[g * p.width + d];
}

__device__ __forceinline__ void read_gates(float (&z)[GATES], const Args& p, const Place& k, Long t) {
    const Long at = (k.b * p.time + t) * GATES * p.width + k.d;
    for (int g = 0; g < GATES; g++) {
        z[g] = read(p.x + at + g * p.width);
        if (!DIAGONAL) z[g] += read(p.z + at + g * p.width);
    }
}

// The step linearised at the last iterate: `state` becomes J state + (value - J old), `map` becomes J map.
__device__ __forceinline__ Step advance(
    float (&state)[STATES], float (*map)[STATES], const Args& p, const Place& k, Long t, const float (&w)[GATES],
    const float (&old)[STATES]) {
    float z[GATES];
    read_gates(z, p, k, t);
    if (DIAGONAL)
        for (int g = 0; g < GATES; g++) z[g] += w[g] * old[0];
    const Step s = evaluate(z, w, LSTM ? old[STATES - 1] : 0.f);
    float moved[STATES], next[STATES][STATES];
    for (int i = 0; i < STATES; i++) {
        moved[i] = s.value[i];
        for (int j = 0; j < STATES; j++) moved[i] += s.jacobian[i][j] * (state[j] - old[j]);
        for (int j = 0; map && j < STATES; j++) {
            next[i][j] = 0.f;
            for (int m = 0; m < STATES; m++) next[i][j] += s.jacobian[i][m] * map[m][j];
        }
    }
    for (int i = 0; i < STATES; i++) {
        state[i] = moved[i];
        for (int j = 0; map && j < STATES; j++) map[i][j] = next[i][j];
    }
    return s;
}

__device__ __forceinline__ void read_old(float (&old)[STATES], const Args& p, const Place& k, Long t) {
    const Long at = (k.b * (p.time + 1) + t) * p.width + k.d;
    old[0] = read(p.h + at);
    if (LSTM) old[STATES - 1] = __ldg(p.c + at);
}

__device__ __forceinline__ void raise(int* most, float v) {
    const int bits = __float_as_int(v);  // of numbers that are not negative, bits are in the numbers' order
    if (bits > *(volatile int*)most) atomicMax(most, bits);
}

extern "C" __global__ void reduce(const Args p) {
    const Place k = place(p, p.chunks, p.chunk);
    if (k.outside) return;
    float w[GATES], old[STATES], state[STATES], map[STATES][STATES];
    read_weights(w, p, k.d);
    for (int i = 0; i < STATES; i++) {
        state[i] = 0.f;
        for (int j = 0; j < STATES; j++) map[i][j] = i == j;
    }
#pragma unroll 4
    for (Long t = k.first; t < k.last; t++) {
        read_old(old, p, k, t);
        advance(state, map, p, k, t, w, old);
    }
    const Long at = (k.b * p.chunks + k.chunk) * STATES;
    for (int i = 0; i < STATES; i++) {
        p.states[(at + i) * p.width + k.d] = state[i];
        for (int j = 0; j < STATES; j++) p.maps[((at + i) * STATES + j) * p.width + k.d] = map[i][j];
    }
}

extern "C" __global__ void carry(const Args p) {
    const Place k = place(p, 1, p.time);
    if (k.outside) return;
    float state[STATES];
    read_old(state, p, k, 0);
#pragma unroll 8
    for (Long chunk = 0; chunk < p.chunks; chunk++) {
        const Long at = (k.b * p.chunks + chunk) * STATES;
        float next[STATES];
        for (int i = 0; i < STATES; i++) {
            next[i] = p.states[(at + i) * p.width + k.d];
            for (int j = 0; j < STATES; j++) next[i] += p.maps[((at + i) * STATES + j) * p.width + k.d] * state[j];
        }
        for (int i = 0; i < STATES; i++) {
            p.states[(at + i) * p.width + k.d] = state[i];
            state[i] = next[i];
        }
    }
}

extern "C" __global__ void apply(const Args p) {
    const Place k = place(p, p.chunks, p.chunk);
    if (k.outside) return;
    float w[GATES], old[STATES], state[STATES], change = 0.f, most = 0.f;
    read_weights(w, p, k.d);
    for (int i = 0; i < STATES; i++)
        state[i] = p.states[((k.b * p.chunks + k.chunk) * STATES + i) * p.width + k.d];
    read_old(old, p, k, k.first);
#pragma unroll 4
    for (Long t = k.first; t < k.last; t++) {
        const Step s = advance(state, nullptr, p, k, t, w, old);
        const Long at = (k.b * (p.time + 1) + t + 1) * p.width + k.d;
        // Safeguards: h lies in [-1, 1] whatever the guess; where the linear recurrence overflowed, plain evaluation.
        const float h = fabsf(state[0]) < 1e30f ? fminf(fmaxf(state[0], -1.f), 1.f) : s.value[0];
        read_old(old, p, k, t + 1);
        change = fmaxf(change, fabsf(h - old[0]));
        most = fmaxf(most, fabsf(h));
        p.new_h[at] = narrow(h);
        if (LSTM) {
            const float c = fabsf(state[STATES - 1]) < 1e30f ? state[STATES - 1] : s.value[STATES - 1];
            change = fmaxf(change, fabsf(c - old[STATES - 1]) / fmaxf(1.f, fabsf(c)));
            p.new_c[at] = c;
        }
    }
    raise(p.change, change);
    raise(p.change + 1, most);
}

// A diagonal cell step by step: a thread runs one unit through all of time, inputs read AHEAD steps early.
#define AHEAD 8
extern "C" __global__ void sequential(const Args p) {
    const Place k = place(p, 1, p.time);
    if (k.outside) return;
    float w[GATES], state[STATES];
    read_weights(w, p, k.d);
    read_old(state, p, k, 0);
    float now[AHEAD][GATES], then[AHEAD][GATES];
    for (int n = 0; n < AHEAD; n++)
        if (n < p.time) read_gates(now[n], p, k, n);
    for (Long t = 0; t < p.time; t += AHEAD) {
#pragma unroll
        for (int n = 0; n < AHEAD; n++)
            if (t + AHEAD + n < p.time) read_gates(then[n], p, k, t + AHEAD + n);
#pragma unroll
        for (int n = 0; n < AHEAD; n++) {
            if (t + n >= p.time) return;
            float z[GATES];
            for (int g = 0; g < GATES; g++) z[g] = now[n][g] + w[g] * state[0];
            const Step s = evaluate(z, w, LSTM ? state[STATES - 1] : 0.f);
            const Long at = (k.b * (p.time + 1) + t + n + 1) * p.width + k.d;
            for (int i = 0; i < STATES; i++) state[i] = s.value[i];
            p.new_h[at] = narrow(state[0]);
            if (LSTM) p.new_c[at] = state[STATES - 1];
        }
#pragma unroll
        for (int n = 0; n < AHEAD; n++)
            for (int g = 0; g < GATES; g++) now[n][g] = then[n][g];
    }
}
