// Plain C++: for every processor, and to check the others against.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "path.hpp"
#include "quantization.hpp"

namespace qefficient {
namespace {

bool supported() { return true; }

void quantize_group(const float* x, std::size_t count, std::size_t size, const Panel& panel, std::size_t group,
                    std::size_t row) {
    std::uint32_t top = 0;
    for (std::size_t k = 0; k < count; ++k) top = std::max(top, bits_of(x[k]) & 0x7fffffff);
    const Scale scale = scale_of(top);
    std::int32_t sum = 0;
    for (std::size_t k = 0; k < size; ++k) {
        std::int32_t whole = 0;
        // To the nearest, ties to even: the rounding that every processor starts with
        if (scale.inverse != 0 && k < count) whole = static_cast<std::int32_t>(std::nearbyint(x[k] * scale.inverse));
        sum += whole;
        panel.values[((group * size + k) / 4 * panel.rows + row) * 4 + k % 4] = static_cast<std::int8_t>(whole);
    }
    panel.scales[group * panel.rows + row] = scale.scale;
    panel.sums[group * panel.rows + row] = sum;
}

void quantize(const Weights& weights, const float* x, const Panel& panel, Range groups) {
    for (std::size_t group = groups.begin; group < groups.end; ++group) {
        const std::size_t start = group * weights.group;
        const std::size_t count = std::min(weights.group, weights.in_features - start);
        for (std::size_t row = 0; row < panel.rows; ++row)
            quantize_group(x + row * weights.in_features + start, count, weights.group, panel, group, row);
    }
}

// Adds the products of one group, of one row and one tile; `x` is the row's first 4 inputs in the panel.
void sum_group(const Weights& weights, const std::uint8_t* w, const std::int8_t* x, std::size_t x_step,
               std::int32_t* sums) {
    const std::size_t parts = weights.bits == 4 ? 2 : 1;
    for (std::size_t k = 0; k < weights.group; k += 4 * parts, w += block_bytes) {
        for (std::size_t part = 0; part < parts; ++part, x += x_step) {
            for (std::size_t i = 0; i < block_bytes; ++i) {
                const int value = parts == 1 ? w[i] : part == 0 ? w[i] & 15 : w[i] >> 4;
                sums[i / 4] += value * x[i % 4];
            }
        }
    }
}

void multiply_tile(const Weights& weights, const Panel& panel, std::size_t row, std::size_t tile, float* y) {
    float total[tile_width] = {};
    for (std::size_t group = 0; group < weights.groups(); ++group) {
        const std::size_t at = tile * weights.groups() + group, place = group * panel.rows + row;
        std::int32_t sums[tile_width] = {};
        sum_group(weights, weights.values + at * weights.group_bytes(),
                  panel.values + (group * weights.group * panel.rows + row * 4), panel.rows * 4, sums);
        for (std::size_t c = 0; c < tile_width; ++c) {
            const std::int32_t zero = weights.zeros ? weights.zeros[at * tile_width + c] : weights.middle();
            const float sum = static_cast<float>(sums[c] - zero * panel.sums[place]);
            const float scale = from_half(weights.scales[at * tile_width + c]) * panel.scales[place];
            total[c] = std::fma(sum, scale, total[c]);
        }
    }
    const std::size_t column = tile * tile_width;
    std::copy_n(total, std::min(tile_width, weights.out_features - column), y + row * weights.out_features + column);
}

void multiply(const Weights& weights, const Panel& panel, Range tiles, float* y) {
    for (std::size_t tile = tiles.begin; tile < tiles.end; ++tile)
        for (std::size_t row = 0; row < panel.rows; ++row) multiply_tile(weights, panel, row, tile, y);
}

}  // namespace

const Path portable_path = {"portable", supported, quantize, multiply};

}  // namespace qefficient
