// Attention of one query per sequence, and the cache of a run of steps that grows in place.
#include "attention.h"

namespace {

struct Append {
    const void* qkv;  // (B, (H + 2 G) K), dense
    void *k, *v;      // (B, C, G, K), dense
    void* q;          // (B, H, K), dense
    int64_t *position, *count, *held;
    int64_t dtype, B, H, G, K, C;
    double base;  // of rotary positions; 0: none
};

template <class T> void append(const Append& a) {
    for (int64_t b = 0; b < a.B; ++b) {
        const int64_t at = (b * a.C + a.count[b] % a.C) * a.G * a.K;
        place(static_cast<const T*>(a.qkv) + b * (a.H + 2 * a.G) * a.K, static_cast<T*>(a.q) + b * a.H * a.K,
              static_cast<T*>(a.k) + at, static_cast<T*>(a.v) + at, a.H, a.G, a.K, a.base, a.position[b]);
        a.position[b] += 1;
        a.count[b] += 1;
        a.held[b] = std::min(a.count[b], a.C);
    }
}

}  // namespace

extern "C" QT_EXPORT int qt_attention_step(const int64_t* arguments) {
    const Attention& a = *reinterpret_cast<const Attention*>(arguments);
    if (a.dtype == QT_F32) run<float>(a);
    else if (a.dtype == QT_BF16) run<bf16>(a);
    else return 1;
    return 0;
}

extern "C" QT_EXPORT int qt_attention_append(const int64_t* arguments) {
    const Append& a = *reinterpret_cast<const Append*>(arguments);
    if (a.dtype == QT_F32) append<float>(a);
    else if (a.dtype == QT_BF16) append<bf16>(a);
    else return 1;
    return 0;
}
