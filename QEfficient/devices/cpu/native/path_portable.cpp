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

// The lanes of a tile; compilers divide it into the registers that there are.
typedef std::int32_t Lanes __attribute__((vector_size(tile_width * sizeof(std::int32_t))));

// One group of one tile.
void unpack(const Weights& weights, const std::uint8_t* w, Lanes* inputs) {
    const int shift = weights.bits == 4 ? 4 : 0, mask = weights.bits == 4 ? 15 : 255;
    for (const Lanes* const end = inputs + weights.group; inputs < end; w += block_bytes) {
        for (int part = 0; part <= shift; part += 4, inputs += 4)
            for (std::size_t i = 0; i < 4; ++i)
                for (std::size_t lane = 0; lane < tile_width; ++lane) inputs[i][lane] = w[lane * 4 + i] >> part & mask;
    }
}

// `x` is a row's first 4 inputs of the group in the panel.
void sum_group(const Lanes* inputs, std::size_t size, const std::int8_t* x, std::size_t x_step, Lanes& to) {
    Lanes sums = {};
    for (std::size_t k = 0; k < size; k += 4, x += x_step)
        for (std::size_t i = 0; i < 4; ++i) sums += inputs[k + i] * x[i];
    to = sums;
}

void multiply_tile(const Weights& weights, const Panel& panel, std::size_t tile, float* y) {
    float total[panel_rows][tile_width] = {};
    for (std::size_t group = 0; group < weights.groups(); ++group) {
        const std::size_t at = tile * weights.groups() + group;
        Lanes inputs[max_group];
        unpack(weights, weights.values + at * weights.group_bytes(), inputs);
        for (std::size_t row = 0; row < panel.rows; ++row) {
            const std::size_t place = group * panel.rows + row;
            const std::int8_t* x = panel.values + (group * weights.group * panel.rows + row * 4);
            Lanes sums;
            sum_group(inputs, weights.group, x, panel.rows * 4, sums);
            for (std::size_t c = 0; c < tile_width; ++c) {
                const std::int32_t zero = weights.zeros ? weights.zeros[at * tile_width + c] : weights.middle();
                const float sum = static_cast<float>(sums[c] - zero * panel.sums[place]);
                const float scale = from_half(weights.scales[at * tile_width + c]) * panel.scales[place];
                total[row][c] = std::fma(sum, scale, total[row][c]);
            }
        }
    }
    const std::size_t column = tile * tile_width, columns = std::min(tile_width, weights.out_features - column);
    for (std::size_t row = 0; row < panel.rows; ++row)
        std::copy_n(total[row], columns, y + row * weights.out_features + column);
}

void multiply(const Weights& weights, const Panel& panel, Range tiles, float* y) {
    for (std::size_t tile = tiles.begin; tile < tiles.end; ++tile) multiply_tile(weights, panel, tile, y);
}

}  // namespace

const Path portable_path = {"portable", supported, quantize, multiply};

}  // namespace qefficient
