// A step of attention from a state that is a value. Its keys and values are the first columns of buffers with room behind
// them; a step writes into the next column, which no earlier state shows. That is right for the one state that ends where
// the buffer's writing ends, so a buffer counts its columns itself, in a header behind the last: it stays true through
// every copy of the memory. A state that may not write (an older one, a slice, memory of somebody else) is copied first.
#include <utility>

#include "attention.h"

namespace {

struct Header {
    int64_t magic;
    int64_t filled;  // columns written, counted from the buffer's first
    int64_t B, columns, row, dtype;
};
constexpr int64_t MAGIC = 0x7175617472616e6b;

struct Part {  // of a state: keys or values (B, S, G, K) somewhere in a storage
    char* storage;
    int64_t bytes, first, stride[4];  // first: element of the storage
};
struct Claim {
    const int64_t* position;  // (B,)
    int64_t dtype, B, S, G, K, keep;  // keep: most columns of a state, -1 for no limit
    Part k, v;
};
struct Room {
    const void *from_k, *from_v;  // (B, S, row), dense
    char *k, *v;                  // storages of `bytes`
    int64_t dtype, B, S, row, columns, bytes;
};
struct Extend {
    const void* qkv;  // (B, (H + 2 G) K), dense
    void *k, *v;      // (B, S + 1, G, K), the last column free; rows apart
    void *q, *y;      // (B, H, K), dense
    const int64_t* position;
    int64_t* after;
    int64_t dtype, B, H, G, K, S, k_row, v_row, threads;
    double base;  // of rotary positions; 0: none
};
enum { CLAIMED = 0, APART = 1, FULL = 2 };

int64_t size_of(int64_t dtype) { return dtype == QT_F32 ? 4 : 2; }

Header* header_of(char* storage, int64_t bytes) {
    return reinterpret_cast<Header*>(storage + (bytes - int64_t(sizeof(Header))) / 8 * 8);
}

// The header of a buffer whose columns end where this part ends; null where it is no such buffer, or full.
Header* ending(const Claim& a, const Part& part) {
    const int64_t row = a.G * a.K;
    if (part.bytes < int64_t(sizeof(Header)) + 8 || reinterpret_cast<uintptr_t>(part.storage) % 8) return nullptr;
    Header* header = header_of(part.storage, part.bytes);
    if (header->magic != MAGIC || header->B != a.B || header->row != row || header->dtype != a.dtype) return nullptr;
    const int64_t columns = header->columns, *stride = part.stride;
    const bool like = (a.B == 1 || stride[0] == columns * row) && (a.S <= 1 || stride[1] == row) &&
                      (a.G == 1 || stride[2] == a.K) && (a.K == 1 || stride[3] == 1);
    if (!like || part.first % row || part.first / row + a.S != header->filled || header->filled >= columns) return nullptr;
    return part.first + (a.B - 1) * columns * row + (a.S + 1) * row <= a.B * columns * row ? header : nullptr;
}

bool take(Header* header, int64_t filled) {
    return __atomic_compare_exchange_n(&header->filled, &filled, filled + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

template <class T> void extend(const Extend& a) {
    const int64_t width = (a.H + 2 * a.G) * a.K, column = a.S * a.G * a.K;
    for (int64_t b = 0; b < a.B; ++b) {
        place(static_cast<const T*>(a.qkv) + b * width, static_cast<T*>(a.q) + b * a.H * a.K,
              static_cast<T*>(a.k) + b * a.k_row + column, static_cast<T*>(a.v) + b * a.v_row + column, a.H, a.G, a.K,
              a.base, a.position[b]);
        a.after[b] = a.position[b] + 1;
    }
    Attention of{};
    of.q = a.q, of.k = a.k, of.v = a.v, of.y = a.y, of.dtype = a.dtype;
    of.B = a.B, of.H = a.H, of.K = a.K, of.S = a.S + 1, of.G = a.G;
    of.q_row = a.H * a.K, of.q_head = a.K;
    of.k_row = a.k_row, of.v_row = a.v_row, of.k_key = of.v_key = a.G * a.K, of.k_head = of.v_head = a.K;
    of.threads = a.threads, of.scale = 1 / std::sqrt(double(a.K));
    run<T>(of);
}

}  // namespace

extern "C" {

// CLAIMED: the next column of both buffers is the caller's. APART: the rows are not all at the position that S columns
// follow from. FULL: a buffer may not be written.
QT_EXPORT int qt_attention_claim(const int64_t* arguments) {
    const Claim& a = *reinterpret_cast<const Claim*>(arguments);
    const int64_t at = a.position[0], held = a.keep < 0 ? at : std::min(at, a.keep);
    if (at < 0 || held != a.S) return APART;
    for (int64_t b = 1; b < a.B; ++b)
        if (a.position[b] != at) return APART;
    Header *k = ending(a, a.k), *v = ending(a, a.v);
    if (!k || !v || k == v) return FULL;
    return take(k, a.k.first / (a.G * a.K) + a.S) && take(v, a.v.first / (a.G * a.K) + a.S) ? CLAIMED : FULL;
}

// Fill new buffers with the columns of a state, the next column claimed.
QT_EXPORT int qt_attention_room(const int64_t* arguments) {
    const Room& a = *reinterpret_cast<const Room*>(arguments);
    const int64_t size = size_of(a.dtype);
    for (const auto& [from, to] : {std::pair(a.from_k, a.k), std::pair(a.from_v, a.v)}) {
        for (int64_t b = 0; b < a.B; ++b)
            std::memcpy(to + b * a.columns * a.row * size, static_cast<const char*>(from) + b * a.S * a.row * size,
                        size_t(a.S * a.row * size));
        *header_of(to, a.bytes) = {MAGIC, a.S + 1, a.B, a.columns, a.row, a.dtype};
    }
    return 0;
}

QT_EXPORT int qt_attention_extend(const int64_t* arguments) {
    const Extend& a = *reinterpret_cast<const Extend*>(arguments);
    if (a.dtype == QT_F32) extend<float>(a);
    else if (a.dtype == QT_BF16) extend<bf16>(a);
    else return 1;
    return 0;
}
}
