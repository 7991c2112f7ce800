// The entry points of one token: attention and its cache, products, norms, the middle of a Mamba block, recorded calls.
#include <cstring>
#include <utility>

#include "arrays.h"

extern "C" {
int qt_attention_step(const int64_t*);
int qt_attention_append(const int64_t*);
int qt_attention_claim(const int64_t*);
int qt_attention_room(const int64_t*);
int qt_attention_extend(const int64_t*);
int qt_linear_step(const int64_t*);
int qt_rms_norm(const int64_t*);
int qt_mamba_convolve(const int64_t*);
int qt_mamba_select(const int64_t*);
int qt_mamba_modes(const int64_t*);
int qt_tape(const int64_t*);
int qt_copy(const int64_t*);
int qt_widen(const int64_t*);
int qt_sum(const int64_t*);
int qt_embed(const int64_t*);
int qt_add_position(const int64_t*);
int qt_silu_gate(const int64_t*);
}

namespace {

int64_t at(const void* memory) { return reinterpret_cast<int64_t>(memory); }
int64_t at(const Array& x) { return at(x.memory.get()); }
int64_t bits(double x) {
    int64_t found;
    std::memcpy(&found, &x, sizeof found);
    return found;
}
void must(int code, int wanted = 0) {
    if (code != wanted) std::abort();
}

// One query against a cache of S keys, of which each row may see a part.
void attend(int64_t dtype, int64_t B, int64_t S, int64_t H, int64_t G, int64_t K, int64_t window, bool bounded) {
    Array q(dtype, {B, H, K}, true), k(dtype, {B, S, G, K}, true), v(dtype, {B, S, G, K}, true), y(dtype, {B, H, K}, false);
    Row start, length;
    for (int64_t b = 0; b < B; ++b) start.push_back(b % 2 ? 0 : S - 1), length.push_back(b * S / B);
    const int64_t key = G * K;
    const Row row = {at(q), at(k), at(v), at(y), bounded ? at(start.data()) : 0, bounded ? at(length.data()) : 0, dtype, B, H, K, S, G,
                     window, 1, H * K, K, S * key, key, K, S * key, key, K, 4, bits(0.25)};
    must(qt_attention_step(row.data()));
}

// A ring of C columns that a run of steps writes round.
void append(int64_t dtype, int64_t B, int64_t H, int64_t G, int64_t K, int64_t C, double base) {
    Array k(dtype, {B, C, G, K}, true), v(dtype, {B, C, G, K}, true), q(dtype, {B, H, K}, false), qkv(dtype, {B, (H + 2 * G) * K}, true);
    Row position(B, 5), count(B, 0), held(B, 0);
    for (int64_t turn = 0; turn < 2 * C + 1; ++turn) {
        const Row row = {at(qkv), at(k), at(v), at(q), at(position.data()), at(count.data()), at(held.data()), dtype, B, H, G, K, C, bits(base)};
        must(qt_attention_append(row.data()));
    }
    if (held.back() != C) std::abort();
}

// A state that grows in its buffer until that is full; an older one may not write.
void grow(int64_t dtype, int64_t B, int64_t H, int64_t G, int64_t K, double base) {
    const int64_t S = 3, columns = 6, row = G * K, size = dtype == QT_F32 ? 4 : 2, bytes = (B * columns * row * size + 7) / 8 * 8 + 48;
    Array k(dtype, {B, S, row}, true), v(dtype, {B, S, row}, true), q(dtype, {B, H, K}, false), y(dtype, {B, H, K}, false);
    Array qkv(dtype, {B, (H + 2 * G) * K}, true);
    Row keys(bytes / 8), values(bytes / 8);
    const Row room = {at(k), at(v), at(keys.data()), at(values.data()), dtype, B, S, row, columns, bytes};
    must(qt_attention_room(room.data()));
    for (int64_t held = S; held < columns; ++held) {
        Row position(B, held), after(B);
        const auto claim = [&](int64_t first, int64_t have) {
            const Row stride = {columns * row, row, K, 1};
            Row asked = {at(position.data()), dtype, B, have, G, K, -1};
            for (Row* part : {&keys, &values}) {
                for (const int64_t one : {at(part->data()), bytes, first}) asked.push_back(one);
                asked.insert(asked.end(), stride.begin(), stride.end());
            }
            return qt_attention_claim(asked.data());
        };
        if (held > S) must(claim(0, held));  // the first column beyond was claimed with the room
        must(claim(0, held), 2);             // a second continuation
        must(claim(1, held), 2);             // no column's beginning
        must(claim(0, held - 1), 1);         // another position than its columns
        const Row extend = {at(qkv), at(keys.data()), at(values.data()), at(q), at(y), at(position.data()), at(after.data()), dtype, B, H, G, K,
                            held, columns * row, columns * row, 3, bits(base)};
        must(qt_attention_extend(extend.data()));
        if (after[0] != held + 1) std::abort();
    }
}

void multiply(int64_t dtype, int64_t B, int64_t M, int64_t K, bool add) {
    Array x(dtype, {B, K}, true), w(dtype, {M, K}, true), more(dtype, {B, M}, true), y(dtype, {B, M}, false);
    const Row row = {at(x), at(w), add ? at(more) : 0, at(y), dtype, B, M, K, K, K, M, M, 4};
    must(qt_linear_step(row.data()));
}

void mamba(int64_t dtype, int64_t wide, int64_t B, int64_t E, int64_t N, int64_t taps, bool logarithms) {
    Array x(dtype, {B, E}, true), before(dtype, {B, taps - 1, E}, true), after(dtype, {B, taps - 1, E}, false), y(dtype, {B, E}, false);
    Array weight(wide, {E, taps}, true), bias(wide, {E}, true), skip(wide, {E}, true), b(dtype, {B, N}, true), c(dtype, {B, N}, true);
    Array a(logarithms ? wide : QT_F32, {E, N}, true), modes(wide, {E, N}, true), h(QT_F32, {B, E, N}, true), next(QT_F32, {B, E, N}, false);
    for (const auto& [channel, tap] : {std::pair<int64_t, int64_t>{taps, 1}, {1, E}}) {
        const Row row = {at(x), at(before), at(after), at(y), at(weight), at(bias), dtype, wide, B, E, taps, E, channel, tap};
        must(qt_mamba_convolve(row.data()));
    }
    const Row shift = {at(x), at(before), at(before), at(y), at(weight), at(bias), dtype, wide, B, E, taps, E, taps, 1};
    must(qt_mamba_convolve(shift.data()));  // in place
    const Row select = {at(x), at(x), at(b), at(c), at(x), at(a), at(skip), at(bias), at(h), at(next), at(y), dtype, wide, logarithms, B, E, N, N, E, 4};
    must(qt_mamba_select(select.data()));
    const Row decays = {at(x), at(x), at(modes), at(modes), at(skip), at(bias), at(h), at(h), at(y), dtype, wide, B, E, N, E, 4};
    must(qt_mamba_modes(decays.data()));
}

// Small calls, by themselves and one after the other.
void record(int64_t dtype, int64_t B, int64_t D) {
    const int64_t size = dtype == QT_F32 ? 4 : 2;
    Array table(dtype, {5, D}, true), x(dtype, {B, D}, false), y(dtype, {B, D}, true), out(dtype, {B, D}, false);
    Array wide(QT_F32, {B * D}, false);
    Row token, position;
    for (int64_t b = 0; b < B; ++b) token.push_back(b % 5), position.push_back(b * 4);  // some past the table's end
    const Row embed = {at(token.data()), at(table), at(x), B, D * size, D * size, D * size};
    const Row told = {at(x), at(table), at(out), at(position.data()), dtype, B, D, 5};
    const Row gate = {at(x), at(y), at(out), dtype, B * D};
    const Row sum = {at(x), at(y), dtype, B * D};
    const Row copy = {at(y), at(out), B * D * size};
    const Row widen = {at(y), at(wide), B * D};
    typedef int (*Call)(const int64_t*);
    std::vector<std::pair<Call, const Row*>> calls = {{qt_embed, &embed}, {qt_add_position, &told}, {qt_silu_gate, &gate}, {qt_sum, &sum}, {qt_copy, &copy}};
    if (dtype == QT_BF16) calls.push_back({qt_widen, &widen});
    Row tape = {int64_t(calls.size())};
    for (const auto& [call, row] : calls) tape.push_back(reinterpret_cast<int64_t>(call)), tape.push_back(at(row->data()));
    for (int turn = 0; turn < 2; ++turn) must(qt_tape(tape.data()));
    for (const int64_t parameters : {int64_t(QT_F32), dtype}) {
        Array gain(parameters, {D}, true);
        const Row norm = {at(y), at(gain), at(out), dtype, parameters, B, D, 3, bits(1e-5)};
        must(qt_rms_norm(norm.data()));
    }
}

}  // namespace

void steps() {
    for (const int64_t dtype : {QT_F32, QT_BF16}) {
        attend(dtype, 3, 37, 4, 2, 19, 0, true);
        attend(dtype, 1, 700, 4, 1, 40, 0, false);  // in pieces, for several threads
        attend(dtype, 2, 300, 6, 3, 33, 50, true);  // a window, and rows that see nothing
        for (const double base : {0., 10000.}) append(dtype, 2, 4, 2, 6, 3, base), grow(dtype, 2, 4, 2, 6, base), grow(dtype, 1, 3, 1, 10, base);
        for (int64_t B = 1; B <= 8; ++B) multiply(dtype, B, 13, 37, B % 2), multiply(dtype, B, 301, 130, B % 2 == 0);
        const int64_t types[] = {QT_F32, dtype};
        for (const int64_t wide : types)
            for (const bool logarithms : {false, true}) mamba(dtype, wide, 2, 35, 19, 4, logarithms), mamba(dtype, wide, 1, 600, 16, 2, logarithms);
        record(dtype, 3, 37), record(dtype, 7, 64);
    }
}
