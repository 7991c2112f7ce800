// y = weight x / sqrt(mean(x^2) + eps), one row after the other.
#include "abi.h"
#include "lanes.h"
#include "parallel.h"

namespace {

struct Arguments {
    const void *x, *weight;
    void* y;
    int64_t dtype, weight_dtype, rows, D, threads;
    double eps;
};
constexpr int64_t ALONE = 1 << 15;  // numbers below which one thread is faster than two

template <class T, class P> void normalise(const T* x, const P* weight, T* y, int64_t D, double eps) {
    F first{}, second{};
    int64_t i = 0;
    for (; i + 2 * W <= D; i += 2 * W) {
        const F u = load(x + i), v = load(x + i + W);
        first += u * u;
        second += v * v;
    }
    for (; i < D; i += W) {
        const F u = load(x + i, D - i);
        first += u * u;
    }
    const F scale = all(float(1 / std::sqrt(sum(first + second) / double(D) + eps)));
    for (i = 0; i < D; i += W) store(y + i, load(x + i, D - i) * scale * load(weight + i, D - i), D - i);
}

template <class T, class P> void run(const Arguments& a) {
    const int64_t pieces = a.rows * a.D < ALONE ? 1 : a.threads;
    quatrain::parallel_for(pieces, a.threads, [&](int64_t i) {
        for (int64_t row = a.rows * i / pieces; row < a.rows * (i + 1) / pieces; ++row)
            normalise(static_cast<const T*>(a.x) + row * a.D, static_cast<const P*>(a.weight),
                      static_cast<T*>(a.y) + row * a.D, a.D, a.eps);
    });
}

}  // namespace

extern "C" QT_EXPORT int qt_rms_norm(const int64_t* arguments) {
    const Arguments& a = *reinterpret_cast<const Arguments*>(arguments);
    if (a.dtype == QT_F32 && a.weight_dtype == QT_F32) run<float, float>(a);
    else if (a.dtype == QT_BF16 && a.weight_dtype == QT_BF16) run<bf16, bf16>(a);
    else if (a.dtype == QT_BF16 && a.weight_dtype == QT_F32) run<bf16, float>(a);
    else return 1;
    return 0;
}
