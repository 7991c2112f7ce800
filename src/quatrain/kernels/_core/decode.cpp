// One token without Python in between: calls recorded once, and the small steps around the products.
#include "abi.h"
#include "lanes.h"

namespace {

struct Tape {
    int64_t count;
    struct {
        int (*function)(const int64_t*);
        const int64_t* arguments;
    } call[1];
};
struct Embed {
    const int64_t* token;
    const char* table;
    char* y;
    int64_t B, table_row, y_row, bytes;
};
struct Told {
    const void *x, *table;
    void* y;
    const int64_t* position;
    int64_t dtype, B, D, most;
};
struct Gate {
    const void *gate, *up;
    void* y;
    int64_t dtype, count;
};

struct Copy {
    const void* source;
    void* target;
    int64_t bytes;
};
struct Sum {
    const void* x;
    void* into;
    int64_t dtype, count;
};
struct Widen {
    const void* source;
    float* target;
    int64_t count;
};

template <class T> void add(const Sum& a) {
    const T* x = static_cast<const T*>(a.x);
    T* into = static_cast<T*>(a.into);
    for (int64_t i = 0; i < a.count; i += W)
        store(into + i, load(into + i, a.count - i) + load(x + i, a.count - i), a.count - i);
}

template <class T> void gated(const Gate& a) {
    const T *gate = static_cast<const T*>(a.gate), *up = static_cast<const T*>(a.up);
    T* y = static_cast<T*>(a.y);
    for (int64_t i = 0; i < a.count; i += W)
        store(y + i, silu(load(gate + i, a.count - i)) * load(up + i, a.count - i), a.count - i);
}

template <class T> void told(const Told& a) {
    for (int64_t b = 0; b < a.B; ++b) {
        const int64_t at = a.position[b] < a.most ? a.position[b] : a.most - 1;
        const T *x = static_cast<const T*>(a.x) + b * a.D, *more = static_cast<const T*>(a.table) + at * a.D;
        for (int64_t i = 0; i < a.D; ++i) set(static_cast<T*>(a.y) + b * a.D + i, get(x + i) + get(more + i));
    }
}

}  // namespace

extern "C" {

QT_EXPORT int qt_tape(const int64_t* arguments) {
    const Tape& tape = *reinterpret_cast<const Tape*>(arguments);
    for (int64_t i = 0; i < tape.count; ++i)
        if (const int code = tape.call[i].function(tape.call[i].arguments)) return code;
    return 0;
}

QT_EXPORT int qt_copy(const int64_t* arguments) {
    const Copy& a = *reinterpret_cast<const Copy*>(arguments);
    std::memcpy(a.target, a.source, a.bytes);
    return 0;
}

QT_EXPORT int qt_widen(const int64_t* arguments) {  // bfloat16 to float
    const Widen& a = *reinterpret_cast<const Widen*>(arguments);
    const bf16* from = static_cast<const bf16*>(a.source);
    for (int64_t i = 0; i < a.count; i += W) store(a.target + i, load(from + i, a.count - i), a.count - i);
    return 0;
}

QT_EXPORT int qt_sum(const int64_t* arguments) {
    const Sum& a = *reinterpret_cast<const Sum*>(arguments);
    if (a.dtype == QT_F32) add<float>(a);
    else if (a.dtype == QT_BF16) add<bf16>(a);
    else return 1;
    return 0;
}

QT_EXPORT int qt_embed(const int64_t* arguments) {
    const Embed& a = *reinterpret_cast<const Embed*>(arguments);
    for (int64_t b = 0; b < a.B; ++b) std::memcpy(a.y + b * a.y_row, a.table + a.token[b] * a.table_row, a.bytes);
    return 0;
}

QT_EXPORT int qt_add_position(const int64_t* arguments) {
    const Told& a = *reinterpret_cast<const Told*>(arguments);
    if (a.dtype == QT_F32) told<float>(a);
    else if (a.dtype == QT_BF16) told<bf16>(a);
    else return 1;
    return 0;
}

QT_EXPORT int qt_silu_gate(const int64_t* arguments) {
    const Gate& a = *reinterpret_cast<const Gate*>(arguments);
    if (a.dtype == QT_F32) gated<float>(a);
    else if (a.dtype == QT_BF16) gated<bf16>(a);
    else return 1;
    return 0;
}
}
