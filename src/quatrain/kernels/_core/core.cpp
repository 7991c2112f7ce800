// What the loader asks: which instruction set the processor has, and whether this library can run.
#include "abi.h"
#include "parallel.h"
#include "simd.h"

#if defined(__x86_64__)
#define QT_KEEP(v) asm volatile("" : "+v"(v))  // in its register, and computed
#else
#define QT_KEEP(v) asm volatile("" : "+w"(v))
#endif

extern "C" {

QT_EXPORT const char* qt_isa(void) {  // the best one that this build may hold, by the processor
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma"))
        return __builtin_cpu_supports("avx512bf16") ? "avx512bf16" : "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
    return "base";
}

// How many of `tasks` tasks ran, on up to `threads` threads: a test of the thread layer.
QT_EXPORT int64_t qt_count(int64_t tasks, int64_t threads) {
    int64_t count = 0;
    quatrain::parallel_for(tasks, threads, [&](int64_t) { __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED); });
    return count;
}

QT_EXPORT int64_t qt_lanes(void) { return quatrain::lanes<float>; }

// `count` times twelve independent multiply-adds on each thread: what the processor can do at most.
QT_EXPORT int64_t qt_multiply_add(int64_t count, int64_t threads) {
    quatrain::parallel_for(threads, threads, [&](int64_t) {
        const auto scale = quatrain::splat<float>(0.999f), add = quatrain::splat<float>(0.1f);
        auto x0 = add, x1 = add, x2 = add, x3 = add, x4 = add, x5 = add, x6 = add, x7 = add, x8 = add, x9 = add, xa = add, xb = add;
#define QT_STEP(x) x = x * scale + add; QT_KEEP(x)
        for (int64_t i = 0; i < count; ++i) {
            QT_STEP(x0); QT_STEP(x1); QT_STEP(x2); QT_STEP(x3); QT_STEP(x4); QT_STEP(x5);
            QT_STEP(x6); QT_STEP(x7); QT_STEP(x8); QT_STEP(x9); QT_STEP(xa); QT_STEP(xb);
        }
    });
    return count;
}
}
