// Tiles: a few time steps of one vector of channels, copied from tensors of any dtype and stride, and scratch memory.
#pragma once
#include <cstdlib>

#include "abi.h"
#include "simd.h"

namespace quatrain {

// Memory that a thread keeps from call to call: touching fresh pages costs more than the arithmetic.
class Scratch {
  public:
    ~Scratch() { std::free(base_); }
    void reset(int64_t bytes) {
        bytes = (bytes + 4095) / 4096 * 4096;
        if (bytes > size_) {
            std::free(base_);
            base_ = static_cast<char*>(std::aligned_alloc(4096, size_t(bytes)));
            size_ = base_ ? bytes : 0;
        }
        used_ = 0;
    }
    template <class S> S* take(int64_t count) {
        S* p = reinterpret_cast<S*>(base_ + used_);
        used_ += padded<S>(count);
        return p;
    }
    // Five lines more than asked for: arrays whose addresses agree modulo 4096 make loads wait for each other's stores.
    template <class S> static int64_t padded(int64_t count) { return (count * int64_t(sizeof(S)) + 63) / 64 * 64 + 320; }

  private:
    char* base_ = nullptr;
    int64_t size_ = 0, used_ = 0;
};

template <class S, class F> QT_INLINE void with_dtype(int64_t dtype, const F& f) {
    switch (dtype) {
        case QT_F32: return f(static_cast<float*>(nullptr));
        case QT_F64: return f(static_cast<double*>(nullptr));
        case QT_BF16: return f(static_cast<BF16*>(nullptr));
        case QT_F16: return f(static_cast<F16*>(nullptr));
    }
}

// One number of a tensor by its last two indices.
template <class S> S at(const QtTensor& x, int64_t i, int64_t j) {
    S value = 0;
    with_dtype<S>(x.dtype, [&](auto* type) {
        value = get<S>(static_cast<decltype(type)>(x.data) + i * x.stride[2] + j * x.stride[3]);
    });
    return value;
}
template <class S> void set(const QtTensor& x, int64_t i, int64_t j, S value) {
    with_dtype<S>(x.dtype, [&](auto* type) {
        put(static_cast<decltype(type)>(x.data) + i * x.stride[2] + j * x.stride[3], value);
    });
}

// Rows [t0, t0 + steps) of x (.., B, T, E) at channels [e0, e0 + width), width at most a vector, into out [steps][lanes].
// Lanes beyond the width are 0.
template <class S> void load_rows(const QtTensor& x, int64_t b, int64_t t0, int64_t steps, int64_t e0, int width, S* out) {
    constexpr int W = lanes<S>;
    with_dtype<S>(x.dtype, [&](auto* type) {
        const auto* p = static_cast<decltype(type)>(x.data) + b * x.stride[1] + t0 * x.stride[2] + e0 * x.stride[3];
        const int64_t step = x.stride[2], next = x.stride[3];
        if (width == W && next == 1) {
            for (int64_t t = 0; t < steps; ++t, p += step) store(out + t * W, load_as<S>(p));
            return;
        }
        for (int64_t t = 0; t < steps; ++t, p += step)
            for (int l = 0; l < W; ++l) out[t * W + l] = l < width ? get<S>(p + l * next) : S(0);
    });
}
template <class S>
void store_rows(const QtTensor& x, int64_t b, int64_t t0, int64_t steps, int64_t e0, int width, const S* in) {
    constexpr int W = lanes<S>;
    with_dtype<S>(x.dtype, [&](auto* type) {
        auto* p = static_cast<decltype(type)>(x.data) + b * x.stride[1] + t0 * x.stride[2] + e0 * x.stride[3];
        const int64_t step = x.stride[2], next = x.stride[3];
        if (width == W && next == 1) {
            for (int64_t t = 0; t < steps; ++t, p += step) store_as<S>(p, load(in + t * W));
            return;
        }
        for (int64_t t = 0; t < steps; ++t, p += step)
            for (int l = 0; l < width; ++l) put(p + l * next, in[t * W + l]);
    });
}
template <class S> void zero_rows(const QtTensor& x, int64_t b, int64_t t0, int64_t t1, int64_t e0, int width) {
    const S zeros[lanes<S>] = {};
    for (int64_t t = t0; t < t1; ++t) store_rows(x, b, t, 1, e0, width, zeros);
}

// Rows of a map (B, T, G, N) of one group into out [steps][n], dense.
template <class S> void load_map(const QtTensor& x, int64_t b, int64_t t0, int64_t steps, int64_t g, int64_t n, S* out) {
    with_dtype<S>(x.dtype, [&](auto* type) {
        const auto* p = static_cast<decltype(type)>(x.data) + b * x.stride[0] + t0 * x.stride[1] + g * x.stride[2];
        const int64_t step = x.stride[1], next = x.stride[3];
        for (int64_t t = 0; t < steps; ++t, p += step) {
            S* row = out + t * n;
            int64_t i = 0;
            if (next == 1)
                for (; i + lanes<S> <= n; i += lanes<S>) store(row + i, load_as<S>(p + i));
            for (; i < n; ++i) row[i] = get<S>(p + i * next);
        }
    });
}

// (E, N) values of up to a vector of channels as out [n][lanes]; lanes beyond the width are 0. x (.., S, E, N).
template <class S> void load_state(const QtTensor& x, int64_t s, int64_t e0, int width, int64_t n, S* out) {
    constexpr int W = lanes<S>;
    with_dtype<S>(x.dtype, [&](auto* type) {
        const auto* p = static_cast<decltype(type)>(x.data) + s * x.stride[1] + e0 * x.stride[2];
        for (int64_t i = 0; i < n; ++i)
            for (int l = 0; l < W; ++l) out[i * W + l] = l < width ? get<S>(p + l * x.stride[2] + i * x.stride[3]) : S(0);
    });
}
template <class S> void store_state(const QtTensor& x, int64_t s, int64_t e0, int width, int64_t n, const S* in) {
    constexpr int W = lanes<S>;
    with_dtype<S>(x.dtype, [&](auto* type) {
        auto* p = static_cast<decltype(type)>(x.data) + s * x.stride[1] + e0 * x.stride[2];
        for (int l = 0; l < width; ++l)
            for (int64_t i = 0; i < n; ++i) put(p + l * x.stride[2] + i * x.stride[3], in[i * W + l]);
    });
}

}  // namespace quatrain
