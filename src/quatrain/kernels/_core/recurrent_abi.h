// Arguments of the recurrent scans: one row of 64-bit integers, filled in by kernels/_recurrent.py in this order.
//
// Data are (B, T, F) with the last dimension dense, strides in elements. Saved tensors are wide, one row for each position:
// b T + t for ranked sequences, t B + b else; gates are padded to whole vectors (qt_recurrent_padded). With `chunk`, x or dx
// is a buffer of that many steps, row t B + b, that the callback fills before the scan reads it or empties after it wrote it.
//
// Rows of a power of two of bytes share one set of the caches, all of them: saved rows and buffers have some numbers more.
#pragma once
#include "abi.h"

typedef int (*QtChunk)(int64_t first_step, int64_t steps);  // other than 0: stop

struct QtRecurrent {
    int64_t dtype, threads, variant;          // variant: RNN 0 tanh, 1 ReLU; GRU 0 reset after, 1 before
    int64_t batch, time, width, sequences;    // sequences = batch unless packed
    const int64_t *lengths, *first, *order;   // of sequences ranked by length: length, position of step 0, index of its
                                              // state; null: rows of the batch, each of all steps
    const void* x;
    int64_t x_row, x_step;
    const void *weight, *bias, *h0, *c0;      // weight in the data's type, dense; the others wide; null: zeros
    void *y, *h, *c;                          // y (B, T, D) in the data's type, dense; last states wide
    void *gates, *cells, *inner;              // kept for the backward pass, or null; inner (B, T, D): r h of GRU's "before"
    int64_t gates_row, cells_row;
    void* states;                             // all h_t, wide, rows as in y; it may be y
    int64_t states_row;
    const void* dy;
    int64_t dy_row, dy_step;
    const void *dh, *dc;                      // cotangents of the last states, wide, or null
    void* dx;
    int64_t dx_row, dx_step;
    void *dh0, *dc0;
    void* dinner;                             // of the product inside the GRU's reset gate, rows as in dx
    int64_t dinner_row, dinner_step;
    QtChunk callback;
    int64_t chunk;
    const void *in_weight, *in_bias;          // of one step: x is (B, in_width) and is projected first
    int64_t in_width;
};
