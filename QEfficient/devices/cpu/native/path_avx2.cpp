// AVX2 without VNNI: a tile is two registers of 8 channels, and products are added in pairs of 16 bits, exactly.
#include "path.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "quantization.hpp"

// As in path_avx512.cpp: only what follows is compiled for this instruction set.
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace qefficient {
namespace {

constexpr std::size_t lanes = 8;

// Types of their own: see path_avx512.cpp.
typedef std::int32_t Lanes __attribute__((vector_size(32)));
typedef std::int16_t Pairs __attribute__((vector_size(32)));

bool supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

__m256i load(const void* address) { return _mm256_loadu_si256(static_cast<const __m256i*>(address)); }

__m256i broadcast(const std::int8_t* four) {
    std::int32_t bits;
    std::memcpy(&bits, four, sizeof bits);
    return _mm256_set1_epi32(bits);
}

Pairs multiply_bytes(__m256i weights, __m256i x) { return (Pairs)_mm256_maddubs_epi16(weights, x); }

Lanes add_pairs(Pairs pairs, short factor) {
    return (Lanes)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(factor));
}

std::int32_t largest(__m256i values) {
    __m128i half = _mm_max_epu32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epu32(half, _mm_shuffle_epi32(half, 0xb1)));
}

// One group of one row, padded with zeros to whole registers.
void quantize_group(const float* x, std::size_t size, const Panel& panel, std::size_t group, std::size_t row) {
    __m256i top = _mm256_setzero_si256();
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    for (std::size_t k = 0; k < size; k += lanes) top = _mm256_max_epu32(top, _mm256_and_si256(load(x + k), magnitude));
    const Scale scale = scale_of(static_cast<std::uint32_t>(largest(top)));
    const __m256i used = _mm256_set1_epi32(scale.inverse != 0 ? -1 : 0);
    const __m256 inverse = _mm256_set1_ps(scale.inverse);
    Lanes sum = {};
    std::int8_t* to = panel.values + (group * size * panel.rows + row * 4);
    for (std::size_t k = 0; k < size; k += lanes) {
        const __m256i whole = _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + k), inverse)), used);
        sum += (Lanes)whole;
        const __m256i words = _mm256_packs_epi32(whole, whole);
        const __m256i bytes = _mm256_packs_epi16(words, words);  // 4 in each half
        for (const std::int32_t four : {_mm256_extract_epi32(bytes, 0), _mm256_extract_epi32(bytes, 4)}) {
            std::memcpy(to, &four, sizeof four);
            to += panel.rows * 4;
        }
    }
    panel.scales[group * panel.rows + row] = scale.scale;
    std::int32_t& total = panel.sums[group * panel.rows + row];
    total = 0;
    for (std::size_t i = 0; i < lanes; ++i) total += sum[i];
}

void quantize(const Weights& weights, const float* x, const Panel& panel, Range groups) {
    for (std::size_t group = groups.begin; group < groups.end; ++group) {
        const std::size_t start = group * weights.group;
        const std::size_t count = std::min(weights.group, weights.in_features - start);
        for (std::size_t row = 0; row < panel.rows; ++row) {
            const float* from = x + row * weights.in_features + start;
            float padded[max_group] = {};
            if (count < weights.group) from = std::copy_n(from, count, padded) - count;
            quantize_group(from, weights.group, panel, group, row);
        }
    }
}

// The integer sums of one group, of 8 channels and `Rows` rows. Values of 4 bits make pairs of at most 2 * 15 * 127, of
// which 8 fit into 16 bits.
template <int Rows>
void sum_group_4(const std::uint8_t* w, const std::uint8_t* end, const std::int8_t* x, std::size_t x_step,
                 Lanes (&sums)[Rows]) {
    const __m256i low = _mm256_set1_epi8(15);
    while (w < end) {
        Pairs pairs[Rows] = {};
// Unrolled, the products would all be kept, in memory, and added at the end.
#pragma GCC unroll 1
        for (int b = 0; b < 4; ++b, w += block_bytes, x += 2 * x_step) {
            const __m256i values = load(w), first = _mm256_and_si256(values, low);
            const __m256i second = _mm256_and_si256(_mm256_srli_epi16(values, 4), low);
            for (int r = 0; r < Rows; ++r) {
                pairs[r] += multiply_bytes(first, broadcast(x + 4 * r));
                pairs[r] += multiply_bytes(second, broadcast(x + x_step + 4 * r));
            }
        }
        for (int r = 0; r < Rows; ++r) sums[r] += add_pairs(pairs[r], 1);
    }
}

// Pairs of 8 bits would not fit into 16: the highest bit goes a way of its own.
template <int Rows>
void sum_group_8(const std::uint8_t* w, const std::uint8_t* end, const std::int8_t* x, std::size_t x_step,
                 Lanes (&sums)[Rows]) {
    const __m256i low = _mm256_set1_epi8(127), one = _mm256_set1_epi8(1);
    Pairs highest[Rows] = {};
    for (; w < end; w += block_bytes, x += x_step) {
        const __m256i values = load(w), first = _mm256_and_si256(values, low);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(values, 7), one);
        for (int r = 0; r < Rows; ++r) {
            const __m256i four = broadcast(x + 4 * r);
            sums[r] += add_pairs(multiply_bytes(first, four), 1);
            highest[r] += multiply_bytes(second, four);
        }
    }
    for (int r = 0; r < Rows; ++r) sums[r] += add_pairs(highest[r], 128);
}

// `Rows` rows of a panel, from `row` on, by 8 channels from `channel` on; y is where the first of them belongs.
template <int Rows>
void multiply_block(const Weights& weights, const Panel& panel, std::size_t row, std::size_t channel, float* y) {
    const std::size_t groups = weights.groups(), group_bytes = weights.group_bytes();
    const std::size_t tile = channel / tile_width, inside = channel % tile_width;
    __m256 total[Rows];
    for (int r = 0; r < Rows; ++r) total[r] = _mm256_setzero_ps();
    for (std::size_t group = 0; group < groups; ++group) {
        const std::uint8_t* w = weights.values + (tile * groups + group) * group_bytes + inside * 4;
        const std::int8_t* x = panel.values + (group * weights.group * panel.rows + row * 4);
        Lanes sums[Rows] = {};
        if (weights.bits == 4) {
            sum_group_4<Rows>(w, w + group_bytes, x, panel.rows * 4, sums);
        } else {
            sum_group_8<Rows>(w, w + group_bytes, x, panel.rows * 4, sums);
        }
        const std::size_t at = (tile * groups + group) * tile_width + inside;
        const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights.scales + at)));
        __m256i zero = _mm256_set1_epi32(weights.middle());
        if (weights.zeros)
            zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(weights.zeros + at)));
        for (int r = 0; r < Rows; ++r) {
            const std::size_t place = group * panel.rows + row + r;
            sums[r] -= (Lanes)_mm256_mullo_epi32(zero, _mm256_set1_epi32(panel.sums[place]));
            const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(panel.scales[place]));
            total[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps((__m256i)sums[r]), both, total[r]);
        }
    }
    const std::size_t columns = std::min(lanes, weights.out_features - channel);
    for (int r = 0; r < Rows; ++r) std::memcpy(y + r * weights.out_features, &total[r], columns * sizeof(float));
}

template <int Rows>
void multiply_rows(const Weights& weights, const Panel& panel, std::size_t row, Range channels, float* y) {
    for (std::size_t channel = channels.begin; channel < channels.end; channel += lanes)
        multiply_block<Rows>(weights, panel, row, channel, y + row * weights.out_features + channel);
}

void multiply(const Weights& weights, const Panel& panel, Range tiles, float* y) {
    const Range channels = {tiles.begin * tile_width, std::min(tiles.end * tile_width, weights.out_features)};
    std::size_t row = 0;
    for (; row + 4 <= panel.rows; row += 4) multiply_rows<4>(weights, panel, row, channels, y);
    for (; row + 2 <= panel.rows; row += 2) multiply_rows<2>(weights, panel, row, channels, y);
    if (row < panel.rows) multiply_rows<1>(weights, panel, row, channels, y);
}

}  // namespace

const Path avx2_path = {"avx2", supported, quantize, multiply};

}  // namespace qefficient

#pragma GCC pop_options

#endif
