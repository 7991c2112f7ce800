// How one S6 scan is cut into tasks. The cut depends on shapes alone, never on the number of threads, so results do not
// either: groups of sequences x ranges of channels (x parts of the states where there is little else).
#pragma once
#include <algorithm>
#include <vector>

#include "abi.h"
#include "simd.h"

namespace quatrain {

struct S6Args {
    int64_t threads, softplus, zoh, wide;
    int64_t batch, time, width, states, groups, sequences, packed;
    const int64_t *first, *length;  // of each sequence; null: every row whole
    void *bounds, *work;            // states before each tile (null: not kept); partial sums
    int64_t bounds_size, work_size;  // numbers of the wide type: filled in by qt_s6_plan
    QtTensor u, delta, a, b, c, skip, gate, bias, h0, y, h;
    QtTensor dy, dh, d_u, d_delta, d_a, d_b, d_c, d_skip, d_gate, d_bias, d_h0;
};

struct S6Plan {
    int64_t tile, group_width, group_blocks, blocks, ranges, row_groups, parts, tiles;
    int64_t backward, sums;
    int64_t slices;  // sums over time of the parameters' gradients: one for each group of sequences, or span of tiles
    std::vector<int64_t> tile_first, group_first;  // by sequence; by row group

    int64_t length(const S6Args& k, int64_t s) const { return k.length ? k.length[s] : k.time; }
    int64_t begin(const S6Args& k, int64_t s) const { return k.first ? k.first[s] : 0; }
    int64_t row(const S6Args& k, int64_t s) const { return k.packed ? 0 : s; }
    int64_t tasks() const { return row_groups * ranges_all * parts; }

    int64_t ranges_all;  // over all groups of channels
    int64_t work_y, work_maps, work_rate, work_vector;  // sizes of the parts of the work space
    int64_t lanes_;
};

template <class S> S6Plan make_plan(const S6Args& k, bool backward) {
    constexpr int64_t W = lanes<S>, most = 32;
    S6Plan p;
    p.backward = backward;
    p.lanes_ = W;
    p.tile = k.states <= 16 ? 32 : k.states <= 64 ? 64 : 128;
    p.group_width = k.width / k.groups;
    p.group_blocks = (p.group_width + W - 1) / W;
    p.blocks = p.group_blocks * k.groups;
    p.tile_first.resize(size_t(k.sequences) + 1);
    p.tiles = 0;
    for (int64_t s = 0; s < k.sequences; ++s) {
        p.tile_first[size_t(s)] = p.tiles;
        p.tiles += (p.length(k, s) + p.tile - 1) / p.tile;
    }
    p.tile_first[size_t(k.sequences)] = p.tiles;
    p.row_groups = std::max<int64_t>(1, std::min({k.sequences, most, p.tiles}));
    const int64_t wanted = (most / 2 + p.row_groups * k.groups - 1) / (p.row_groups * k.groups);
    // At least two vectors wide: lines come from memory in pairs.
    p.ranges = std::max<int64_t>(1, std::min({p.group_blocks / 2, wanted, most / 4}));
    p.ranges_all = p.ranges * k.groups;
    const int64_t coarse = p.row_groups * p.ranges_all;
    const bool large = k.batch * k.time * k.states * p.blocks * W >= (1 << 17);
    p.parts = large && coarse == 1 && k.states >= 8 ? 2 : 1;
    p.group_first.assign(size_t(p.row_groups) + 1, k.sequences);
    p.group_first[0] = 0;
    for (int64_t s = 0, g = 1; s < k.sequences && g < p.row_groups; ++s)
        while (g < p.row_groups && p.tile_first[size_t(s) + 1] * p.row_groups >= g * p.tiles) p.group_first[size_t(g++)] = s + 1;
    const int64_t rows = k.batch * k.time;
    p.sums = !backward ? 1 : k.zoh ? 4 : 3;  // y; sums along b, along a and for zoh a third one
    p.work_y = p.parts == 1 ? 0 : p.parts * p.sums * rows * p.blocks * W;
    p.work_maps = backward ? p.ranges * rows * k.groups * k.states : 0;
    p.work_rate = backward ? p.row_groups * p.blocks * k.states * W : 0;
    p.slices = p.parts == 1 ? p.row_groups : std::max<int64_t>(1, std::min<int64_t>(p.tiles, 8));
    p.work_vector = backward ? p.slices * p.blocks * 2 * W : 0;
    return p;
}

}  // namespace quatrain
