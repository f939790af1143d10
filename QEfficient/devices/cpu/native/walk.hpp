// From the numbers of a call to the kernel that is compiled for them.
#pragma once

#include "path.hpp"

namespace qefficient {

// `Kernel` has to be a type of its own for each instruction set, or the linker would merge what is made of it.
template <class Kernel, int Bits, int Rows>
void walk_tiles(const Weights& weights, const Panel& panel, Range tiles, float* y) {
    constexpr int Tiles = Kernel::tiles(Rows);
    std::size_t tile = tiles.begin;
    for (; tile + Tiles <= tiles.end; tile += Tiles) Kernel::template block<Bits, Rows, Tiles>(weights, panel, tile, y);
    for (; tile < tiles.end; ++tile) Kernel::template block<Bits, Rows, 1>(weights, panel, tile, y);
}

template <class Kernel, int Bits, int Rows = panel_rows>
void walk_rows(const Weights& weights, const Panel& panel, Range tiles, float* y) {
    if (panel.rows == Rows) {
        walk_tiles<Kernel, Bits, Rows>(weights, panel, tiles, y);
    } else if constexpr (Rows > 1) {
        walk_rows<Kernel, Bits, Rows - 1>(weights, panel, tiles, y);
    }
}

template <class Kernel>
void walk(const Weights& weights, const Panel& panel, Range tiles, float* y) {
    if (weights.bits == 4) {
        walk_rows<Kernel, 4>(weights, panel, tiles, y);
    } else {
        walk_rows<Kernel, 8>(weights, panel, tiles, y);
    }
}

}  // namespace qefficient
