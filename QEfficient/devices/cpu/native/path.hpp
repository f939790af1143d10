// What an instruction set has to provide.
#pragma once

#include "linear.hpp"

namespace qefficient {

// Enough rows that a weight is unpacked for many of them, few enough that their sums stay in registers.
constexpr std::size_t panel_rows = 16;

// Up to `panel_rows` quantized rows, interleaved so that a kernel reads them from the first byte to the last.
struct Panel {
    std::int8_t* values;  // [inputs / 4][rows][4]
    float* scales;        // [groups][rows]
    std::int32_t* sums;   // [groups][rows], of the values
    std::size_t rows;
};

struct Range {
    std::size_t begin, end;
};

struct Path {
    const char* name;
    bool (*supported)();
    // Fills these groups of a panel; `x` is the panel's first row, of `weights.in_features` floats.
    void (*quantize)(const Weights& weights, const float* x, const Panel& panel, Range groups);
    // Writes these tiles of the panel's rows; `y` is the panel's first row, of `weights.out_features` floats.
    void (*multiply)(const Weights& weights, const Panel& panel, Range tiles, float* y);
};

#if defined(__x86_64__)
extern const Path avx512_path, avx2_path;
#endif
extern const Path portable_path;

}  // namespace qefficient
