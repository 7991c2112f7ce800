// Attention of one query per sequence, and the cache that it reads. Keys are taken in blocks; a block's scores, maximum,
// weights and weighted values are made for one head after the other while the next block's keys are fetched. Long caches
// are cut into pieces for the threads, whose results are merged at the end (Dao et al., Flash-Decoding, 2023).
#pragma once
#include <algorithm>
#include <vector>

#include "abi.h"
#include "lanes.h"
#include "parallel.h"

namespace {

struct Attention {
    const void *q, *k, *v;
    void* y;  // (B, H, K), dense
    const int64_t *start, *length;
    int64_t dtype, B, H, K, S, G, window, causal;  // window 0: none
    int64_t q_row, q_head, k_row, k_key, k_head, v_row, v_key, v_head, threads;
    double scale;
};
constexpr int BLOCK = 32;             // keys
constexpr int64_t ALONE = 1 << 14;    // numbers of keys below which one thread is faster than two

// What a piece knows: for each head its weighted values (padded to whole vectors), largest score and sum of weights.
struct Piece {
    float *q, *values, *top, *total;
    static int64_t padded(int64_t K) { return (K + W - 1) / W * W; }
    static int64_t size(int64_t H, int64_t K) { return 2 * H * padded(K) + 2 * H; }
    Piece(float* memory, int64_t H, int64_t K)
        : q(memory), values(q + H * padded(K)), top(values + H * padded(K)), total(top + H) {}
};

// score_j = q k_j for n keys, several at once so that their sums overlap.
template <class T> QT_INLINE void scores(const float* q, const T* k, int64_t k_key, int64_t K, int n, float* score) {
    int j = 0;
    for (; j + 4 <= n; j += 4, k += 4 * k_key) {
        F s0{}, s1{}, s2{}, s3{};
        for (int64_t i = 0; i < K; i += W) {
            const F x = load(q + i);
            s0 += x * load(k + i, K - i);
            s1 += x * load(k + k_key + i, K - i);
            s2 += x * load(k + 2 * k_key + i, K - i);
            s3 += x * load(k + 3 * k_key + i, K - i);
        }
        score[j] = sum(s0), score[j + 1] = sum(s1), score[j + 2] = sum(s2), score[j + 3] = sum(s3);
    }
    for (; j < n; ++j, k += k_key) {
        F s{};
        for (int64_t i = 0; i < K; i += W) s += load(q + i) * load(k + i, K - i);
        score[j] = sum(s);
    }
}

template <class T> void attend(const Attention& a, int64_t b, int64_t from, int64_t to, const Piece& piece) {
    const int64_t width = Piece::padded(a.K), share = a.H / a.G;
    for (int64_t h = 0; h < a.H; ++h) {
        const T* q = static_cast<const T*>(a.q) + b * a.q_row + h * a.q_head;
        for (int64_t i = 0; i < width; ++i) piece.q[h * width + i] = i < a.K ? get(q + i) * float(a.scale) : 0;
        for (int64_t i = 0; i < width; ++i) piece.values[h * width + i] = 0;
        piece.top[h] = -INFINITY;
        piece.total[h] = 0;
    }
    const int64_t line = 64 / sizeof(T);
    for (int64_t at = from; at < to; at += BLOCK) {
        const int n = int(std::min<int64_t>(BLOCK, to - at)), next = int(std::min<int64_t>(BLOCK, to - at - n));
        for (int64_t h = 0; h < a.H; ++h) {
            const T* k = static_cast<const T*>(a.k) + b * a.k_row + at * a.k_key + h / share * a.k_head;
            const T* v = static_cast<const T*>(a.v) + b * a.v_row + at * a.v_key + h / share * a.v_head;
            if (h % share == 0)
                for (int j = 0; j < next; ++j)
                    for (int64_t i = 0; i < a.K; i += line) {
                        __builtin_prefetch(k + (BLOCK + j) * a.k_key + i);
                        __builtin_prefetch(v + (BLOCK + j) * a.v_key + i);
                    }
            alignas(64) float weight[BLOCK];
            scores(piece.q + h * width, k, a.k_key, a.K, n, weight);
            float top = piece.top[h];
            bool finite = true;
            for (int j = 0; j < n; ++j) {
                top = weight[j] > top ? weight[j] : top;
                finite = finite && weight[j] == weight[j];
            }
            for (int j = n; j < BLOCK; ++j) weight[j] = -INFINITY;
            F mass{};
            for (int j = 0; j < BLOCK; j += W) {
                const F w = exp(load(weight + j) - top);
                store(weight + j, w);
                mass += w;
            }
            const float keep = piece.top[h] == top ? 1.f : std::exp(piece.top[h] - top);
            piece.top[h] = top;
            piece.total[h] = finite ? piece.total[h] * keep + sum(mass) : NAN;
            float* y = piece.values + h * width;
            for (int64_t i = 0; i < a.K; i += W) {
                F even = load(y + i) * keep, odd{};
                int j = 0;
                for (; j + 2 <= n; j += 2) {
                    even += load(v + j * a.v_key + i, a.K - i) * weight[j];
                    odd += load(v + (j + 1) * a.v_key + i, a.K - i) * weight[j + 1];
                }
                if (j < n) even += load(v + j * a.v_key + i, a.K - i) * weight[j];
                store(y + i, even + odd);
            }
        }
    }
}

template <class T> void merge(const Attention& a, int64_t b, float* memory, int64_t pieces, int64_t size) {
    const int64_t width = Piece::padded(a.K);
    for (int64_t h = 0; h < a.H; ++h) {
        float top = -INFINITY, total = 0;
        for (int64_t i = 0; i < pieces; ++i) top = std::max(top, Piece(memory + i * size, a.H, a.K).top[h]);
        T* y = static_cast<T*>(a.y) + (b * a.H + h) * a.K;
        float* sum = Piece(memory, a.H, a.K).q + h * width;  // the queries are not needed any more
        std::fill(sum, sum + a.K, 0.f);
        for (int64_t i = 0; i < pieces; ++i) {
            const Piece piece(memory + i * size, a.H, a.K);
            if (piece.total[h] == 0) continue;  // saw nothing
            const float weight = piece.top[h] == top ? 1.f : std::exp(piece.top[h] - top);
            total += weight * piece.total[h];
            for (int64_t j = 0; j < a.K; ++j) sum[j] += weight * piece.values[h * width + j];
        }
        for (int64_t j = 0; j < a.K; ++j) set(y + j, total == 0 ? 0.f : sum[j] / total);
    }
}

template <class T> void run(const Attention& a) {
    thread_local std::vector<float> scratch;
    const int64_t threads = a.B * a.S * a.G * a.K < ALONE ? 1 : a.threads;
    const int64_t pieces = a.B >= 4 * threads ? 1 : threads, size = Piece::size(a.H, a.K);
    if (int64_t(scratch.size()) < a.B * pieces * size) scratch.resize(a.B * pieces * size);
    float* memory = scratch.data();
    quatrain::parallel_for(a.B * pieces, threads, [&](int64_t task) {
        const int64_t b = task / pieces, i = task % pieces;
        const int64_t position = a.start ? a.start[b] : a.S - 1;
        const int64_t low = a.window ? std::max<int64_t>(0, position - a.window + 1) : 0;
        int64_t high = std::clamp<int64_t>(a.length ? a.length[b] : a.S, 0, a.S);
        if (a.causal) high = std::min(high, position + 1);
        const int64_t count = std::max<int64_t>(0, high - low);
        attend<T>(a, b, low + count * i / pieces, low + count * (i + 1) / pieces, Piece(memory + task * size, a.H, a.K));
    });
    for (int64_t b = 0; b < a.B; ++b) merge<T>(a, b, memory + b * pieces * size, pieces, size);
}

// cos and sin of one position's angles. The layers of a model ask for the same ones in turn, so the last are kept.
struct Angles {
    std::vector<float> table;
    int64_t position = -1, half = 0;
    double base = 0;
    const float* of(int64_t at, int64_t pairs, double slowest) {  // cosines, then sines
        if (at == position && pairs == half && slowest == base) return table.data();
        table.resize(size_t(2 * pairs));
        for (int64_t i = 0; i < pairs; ++i) {  // in double: in float the angle at position 10^6 is wrong by 0.06
            const double angle = double(at) * std::pow(slowest, -double(i) / double(pairs));
            table[size_t(i)] = float(std::cos(angle));
            table[size_t(pairs + i)] = float(std::sin(angle));
        }
        position = at, half = pairs, base = slowest;
        return table.data();
    }
};

// Pairs (x_i, x_{i + K/2}) turned by their angles.
template <class T> void turn(const T* x, T* y, int64_t K, const float* cosine, const float* sine) {
    for (int64_t i = 0; i < K / 2; ++i) {
        const float first = get(x + i), second = get(x + K / 2 + i);
        set(y + i, first * cosine[i] - second * sine[i]);
        set(y + K / 2 + i, first * sine[i] + second * cosine[i]);
    }
}

// One token's projections to its query, key and value; all heads of each are dense.
template <class T> void place(const T* from, T* q, T* k, T* v, int64_t H, int64_t G, int64_t K, double base, int64_t position) {
    thread_local Angles angles;
    if (base > 0) {
        const float *cosine = angles.of(position, K / 2, base), *sine = cosine + K / 2;
        for (int64_t h = 0; h < H + G; ++h) turn(from + h * K, h < H ? q + h * K : k + (h - H) * K, K, cosine, sine);
    } else {
        std::copy(from, from + H * K, q);
        std::copy(from + H * K, from + (H + G) * K, k);
    }
    std::copy(from + (H + G) * K, from + (H + 2 * G) * K, v);
}

}  // namespace
