// Runs CUDA kernels on a CPU whose blocks work together: all blocks of a cluster or grid at once, each thread a fiber.
// Has the functions of cluster.cuh, the matrix product with the layout of its registers included. Copies between
// blocks happen some time later, in any order, as late as a wait allows; they read their source only then.
#include "numbers_on_cpu.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>

namespace fibers {
enum Wait { RUNS, SPINS, AT_WARP, AT_BLOCK, AT_CLUSTER, DONE, WAITS };
constexpr size_t STACK = 1 << 16;

struct Lane {  // what lanes show each other
    float value;
    unsigned words[6];
    const void* row;
};
struct Fiber {
    jmp_buf place;
    ucontext_t context;
    Wait wait;
    bool started;
    int vote, block, thread, turn;
    Lane lanes[2];  // by turns: who shows the next thing may not hide the last
};
struct Block {
    std::vector<float4> memory;
    int votes;
};
struct Copy {
    void* to;
    const void* from;
    unsigned bytes;
    long long* bar;
    char value[16];  // of a copy from registers
};

static std::vector<Fiber> all;
static std::vector<Block> blocks;
static std::vector<Copy> copies;
static char* stacks;
static size_t stack_count;
static jmp_buf scheduler;
static int current, threads, cluster;
static long long passes;
static unsigned random_state = 1;

static unsigned random_number() {
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

static void pause(Wait wait) {
    Fiber& me = all[current];
    me.wait = wait;
    if (!_setjmp(me.place)) _longjmp(scheduler, 1);
}

static void resume(int i) {
    current = i;
    Fiber& f = all[i];
    threadIdx.x = f.thread, blockIdx.x = f.block;
    shared_memory = blocks[f.block].memory.data();
    f.wait = RUNS;
    if (_setjmp(scheduler)) return;
    if (f.started) _longjmp(f.place, 1);
    f.started = true;
    setcontext(&f.context);
}

// Runs a warp until none of its lanes can go on by itself. Whether any did more than spin.
static bool run_warp(int first) {
    bool moved = false;
    for (int i = first; i < first + 32; ++i) {
        if (all[i].wait == SPINS) resume(i);
    }
    for (;;) {
        int counts[WAITS] = {};
        for (int i = first; i < first + 32; ++i) {
            if (all[i].wait == RUNS) resume(i), moved = true;
            ++counts[all[i].wait];
        }
        if (counts[AT_WARP] == 32) {
            for (int i = first; i < first + 32; ++i) all[i].wait = RUNS;
            continue;
        }
        if (counts[RUNS]) continue;
        if (counts[AT_WARP] && !counts[SPINS]) {
            fprintf(stderr, "lanes of one warp wait at different barriers\n");
            abort();
        }
        return moved;
    }
}

static bool release(int first, int count, Wait wait) {
    for (int i = first; i < first + count; ++i) {
        if (all[i].wait != wait) return false;
    }
    int votes = 0;
    for (int i = first; i < first + count; ++i) all[i].wait = RUNS, votes |= all[i].vote, all[i].vote = 0;
    for (int i = first; i < first + count; i += threads) blocks[all[i].block].votes = votes;
    return true;
}

struct Bar {  // in the 8 bytes of a barrier
    int bytes;
    unsigned char arrivals, count, phase, unused;
};
static void settle(Bar* bar) {
    if (bar->arrivals == 0 && bar->bytes == 0) bar->phase ^= 1, bar->arrivals = bar->count;
}

static void run_copy(size_t i) {
    Copy copy = copies[i];
    copies.erase(copies.begin() + i);
    memcpy(copy.to, copy.from ? copy.from : copy.value, copy.bytes);
    Bar* bar = (Bar*)copy.bar;
    bar->bytes -= copy.bytes;
    settle(bar);
}

// Runs blocks [first, first + count), all at once. `late` copies wait until nothing else can go on.
static void run(int first, int count, bool late) {
    int total = count * threads;
    long long idle = 0;
    for (;;) {
        bool alive = false, moved = false;
        int warps = total / 32, shift = random_number() % warps;
        for (int w = 0; w < warps; ++w) moved |= run_warp((w + shift) % warps * 32);
        for (int b = 0; b < count; ++b) moved |= release(b * threads, threads, AT_BLOCK);
        for (int b = 0; b < count; b += cluster) moved |= release(b * threads, cluster * threads, AT_CLUSTER);
        while (!copies.empty() && (!moved || (!late && random_number() % 4))) {
            run_copy(random_number() % copies.size());
            moved = true;
        }
        for (int i = 0; i < total && !alive; ++i) alive = all[i].wait != DONE;
        if (!alive) break;
        ++passes;
        idle = moved ? 0 : idle + 1;
        if (idle > 200000) {
            fprintf(stderr, "blocks wait for each other for ever\n");
            abort();
        }
    }
    if (!copies.empty()) {
        fprintf(stderr, "a block has ended before what was sent to it arrived\n");
        abort();
    }
}

static Lane& show() { return all[current].lanes[all[current].turn & 1]; }
static const Lane& shown(int lane) {
    Fiber& f = all[(current & ~31) + lane];
    return f.lanes[(all[current].turn - 1) & 1];
}
static void meet() {
    ++all[current].turn;
    pause(AT_WARP);
}
}  // namespace fibers

static inline void __syncwarp() { fibers::pause(fibers::AT_WARP); }
static inline void __syncthreads() { fibers::pause(fibers::AT_BLOCK); }
static inline bool __syncthreads_or(bool vote) {
    fibers::all[fibers::current].vote = vote;
    __syncthreads();
    return fibers::blocks[blockIdx.x].votes;
}
static inline float __shfl_xor_sync(unsigned, float v, int mask) {
    fibers::show().value = v;
    fibers::meet();
    return fibers::shown((fibers::current & 31) ^ mask).value;
}
static inline float __uint_as_float(unsigned bits) { return __int_as_float((int)bits); }
static inline unsigned __float_as_uint(float x) { return (unsigned)__float_as_int(x); }
static inline int atomicExch(int* p, int v) {
    int old = *p;
    *p = v;
    return old;
}

// -- cluster.cuh

struct Four;
static inline void bar_init(long long* bar, int arrivals) {
    fibers::Bar fresh = {0, (unsigned char)arrivals, (unsigned char)arrivals, 0, 0};
    memcpy(bar, &fresh, 8);
}
static inline void bar_publish() {}
static inline void arrive(fibers::Bar* b) {
    if (b->arrivals == 0) {
        fprintf(stderr, "more arrivals at a barrier than it expects\n");
        abort();
    }
    --b->arrivals;
    fibers::settle(b);
}
static inline void bar_expect(long long* bar, unsigned bytes) {
    auto* b = (fibers::Bar*)bar;
    b->bytes += bytes;
    arrive(b);
}
static inline bool bar_try(long long* bar, int parity) {
    auto* b = (fibers::Bar*)bar;
    if (b->phase != parity) return true;
    fibers::pause(fibers::SPINS);
    return b->phase != parity;
}

static inline char* place_in(const void* p, int rank);
static inline void bar_arrive(long long* bar) { arrive((fibers::Bar*)bar); }

// The same place in the shared memory of another block of the cluster.
static inline char* place_in(const void* p, int rank) {
    using namespace fibers;
    int block = blockIdx.x / cluster * cluster + rank;
    size_t offset = (const char*)p - (const char*)shared_memory;
    if (rank < 0 || rank >= cluster || offset >= blocks[blockIdx.x].memory.size() * 16) {
        fprintf(stderr, "no such place in the cluster: block %d, offset %zu\n", rank, offset);
        abort();
    }
    return (char*)blocks[block].memory.data() + offset;
}
static inline float read_from(const float* p, int block) { return *(const float*)place_in(p, block); }
static inline void check_copy(const void* to, const void* from, unsigned bytes) {
    if (((uintptr_t)to | (uintptr_t)from | bytes) % 16 || bytes == 0) {
        fprintf(stderr, "a copy of %u bytes is not aligned\n", bytes);
        abort();
    }
}
template <class F>
static inline void push_four(F* to, F v, long long* bar, int block) {
    check_copy(to, to, 16);
    fibers::Copy copy = {place_in(to, block), nullptr, 16, (long long*)place_in(bar, block)};
    memcpy(copy.value, &v, 16);
    fibers::copies.push_back(copy);
}
static inline void load_to(void* to, const void* from, unsigned bytes, long long* bar) {
    check_copy(to, from, bytes);
    fibers::copies.push_back({to, from, bytes, bar});
}
static inline void fence_copies() {}
static inline void cluster_sync() { fibers::pause(fibers::AT_CLUSTER); }
static inline int load_acquire(const int* p) {
    fibers::pause(fibers::SPINS);
    return *p;
}
static inline void add_release(int* p, int v) { *p += v; }
static inline long long nanoseconds() { return fibers::passes; }
#define load_stream(p) (*(const Four*)(p))
template <class F>
static inline F load_relaxed(const F* p) {
    const int* words = (const int*)p;
    bool there = words[0] != -1 && words[1] != -1 && words[2] != -1 && words[3] != -1;
    if (!there) fibers::pause(fibers::SPINS);  // others go on
    return *p;
}
template <class F>
static inline void store_relaxed(F* p, F v) {
    check_copy(p, p, 16);
    *p = v;
}
static inline void store_word(unsigned* p, unsigned v) { *p = v; }
static inline void prefetch_line(const void*) {}
static inline void fence_device() {}

#if DATA != 0
template <class F>
static inline void multiply(float* d, F a, const unsigned* b) {
    unsigned mine[6] = {a.x, a.y, a.z, a.w, b[0], b[1]};
    memcpy(fibers::show().words, mine, sizeof mine);
    fibers::meet();
    int lane = fibers::current & 31;
    for (int i = 0; i < 4; ++i) {
        int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; ++k) {
            const auto& of_a = fibers::shown(row % 8 * 4 + k % 8 / 2);
            const auto& of_b = fibers::shown(column * 4 + k % 8 / 2);
            unsigned va = of_a.words[row / 8 + 2 * (k / 8)], vb = of_b.words[4 + k / 8];
            sum += k % 2 ? high_of(va) * high_of(vb) : low_of(va) * low_of(vb);
        }
        d[i] += sum;
    }
}

template <int COUNT>
static inline void load_matrices(unsigned* v, const void* row) {
    using namespace fibers;
    size_t offset = (const char*)row - (const char*)shared_memory, end = blocks[blockIdx.x].memory.size() * 16;
    int lane = current & 31;
    if (lane < 8 * COUNT && (offset % 16 || offset + 16 > end)) {
        fprintf(stderr, "a matrix row at %zu of %zu bytes\n", offset, end);
        abort();
    }
    show().row = row;
    meet();
    for (int i = 0; i < COUNT; ++i) memcpy(&v[i], (const char*)shown(8 * i + lane / 4).row + lane % 4 * 4, 4);
}
#endif

#define EMULATOR_ENTRY                                                                                      \
    static void (*entry)(const Args);                                                                       \
    static const Args* arguments;                                                                           \
    static void start_fiber() {                                                                             \
        entry(*arguments);                                                                                  \
        fibers::pause(fibers::DONE);                                                                        \
    }                                                                                                       \
    /* `together` blocks run at a time. */                                                                  \
    extern "C" void emulate(void (*kernel)(const Args), int blocks, int together, int cluster, int threads,  \
                            int bytes, int late, const Args* p) {                                           \
        using namespace fibers;                                                                             \
        entry = kernel, arguments = p;                                                                      \
        fibers::threads = threads, fibers::cluster = cluster, copies.clear();                               \
        size_t count = (size_t)std::min(blocks, together) * threads;                                        \
        if (count > stack_count) {                                                                          \
            stacks = (char*)mmap(0, count * STACK, PROT_READ | PROT_WRITE,                                  \
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);                       \
            stack_count = count;                                                                            \
        }                                                                                                   \
        fibers::blocks.resize(blocks);                                                                      \
        for (int first = 0; first < blocks; first += together) {                                            \
            int now = std::min(together, blocks - first);                                                   \
            all.resize((size_t)now * threads);                                                              \
            for (int b = 0; b < now; ++b) {                                                                 \
                auto& memory = fibers::blocks[first + b].memory;                                            \
                memory.resize((bytes + 15) / 16);                                                           \
                memset(memory.data(), 0xff, memory.size() * 16);                                            \
            }                                                                                               \
            for (size_t i = 0; i < all.size(); ++i) {                                                       \
                auto& f = all[i];                                                                           \
                f.block = first + i / threads, f.thread = i % threads, f.turn = f.vote = 0;                 \
                f.wait = RUNS, f.started = false;                                                           \
                getcontext(&f.context);                                                                     \
                f.context.uc_stack.ss_sp = stacks + i * STACK;                                              \
                f.context.uc_stack.ss_size = STACK;                                                         \
                makecontext(&f.context, start_fiber, 0);                                                    \
            }                                                                                               \
            run(first, now, late);                                                                          \
            for (int b = 0; b < now; ++b) std::vector<float4>().swap(fibers::blocks[first + b].memory);     \
        }                                                                                                   \
    }
