// The plain C interface between Python (ctypes) and the core. Every argument structure is a row of 64-bit integers, so
// that Python packs it without a description: pointers, sizes, strides in elements, flags.
#pragma once
#include <cstdint>

#define QT_EXPORT __attribute__((visibility("default")))

enum QtDtype : int64_t { QT_ABSENT = 0, QT_F32 = 1, QT_F64 = 2, QT_BF16 = 3, QT_F16 = 4 };

// One tensor of up to four dimensions; missing leading dimensions have stride 0. An absent tensor has dtype 0.
struct QtTensor {
    void* data;
    int64_t dtype;
    int64_t stride[4];
};
static_assert(sizeof(QtTensor) == 6 * sizeof(int64_t), "a row of 64-bit integers");
