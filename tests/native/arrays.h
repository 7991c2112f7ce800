// Memory for the drivers: dense, random, and of exactly the size that an op may touch.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "abi.h"

typedef std::vector<int64_t> Row;

// Dense memory of exactly the size that the op may touch, so that a sanitizer sees one number too many.
struct Array {
    std::unique_ptr<char[]> memory;
    int64_t dtype = QT_ABSENT;
    std::vector<int64_t> shape;

    Array() = default;
    Array(int64_t type, std::vector<int64_t> sizes, bool fill) : dtype(type), shape(std::move(sizes)) {
        int64_t count = 1;
        for (int64_t size : shape) count *= size;
        const int64_t bytes = type == QT_F64 ? 8 : type == QT_F32 ? 4 : 2;
        memory.reset(new char[size_t(count * bytes)]);
        for (int64_t i = 0; fill && i < count; ++i) {
            const float value = float(std::rand() % 1000) / 1000 - 0.7f;
            if (type == QT_F32) reinterpret_cast<float*>(memory.get())[i] = value;
            if (type == QT_F64) reinterpret_cast<double*>(memory.get())[i] = value;
            if (bytes == 2) reinterpret_cast<uint16_t*>(memory.get())[i] = uint16_t(0x3000 + std::rand() % 0x800);
        }
    }
    void describe(Row& row) const {
        row.push_back(reinterpret_cast<int64_t>(memory.get()));
        row.push_back(dtype);
        int64_t stride[4] = {}, step = 1;
        for (size_t i = 0; i < shape.size(); ++i) {
            stride[3 - i] = step;
            step *= shape[shape.size() - 1 - i];
        }
        row.insert(row.end(), stride, stride + 4);
    }
};
