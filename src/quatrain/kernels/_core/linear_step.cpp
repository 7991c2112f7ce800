// y = W x + add for up to 8 vectors. Each row of W is read once, by one thread, and met with every vector; several rows
// go together so that their loads overlap, and the rows after them are fetched meanwhile.
#include <vector>

#include "abi.h"
#include "lanes.h"
#include "parallel.h"

namespace {

struct Arguments {
    const void *x, *w, *add;
    void* y;
    int64_t dtype, B, M, K, x_row, w_row, add_row, y_row, threads;
};
#ifndef QT_AHEAD
#define QT_AHEAD 2048
#endif
constexpr int64_t AHEAD = QT_AHEAD;        // bytes of each row that are fetched in advance
constexpr int64_t ALONE = 1 << 15;     // bytes of W below which one thread is faster than two
constexpr int64_t PIECE = 1 << 19;     // bytes of W that a thread takes at a time: a late one then holds nobody up long

// bfloat16 comes apart without a shuffle: the even and the odd numbers of two vectors, widened.
QT_INLINE void halves(const bf16* p, F& even, F& odd) {
    U both;
    std::memcpy(&both, p, sizeof both);
    even = (F)(both << 16);
    odd = (F)(both & 0xffff0000u);
}

// Where to fetch from while column k is multiplied: so far ahead in the same rows, and past their end in the next ones.
template <class T> struct Ahead {
    const T *here, *next;
    int64_t turn;
    Ahead(const T* w, int64_t w_row, int64_t K, int64_t rows, int64_t left) {
        const int64_t far = AHEAD / int64_t(sizeof(T)), blocks = far / K;
        turn = K - far % K;
        here = w + (blocks <= left ? blocks : 0) * rows * w_row + far % K;
        next = w + (blocks < left ? blocks + 1 : 0) * rows * w_row + far % K - K;
        if (blocks >= left) next += K;  // nothing is left to fetch: anything that is there
    }
    const T* operator()(int64_t k) const { return (k < turn ? here : next) + k; }
};

template <int R, int B> QT_INLINE void multiply(const float* x, int64_t x_row, const float* w, int64_t w_row, int64_t K,
                                                const Ahead<float>& ahead, F (&y)[R][B]) {
    int64_t k = 0;
    for (; k + W <= K; k += W) {
        const float* next = ahead(k);
        F v[B];
        for (int b = 0; b < B; ++b) v[b] = load(x + b * x_row + k);
        for (int r = 0; r < R; ++r) {
            __builtin_prefetch(next + r * w_row);
            const F row = load(w + r * w_row + k);
            for (int b = 0; b < B; ++b) y[r][b] += row * v[b];
        }
    }
    if (k == K) return;
    for (int r = 0; r < R; ++r) {
        const F row = load(w + r * w_row + k, K - k);
        for (int b = 0; b < B; ++b) y[r][b] += row * load(x + b * x_row + k, K - k);
    }
}

// x holds what `halves` made of the vectors, padded with 0.
template <int R, int B> QT_INLINE void multiply(const float* x, int64_t x_row, const bf16* w, int64_t w_row, int64_t K,
                                                const Ahead<bf16>& ahead, F (&y)[R][B]) {
    int64_t k = 0;
    for (; k + 2 * W <= K; k += 2 * W) {
        const bf16* next = ahead(k);
        for (int r = 0; r < R; ++r) {
            __builtin_prefetch(next + r * w_row);
            F even, odd;
            halves(w + r * w_row + k, even, odd);
            for (int b = 0; b < B; ++b) {
                y[r][b] += even * load(x + b * x_row + k);
                y[r][b] += odd * load(x + b * x_row + k + W);
            }
        }
    }
    if (k == K) return;
    for (int r = 0; r < R; ++r) {
        bf16 rest[2 * W] = {};
        std::memcpy(rest, w + r * w_row + k, (K - k) * sizeof(bf16));
        F even, odd;
        halves(rest, even, odd);
        for (int b = 0; b < B; ++b) y[r][b] += even * load(x + b * x_row + k) + odd * load(x + b * x_row + k + W);
    }
}

template <class T, int R, int B> QT_INLINE void block(const Arguments& a, const float* x, int64_t x_row, int64_t m,
                                                      int64_t end) {
    F y[R][B] = {};
    const T* w = static_cast<const T*>(a.w) + m * a.w_row;
    multiply<R, B>(x, x_row, w, a.w_row, a.K, Ahead<T>(w, a.w_row, a.K, R, (end - m) / R - 1), y);
    for (int r = 0; r < R; ++r) {
        for (int b = 0; b < B; ++b) {
            float one = sum(y[r][b]);
            if (a.add) one += get(static_cast<const T*>(a.add) + b * a.add_row + m + r);
            set(static_cast<T*>(a.y) + b * a.y_row + m + r, one);
        }
    }
}

template <class T, int B> void span(const Arguments& a, const float* x, int64_t x_row, int64_t m, int64_t end) {
    constexpr int R = W == 16 ? (B <= 6 ? 4 : 2) : (B <= 2 ? 4 : B <= 4 ? 2 : 1);  // as registers allow
    for (; m + R <= end; m += R) block<T, R, B>(a, x, x_row, m, end);
    for (; m < end; ++m) block<T, 1, B>(a, x, x_row, m, end);
}

template <class T> void rows(const Arguments& a, const float* x, int64_t x_row, int64_t m, int64_t end) {
    switch (a.B) {
        case 1: return span<T, 1>(a, x, x_row, m, end);
        case 2: return span<T, 2>(a, x, x_row, m, end);
        case 3: return span<T, 3>(a, x, x_row, m, end);
        case 4: return span<T, 4>(a, x, x_row, m, end);
        case 5: return span<T, 5>(a, x, x_row, m, end);
        case 6: return span<T, 6>(a, x, x_row, m, end);
        case 7: return span<T, 7>(a, x, x_row, m, end);
        case 8: return span<T, 8>(a, x, x_row, m, end);
    }
}

const float* apart(const Arguments& a, int64_t x_row, std::vector<float>& out) {
    if (int64_t(out.size()) < x_row * a.B) out.resize(x_row * a.B);
    for (int64_t b = 0; b < a.B; ++b) {
        const bf16* x = static_cast<const bf16*>(a.x) + b * a.x_row;
        for (int64_t k = 0; k < a.K; k += 2 * W) {
            bf16 part[2 * W] = {};
            std::memcpy(part, x + k, (a.K - k < 2 * W ? a.K - k : 2 * W) * sizeof(bf16));
            F even, odd;
            halves(part, even, odd);
            store(&out[b * x_row + k], even);
            store(&out[b * x_row + k + W], odd);
        }
    }
    return out.data();
}

template <class T> void run(const Arguments& a, const float* x, int64_t x_row) {
    const int64_t bytes = a.M * a.K * int64_t(sizeof(T));
    const int64_t threads = bytes < ALONE ? 1 : a.threads, blocks = (a.M + 7) / 8;
    const int64_t pieces = threads == 1 ? 1 : threads * ((bytes / threads + PIECE - 1) / PIECE);
    quatrain::parallel_for(pieces, threads, [&](int64_t i) {
        const int64_t end = blocks * (i + 1) / pieces * 8;
        rows<T>(a, x, x_row, blocks * i / pieces * 8, end < a.M ? end : a.M);
    });
}

}  // namespace

extern "C" QT_EXPORT int qt_linear_step(const int64_t* arguments) {
    const Arguments& a = *reinterpret_cast<const Arguments*>(arguments);
    if (a.B < 1 || a.B > 8) return 1;
    if (a.dtype == QT_F32) {
        run<float>(a, static_cast<const float*>(a.x), a.x_row);
    } else if (a.dtype == QT_BF16) {
        thread_local std::vector<float> scratch;
        const int64_t x_row = (a.K + 2 * W - 1) / (2 * W) * (2 * W);
        run<bf16>(a, apart(a, x_row, scratch), x_row);
    } else {
        return 2;
    }
    return 0;
}
