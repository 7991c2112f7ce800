// Runs CUDA kernels on a CPU, one block after the other, to test their logic where there is no GPU.
// Each thread of a block is a fiber; barriers and exchanges between lanes switch fibers. Threads that wait at
// different barriers for ever are an error. Shared memory begins as NaN.
#include "numbers_on_cpu.h"

#include <ucontext.h>

namespace fibers {
enum Wait { RUNS, AT_WARP, AT_BLOCK, DONE };
struct Fiber {
    ucontext_t context;
    Wait wait;
    float lane_value;
    int vote;
};
static std::vector<Fiber> all;
static std::vector<std::vector<char>> stacks;
static ucontext_t scheduler;
static int current;

static void pause(Wait wait) {
    int me = current;
    all[me].wait = wait;
    swapcontext(&all[me].context, &scheduler);
}

static void resume(int i) {
    current = threadIdx.x = i;
    all[i].wait = RUNS;
    swapcontext(&scheduler, &all[i].context);
}

// Runs one warp until all its threads wait for the block or have ended.
static void run_warp(int first) {
    for (;;) {
        int counts[4] = {0, 0, 0, 0};
        for (int i = first; i < first + 32; ++i) {
            if (all[i].wait == RUNS || all[i].wait == AT_WARP) resume(i);
            ++counts[all[i].wait];
        }
        if (counts[AT_WARP] == 0) return;
        if (counts[AT_WARP] != 32) {
            fprintf(stderr, "lanes of one warp wait at different barriers\n");
            abort();
        }
    }
}
}  // namespace fibers

static inline void __syncwarp() { fibers::pause(fibers::AT_WARP); }
static inline void __syncthreads() { fibers::pause(fibers::AT_BLOCK); }
static inline float __shfl_xor_sync(unsigned, float v, int mask) {
    int me = fibers::current;
    fibers::all[me].lane_value = v;
    __syncwarp();
    float other = fibers::all[me ^ mask].lane_value;
    __syncwarp();
    return other;
}
static inline int __syncthreads_and(int vote) {
    fibers::all[fibers::current].vote = vote;
    __syncthreads();
    int every = 1;
    for (auto& f : fibers::all) every = every && f.vote;
    __syncthreads();
    return every;
}

static inline bool __any_sync(unsigned, bool vote) {
    int me = fibers::current, any = 0;
    fibers::all[me].vote = vote;
    __syncwarp();
    for (int i = me & ~31; i < (me | 31) + 1; ++i) any |= fibers::all[i].vote;
    __syncwarp();
    return any;
}

#define EMULATOR_ENTRY                                                                                      \
    static void (*entry)(const Args);                                                                       \
    static const Args* arguments;                                                                           \
    static void start_fiber() {                                                                             \
        entry(*arguments);                                                                                  \
        fibers::pause(fibers::DONE);                                                                        \
    }                                                                                                       \
    extern "C" void emulate(void (*kernel)(const Args), int blocks, int threads, int bytes, const Args* p) { \
        entry = kernel, arguments = p;                                                                      \
        fibers::all.resize(threads), fibers::stacks.resize(threads);                                        \
        std::vector<float4> memory(bytes / 16 + 1);                                                         \
        shared_memory = memory.data();                                                                      \
        for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {                                           \
            memset(shared_memory, 0xff, bytes);                                                             \
            for (int i = 0; i < threads; ++i) {                                                             \
                auto& f = fibers::all[i];                                                                   \
                fibers::stacks[i].resize(1 << 16);                                                          \
                getcontext(&f.context);                                                                     \
                f.context.uc_stack.ss_sp = fibers::stacks[i].data();                                        \
                f.context.uc_stack.ss_size = 1 << 16;                                                       \
                f.wait = fibers::RUNS;                                                                      \
                makecontext(&f.context, start_fiber, 0);                                                    \
            }                                                                                               \
            for (bool alive = true; alive;) {                                                               \
                alive = false;                                                                              \
                for (int w = 0; w < threads; w += 32) fibers::run_warp(w);                                  \
                for (auto& f : fibers::all) {                                                               \
                    if (f.wait == fibers::AT_BLOCK) f.wait = fibers::RUNS, alive = true;                    \
                }                                                                                           \
            }                                                                                               \
        }                                                                                                   \
    }
