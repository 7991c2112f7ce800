// One step of the S6 recurrence: 4 lanes a channel, each with every fourth group of VEC states.
//
// cuda.py sets DATA, WIDE (skip and bias are float), VEC, GATE, SOFTPLUS and ZOH.

#define THREADS 128
#define LANES 4

#if WIDE
typedef float Parameter;
__device__ __forceinline__ float parameter(const float* x, int at) { return x[at]; }
#else
typedef Data Parameter;
__device__ __forceinline__ float parameter(const Data* x, int at) { return widen(x[at]); }
#endif

struct Args {  // the same fields in the same order as in cuda.py
    const Data *u, *delta, *b, *c, *gate;
    const float *a, *h0;
    const Parameter *skip, *bias;
    Data* y;
    float* h;
    Long u_row, delta_row, gate_row, b_row, c_row, b_group, c_group, channels;
    int width, states, each;  // channels of a group
};

struct __align__(VEC * sizeof(float)) Floats {
    float v[VEC];
};

// (e^{dt a} - 1) / a, the zero-order hold.
__device__ __forceinline__ float hold(float dt, float a) { return expm1f(dt * a) / a; }

extern "C" __global__ void __launch_bounds__(THREADS) s6_step(const Args p) {
    const Long i = (Long)blockIdx.x * THREADS + threadIdx.x;
    const int part = (int)(i % LANES);
    const bool real = i / LANES < p.channels;
    const Long at = real ? i / LANES : 0;
    const Long row = at / p.width;
    const int channel = (int)(at % p.width), group = channel / p.each;
    const float u = widen(p.u[row * p.u_row + channel]);
    float dt = widen(p.delta[row * p.delta_row + channel]) + (p.bias ? parameter(p.bias, channel) : 0.f);
    if (SOFTPLUS) dt = softplus(dt);
    const Data* b = p.b + row * p.b_row + group * p.b_group;
    const Data* c = p.c + row * p.c_row + group * p.c_group;
    float y = 0.f;
    for (int n = part * VEC; n < p.states; n += LANES * VEC) {
        const Floats a = *(const Floats*)(p.a + (Long)channel * p.states + n);
        Floats h = *(const Floats*)(p.h0 + at * p.states + n);
        EACH(v, VEC) {
            const float in = (ZOH ? hold(dt, a.v[v]) : dt) * u;
            h.v[v] = fmaf(exact_ex2(dt * a.v[v] * LOG2E), h.v[v], in * widen(b[n + v]));
            y = fmaf(widen(c[n + v]), h.v[v], y);
        }
        if (real) *(Floats*)(p.h + at * p.states + n) = h;
    }
    y += __shfl_xor_sync(ALL_LANES, y, 1);
    y += __shfl_xor_sync(ALL_LANES, y, 2);
    if (!real || part) return;
    if (p.skip) y = fmaf(parameter(p.skip, channel), u, y);
    if (GATE) y *= silu(widen(p.gate[row * p.gate_row + channel]));
    p.y[at] = narrow(y);
}
