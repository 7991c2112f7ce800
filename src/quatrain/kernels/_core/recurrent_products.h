// What the products of the recurrent scans are made of: working memory, a team of threads that meets at every step, packed
// weights, and the product of a few rows with a panel of them.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#endif
#if defined(QT_OPENMP)
#include <omp.h>
#else
#include <thread>
#endif

#include "parallel.h"
#include "recurrent_abi.h"
#include "recurrent_math.h"

namespace {

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// ---- memory

// Asks for large pages before memory is first touched: faults on 4 KiB pages cost more than the writes.
inline void large_pages(void* p, int64_t bytes) {
#if defined(__linux__)
    const uintptr_t size = uintptr_t(1) << 21;
    uintptr_t first = ((uintptr_t)p + size - 1) / size * size, last = ((uintptr_t)p + bytes) / size * size;
    if (p && last > first) madvise((void*)first, last - first, MADV_HUGEPAGE);
#endif
}

// Blocks of memory that were given back and wait to be taken again: memory that is touched for the first time costs more
// than the work on it. At most an eighth of the machine's memory waits; more than was in use at once never does.
class Pool {
  public:
    static Pool& shared() {
        static Pool& pool = *new Pool;  // never destroyed: threads may outlive the library's end
        return pool;
    }
    void* take(int64_t bytes) {
        bytes = round_up(bytes, page);
        {
            std::lock_guard<std::mutex> hold(lock_);
            size_t best = waiting_.size();
            for (size_t i = 0; i < waiting_.size(); ++i)
                if (waiting_[i].bytes >= bytes && waiting_[i].bytes <= bytes + bytes / 2 + 4 * page &&
                    (best == waiting_.size() || waiting_[i].bytes <= waiting_[best].bytes))
                    best = i;  // of like ones the last given: it may still be in the cache
            if (best < waiting_.size()) {
                const Block block = waiting_[best];
                waiting_.erase(waiting_.begin() + best);
                lent_.push_back(block);
                return block.data;
            }
        }
        void* p = std::aligned_alloc(size_t(page), size_t(bytes));
        if (!p) return nullptr;
        large_pages(p, bytes);
        std::lock_guard<std::mutex> hold(lock_);
        lent_.push_back({p, bytes});
        return p;
    }
    void give(void* p) {
        std::lock_guard<std::mutex> hold(lock_);
        for (size_t i = 0; i < lent_.size(); ++i) {
            if (lent_[i].data != p) continue;
            waiting_.push_back(lent_[i]);
            lent_.erase(lent_.begin() + i);
            break;
        }
        int64_t sum = 0;
        for (const Block& block : waiting_) sum += block.bytes;
        const int64_t most = int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(sysconf(_SC_PAGESIZE)) / 8;
        while (sum > most) {  // the longest waiting first
            sum -= waiting_.front().bytes;
            std::free(waiting_.front().data);
            waiting_.erase(waiting_.begin());
        }
    }

  private:
    static constexpr int64_t page = int64_t(1) << 21;
    struct Block {
        void* data;
        int64_t bytes;
    };
    std::mutex lock_;
    std::vector<Block> waiting_, lent_;
};

// Working memory of one call.
class Workspace {
  public:
    explicit Workspace(int64_t bytes) : data_((char*)Pool::shared().take(bytes + 16 * 64)), next_(data_) {}  // for alignment
    ~Workspace() {
        if (data_) Pool::shared().give(data_);
    }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    explicit operator bool() const { return data_ != nullptr; }
    template <class T> T* get(int64_t count) {
        T* p = (T*)next_;
        next_ += round_up(count * int64_t(sizeof(T)), 64);
        return p;
    }

  private:
    char *data_, *next_;
};

// ---- threads

// Threads that wait for each other at every step. Waiting is spinning, for a step lasts microseconds.
class Team {
  public:
    int size = 1;
    void meet() {
        if (size == 1) return;
        const int now = meetings_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            meetings_.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; meetings_.load(std::memory_order_acquire) == now;) {
            if (++spins > 20000) sched_yield();  // more threads than processors
#if defined(__x86_64__)
            else _mm_pause();
#endif
        }
    }

  private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> meetings_{0};
};

// body(team, index) on up to `threads` threads, all at once.
template <class Body> void with_team(int threads, Body body) {
    Team team;
    if (threads <= 1 || getpid() != quatrain::loaded_by) return body(team, 0);
#if defined(QT_OPENMP)
#pragma omp parallel num_threads(threads) firstprivate(body)
    {
#pragma omp single
        team.size = omp_get_num_threads();
        body(team, omp_get_thread_num());
    }
#else
    team.size = threads;
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back([&team, body, i]() mutable { body(team, i); });
    body(team, 0);
    for (std::thread& other : others) other.join();
#endif
}

// Part `index` of `parts` of [0, count).
struct Range { int64_t first, last; };
inline Range part(int64_t count, int parts, int index) { return {count * index / parts, count * (index + 1) / parts}; }

// ---- products

constexpr int most_rows = 32;  // that one call of multiply takes
#if QT_BYTES == 32
constexpr int rows_at_once(int vectors) { return vectors == 4 ? 3 : 4; }
#else
constexpr int rows_at_once(int vectors) { return vectors == 4 ? 6 : 8; }
#endif

// The next rows of n to take together, from `first` on: evenly, no tile nearly empty.
template <int V> static inline int64_t balanced(int64_t n, int64_t first) {
    int64_t tiles = (n + rows_at_once(V) - 1) / rows_at_once(V), now = first * tiles / n + 1;
    while (now < tiles && n * now / tiles <= first) ++now;
    return n * now / tiles - first;
}

// out (n, V vectors) = a (n, depth) panel, for at most as many rows as a tile has.
template <class P, int V>
QT_INLINE void by_rows(int64_t n, const typename P::Operand* a, int64_t row, const typename P::Operand* panel, int64_t depth,
                       typename P::Compute* out, const char* ahead) {
    constexpr int most = rows_at_once(V);
    if (n == 1) P::template tile<1, V>(a, row, panel, depth, out, ahead);
    if (n == 2) P::template tile<2, V>(a, row, panel, depth, out, ahead);
    if (n == 3) P::template tile<3, V>(a, row, panel, depth, out, ahead);
    if constexpr (most >= 4) if (n == 4) P::template tile<4, V>(a, row, panel, depth, out, ahead);
    if constexpr (most >= 5) if (n == 5) P::template tile<5, V>(a, row, panel, depth, out, ahead);
    if constexpr (most >= 6) if (n == 6) P::template tile<6, V>(a, row, panel, depth, out, ahead);
    if constexpr (most >= 7) if (n == 7) P::template tile<7, V>(a, row, panel, depth, out, ahead);
    if constexpr (most >= 8) if (n == 8) P::template tile<8, V>(a, row, panel, depth, out, ahead);
}

// Operands in the compute type.
template <class T> struct Plain {
    using Compute = T;
    using Operand = T;
    static constexpr int together = 1;  // depth of one instruction
    static constexpr int pad = lanes<T>;  // width of the state is rounded up to a multiple
    template <int V> static int64_t rows(int64_t n, int64_t first) { return balanced<V>(n, first); }
    template <int V> static QT_INLINE void multiply(int64_t n, int64_t, const T* a, int64_t row, const T* panel, int64_t depth, T* out, const char* ahead) {
        by_rows<Plain, V>(n, a, row, panel, depth, out, ahead);
    }
    static int64_t row(int64_t depth) { return depth + 64 / int64_t(sizeof(Operand)); }  // rows of one cache set are slow
    static int64_t slice(int64_t depth) { return depth / together * 64; }  // bytes that a tile asks for ahead
    static void begin() {}
    static void end() {}
    static QT_INLINE T pack(T x) { return x; }
    static QT_INLINE T pack(bf16 x) { return T(widen(x)); }
    static QT_INLINE void put(Operand* p, Vec<T> v) { store(p, v); }
    // `ahead`: memory that is wanted soon; one line of it is asked for at each depth.
    template <int R, int V> static void tile(const T* a, int64_t row, const T* panel, int64_t depth, T* out, const char* ahead) {
        constexpr int U = R * V <= 8 ? 2 : 1;  // chains that hide the latency of an addition
        Vec<T> sum[U][R][V] = {};
        for (int64_t k = 0; k < depth; k += U)  // the padded width is even
#pragma GCC unroll 2
            for (int u = 0; u < U; ++u) {
                const T* here = panel + (k + u) * V * lanes<T>;
                if constexpr (R <= 2) {
#pragma GCC unroll 4
                    for (int j = 0; j < V; ++j) __builtin_prefetch((const char*)(here + j * lanes<T>) + 2048);
                } else {
                    __builtin_prefetch(ahead + (k + u) * 64, 0, 2);
                }
                Vec<T> b[V];
#pragma GCC unroll 4
                for (int j = 0; j < V; ++j) b[j] = load(here + j * lanes<T>);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    Vec<T> x = all<T>(a[r * row + k + u]);
#pragma GCC unroll 4
                    for (int j = 0; j < V; ++j) sum[u][r][j] += x * b[j];
                }
            }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) store(out + (r * V + j) * lanes<T>, U == 2 ? sum[0][r][j] + sum[U - 1][r][j] : sum[0][r][j]);
    }
};

// bfloat16 operands without an instruction for them: rounded, then kept in float32.
struct Rounded : Plain<float> {
    static QT_INLINE void put(float* p, Vec<float> v) { store(p, rounded_bf16(v)); }
};

#if defined(__AVX512BF16__)
// Pairs of bfloat16 operands, summed in float32.
struct Pairs {
    using Compute = float;
    using Operand = bf16;
    static constexpr int together = 2;
    static constexpr int pad = 32;  // width of the state is rounded up to a multiple
    template <int V> static int64_t rows(int64_t n, int64_t first) { return balanced<V>(n, first); }
    template <int V> static QT_INLINE void multiply(int64_t n, int64_t, const bf16* a, int64_t row, const bf16* panel, int64_t depth, float* out, const char* ahead) {
        by_rows<Pairs, V>(n, a, row, panel, depth, out, ahead);
    }
    static int64_t row(int64_t depth) { return depth + 64 / int64_t(sizeof(Operand)); }  // rows of one cache set are slow
    static int64_t slice(int64_t depth) { return depth / together * 64; }  // bytes that a tile asks for ahead
    static void begin() {}
    static void end() {}
    static QT_INLINE bf16 pack(bf16 x) { return x; }
    static QT_INLINE void put(bf16* p, Vec<float> v) { Data<float, bf16>::put(p, v); }
    template <int R, int V> static void tile(const bf16* a, int64_t row, const bf16* panel, int64_t depth, float* out, const char* ahead) {
        constexpr int U = R * V <= 8 ? 2 : 1;
        __m512 sum[U][R][V] = {};
        for (int64_t k = 0; k < depth; k += 2 * U)  // the padded width is a multiple of 32
#pragma GCC unroll 2
            for (int u = 0; u < U; ++u) {
                const bf16* here = panel + (k + 2 * u) * V * 16;
                if constexpr (R <= 2) {
#pragma GCC unroll 4
                    for (int j = 0; j < V; ++j) __builtin_prefetch((const char*)(here + j * 32) + 2048);
                } else {
                    __builtin_prefetch(ahead + (k / 2 + u) * 64, 0, 2);
                }
                __m512bh b[V];
#pragma GCC unroll 4
                for (int j = 0; j < V; ++j) b[j] = (__m512bh)_mm512_loadu_si512(here + j * 32);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    int32_t pair;
                    std::memcpy(&pair, a + r * row + k + 2 * u, 4);
                    __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
                    for (int j = 0; j < V; ++j) sum[u][r][j] = _mm512_dpbf16_ps(sum[u][r][j], x, b[j]);
                }
            }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j)
                _mm512_storeu_ps(out + (r * V + j) * 16, U == 2 ? _mm512_add_ps(sum[0][r][j], sum[U - 1][r][j]) : sum[0][r][j]);
    }
};
#endif

#if defined(__AVX512BF16__) && defined(__linux__)
#define QT_TILES __attribute__((target("amx-tile,amx-bf16")))
// The same panels through matrix tiles of 16 x 32 operands where there are rows enough.
struct Tiles : Pairs {
    static int64_t slice(int64_t depth) { return depth * 64; }
    static constexpr int64_t few = 3;  // rows up to which the vector unit is faster
    struct alignas(64) Config {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    QT_TILES static void begin() {
        Config config;
        __asm__ volatile("" ::"r"(&config) : "memory");  // the intrinsic says that it reads eight bytes only
        _tile_loadconfig(&config);
    }
    QT_TILES static void end() { _tile_release(); }
    template <int V> static int64_t rows(int64_t n, int64_t first) {
        return n <= few ? n - first : std::min<int64_t>(n - first, n - first > 16 ? 32 : 16);
    }
    template <int V>
    static QT_INLINE void multiply(int64_t n, int64_t all, const bf16* a, int64_t row, const bf16* panel, int64_t depth, float* out, const char* ahead) {
        if (all <= few) return by_rows<Pairs, V>(n, a, row, panel, depth, out, ahead);
        __asm__ volatile("" ::: "memory");  // nor does a tile's load say what it reads
        if (n > 16) {
            for (int j = 0; j + 2 <= V; j += 2) two_by_two<V>(a, row, panel + j * 32, depth, out + j * 16, ahead + j / 2 * 1024);
            if (V % 2) two_by_one<V>(a, row, panel + (V - 1) * 32, depth, out + (V - 1) * 16, ahead + V / 2 * 1024);
        } else if (n > 0) one_by_all<V>(a, row, panel, depth, out, ahead);
    }
    template <int V> QT_TILES static void two_by_two(const bf16* a, int64_t row, const bf16* panel, int64_t depth, float* out, const char* ahead) {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        for (int64_t k = 0; k < depth; k += 32) {
            _tile_loadd(4, a + k, row * 2);
            _tile_loadd(5, a + 16 * row + k, row * 2);
            _tile_loadd(6, panel + k * V * 16, V * 64);
            _tile_loadd(7, panel + k * V * 16 + 32, V * 64);
            for (int i = 0; i < 16; ++i) __builtin_prefetch(ahead + k * 64 + i * 64, 0, 2);
            _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, out, V * 64);
        _tile_stored(1, out + 16, V * 64);
        _tile_stored(2, out + 16 * V * 16, V * 64);
        _tile_stored(3, out + 16 * V * 16 + 16, V * 64);
    }
    template <int V> QT_TILES static void two_by_one(const bf16* a, int64_t row, const bf16* panel, int64_t depth, float* out, const char*) {
        _tile_zero(0); _tile_zero(2);
        for (int64_t k = 0; k < depth; k += 32) {
            _tile_loadd(4, a + k, row * 2);
            _tile_loadd(5, a + 16 * row + k, row * 2);
            _tile_loadd(6, panel + k * V * 16, V * 64);
            _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(2, 5, 6);
        }
        _tile_stored(0, out, V * 64);
        _tile_stored(2, out + 16 * V * 16, V * 64);
    }
    template <int V> QT_TILES static void one_by_all(const bf16* a, int64_t row, const bf16* panel, int64_t depth, float* out, const char*) {
        static_assert(V == 3 || V == 4);
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        for (int64_t k = 0; k < depth; k += 32) {
            const bf16* b = panel + k * V * 16;
            _tile_loadd(4, a + k, row * 2);
            _tile_loadd(5, b, V * 64);
            _tile_loadd(6, b + 32, V * 64);
            _tile_dpbf16ps(0, 4, 5);
            _tile_loadd(7, b + 64, V * 64);
            _tile_dpbf16ps(1, 4, 6);
            if constexpr (V == 4) _tile_loadd(5, b + 96, V * 64);
            _tile_dpbf16ps(2, 4, 7);
            if constexpr (V == 4) _tile_dpbf16ps(3, 4, 5);
        }
        _tile_stored(0, out, V * 64);
        _tile_stored(1, out + 16, V * 64);
        _tile_stored(2, out + 32, V * 64);
        if constexpr (V == 4) _tile_stored(3, out + 48, V * 64);
    }

    // Whether the processor has tiles and the system lends them: Linux does when a process asks.
    static bool granted() {
        static const bool answer = [] {
            unsigned a, b, c, d;
            if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
            return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
        }();
        return answer;
    }
};
#elif defined(__AVX512BF16__)
struct Tiles : Pairs {
    static bool granted() { return false; }
};
#endif

// Packed weights of one product, and the way rows go through it. A group is `Units` unit vectors of each of `Gates` gates.
template <class P, int Gates, int Units> struct Product {
    using A = typename P::Operand;
    using T = typename P::Compute;
    static constexpr int V = Gates * Units, L = lanes<T>;
    static constexpr int64_t sums = int64_t(most_rows) * V * L;  // working memory of one thread, in numbers
    int64_t vectors, depth;                                      // unit vectors in all; length of the sums
    A* packed = nullptr;
    int64_t groups() const { return (vectors + Units - 1) / Units; }
    int64_t panel() const { return depth * V * L; }
    int64_t size() const { return groups() * panel(); }

    // done(row, sum) for each of n rows: the group's products with the row's operands, `later` of them; 0 for the others.
    template <class Ahead, class Done>
    QT_INLINE void run(int64_t group, int64_t next, const A* operands, int64_t row, int64_t n, int64_t later, T* sum, Ahead ahead,
                       Done done) const {
        const A* weights = packed + group * panel();
        const char* soon = (const char*)(packed + next * panel());  // the panel of the group after, out of a farther cache
        const int64_t slice = P::slice(depth), end = panel() * int64_t(sizeof(A));
        int64_t asked = 0;
        for (int64_t first = 0; first < n;) {
            int64_t count = P::template rows<V>(n, first), with = std::max<int64_t>(0, std::min(count, later - first));
            for (int64_t r = 0; r < count; ++r) ahead(first + r);
            P::template multiply<V>(with, later, operands + first * row, row, weights, depth, sum, soon + asked);
            asked = asked + slice < end ? asked + slice : asked;
            for (int64_t r = with * V * L; r < count * V * L; ++r) sum[r] = 0;
            for (int64_t r = 0; r < count; ++r) done(first + r, sum + r * V * L);
            first += count;
        }
    }
};

// Weights (gates D, D), row by row, as the panels of a product over the padded width: V column vectors, depth after depth,
// `together` depths side by side. Column vector j of the panel becomes units [unit, unit + L) of one gate; depth is the state.
template <class P, class IO>
void pack_forward(const IO* weight, int64_t width, int64_t padded, typename P::Operand* panel, int V, int j, int64_t gate, int64_t unit) {
    using A = typename P::Operand;
    constexpr int L = lanes<typename P::Compute>, K = P::together;
    const IO* from = weight + (gate * width + unit) * width;
    const int64_t inside = std::min<int64_t>(L, width - unit);
    for (int64_t k = 0; k < padded; ++k) {
        A* to = panel + ((k / K * V + j) * L) * K + k % K;
        for (int64_t i = 0; i < L; ++i) to[i * K] = i < inside && k < width ? P::pack(from[i * width + k]) : A{};
    }
}
// The transposed weights: column vector j becomes units [unit, unit + L) of the state; depth is the units of `gates` gates.
template <class P, class IO>
void pack_backward(const IO* weight, int64_t width, int64_t padded, typename P::Operand* panel, int V, int j, int64_t first_gate,
                   int64_t gates, int64_t unit) {
    using A = typename P::Operand;
    constexpr int L = lanes<typename P::Compute>, K = P::together;
    const int64_t inside = std::min<int64_t>(L, width - unit);
    for (int64_t g = 0; g < gates; ++g)
        for (int64_t u = 0; u < padded; ++u) {
            const int64_t k = g * padded + u;
            A* to = panel + ((k / K * V + j) * L) * K + k % K;
            const IO* from = weight + ((first_gate + g) * width + u) * width + unit;
            for (int64_t i = 0; i < L; ++i) to[i * K] = i < inside && u < width ? P::pack(from[i]) : A{};
        }
}

// Rows of operands that are allocated: matrix tiles read whole ones.
inline int64_t operand_rows(int64_t rows) { return round_up(rows, most_rows); }

}  // namespace
