// Linear layers with 4- or 8-bit weights: y[rows, N] = x[rows, K] · Wᵀ.
//
// The promise: an element of y is the same to the last bit whatever the number of rows beside it, the number of threads
// and the instruction set. Everything up to a group's sum is integer arithmetic, which has no order; the float
// operations after it are, per element and in the order of the groups,
//
//     scale = weight scale * activation scale;   y = fma(float(sum), scale, y);   // y starts at +0
//
// Weights lie in tiles of 16 output channels, so that channels are lanes and nothing is ever added across lanes:
//
//     values  [tiles][groups][blocks][64]   a block is 16 channels × 8 inputs (4 bits) or × 4 inputs (8 bits);
//                                           byte c*4+b holds channel c, input b; with 4 bits the low half is input b and
//                                           the high half input b+4
//     scales  [tiles][groups][16]           half precision
//     zeros   [tiles][groups][16]           bytes; without them the zero point is half the range, 8 or 128
//
// Values should begin at a multiple of 64 bytes: elsewhere, some 7 % are lost at 8 rows and more.
// A weight is (value - zero) * scale. The inputs are padded to whole groups with values equal to the zero point and the
// channels to whole tiles with anything.
//
// Activations are quantized to signed bytes, symmetrically, for each row and group of inputs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qefficient {

constexpr std::size_t tile_width = 16;
constexpr std::size_t block_bytes = 64;

struct Weights {
    const std::uint8_t* values;
    const std::uint16_t* scales;
    const std::uint8_t* zeros;  // may be null
    std::size_t bits, group, in_features, out_features;

    std::size_t tiles() const { return (out_features + tile_width - 1) / tile_width; }
    std::size_t groups() const { return (in_features + group - 1) / group; }
    std::size_t padded_features() const { return groups() * group; }
    std::size_t group_bytes() const { return tile_width * group * bits / 8; }
    std::size_t bytes() const { return tiles() * groups() * group_bytes(); }
    std::int32_t middle() const { return bits == 4 ? 8 : 128; }
};

// Whether the numbers are ones that the kernels know: 4 or 8 bits, groups of 32, 64 or 128.
bool known(const Weights& weights);

// Calls body(context, begin, end) for ranges that make up [0, count), possibly at the same time, no range empty.
struct Parallel {
    using Body = void (*)(void* context, std::size_t begin, std::size_t end);
    void (*run)(std::size_t count, Body body, void* context);
    std::size_t threads;
};

// All ranges in the calling thread.
extern const Parallel serial;

// One of the layers that are fed with the same activations, and where its outputs go, [rows, out_features].
struct Product {
    Weights weights;
    float* y;
};

// All of them at once; their inputs, bits and groups must be the same. Each has the outputs that it has alone.
void multiply(const Product* products, std::size_t count, const float* x, std::size_t rows, const Parallel& parallel);

// The instruction set in use; by default the best that the processor has.
const char* path_name();

// Use "avx512", "avx2", "portable", or "best" from now on; false, and no change, where the processor lacks it.
bool choose_path(const char* name);

}  // namespace qefficient
