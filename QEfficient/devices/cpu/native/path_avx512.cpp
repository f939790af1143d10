// AVX-512 with VNNI: a tile is a register.
#include "path.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "quantization.hpp"
#include "walk.hpp"

// Only what follows is compiled for this instruction set: templates of the standard library must not be, or the linker
// may choose that copy of them for everybody.
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,prfchw")

#define INLINE __attribute__((always_inline))

namespace qefficient {
namespace {

bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

// A type of its own, not __m512i, whose lanes are 64 bits wide: GCC 12 keeps accumulators in memory if they change
// their type at every use.
typedef std::int32_t Lanes __attribute__((vector_size(64)));

// Calls function(0), …, function(N-1) with numbers that the compiler knows. Arrays of registers stay in registers only
// if every index is known before loops are unrolled.
template <class Function, std::size_t... I>
INLINE inline void each(std::index_sequence<I...>, [[maybe_unused]] Function function) {
    (function(std::integral_constant<int, int(I)>{}), ...);
}
template <int N, class Function>
INLINE inline void each(Function function) {
    each(std::make_index_sequence<N>{}, function);
}

// Bytes of weights that are on their way from memory while others are used.
constexpr std::size_t lookahead = 8192;

// What is at the address need not exist. What is used once (_MM_HINT_NTA) leaves in the cache what is used again. A function that is called would be removed, as one without effect.
template <_mm_hint Where>
INLINE inline void prefetch(std::uintptr_t address) {
    _mm_prefetch(reinterpret_cast<const char*>(address), Where);
}

__m512i broadcast(const std::int8_t* four) {
    std::int32_t bits;
    std::memcpy(&bits, four, sizeof bits);
    return _mm512_set1_epi32(bits);
}

// One group of one row; `x` has `count` inputs of it.
void quantize_group(const float* x, std::size_t count, std::size_t size, const Panel& panel, std::size_t group,
                    std::size_t row) {
    constexpr std::size_t lanes = 16;
    __m512 values[max_group / lanes];
    __m512i top = _mm512_setzero_si512();
    for (std::size_t i = 0; i < size / lanes; ++i) {
        prefetch<_MM_HINT_T0>(reinterpret_cast<std::uintptr_t>(x) + (size + i * lanes) * sizeof *x);
        const std::size_t left = count > i * lanes ? std::min(count - i * lanes, lanes) : 0;
        values[i] = _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << left) - 1), x + i * lanes);
        top = _mm512_max_epu32(top, _mm512_castps_si512(_mm512_abs_ps(values[i])));
    }
    const Scale scale = scale_of(_mm512_reduce_max_epu32(top));
    const __mmask16 used = scale.inverse != 0 ? 0xffff : 0;
    const __m512 inverse = _mm512_set1_ps(scale.inverse);
    __m512i sum = _mm512_setzero_si512();
    std::int8_t* to = panel.values + (group * size * panel.rows + row * 4);
    for (std::size_t i = 0; i < size / lanes; ++i) {
        const __m512i whole = _mm512_maskz_cvtps_epi32(used, _mm512_mul_ps(values[i], inverse));
        sum = _mm512_add_epi32(sum, whole);
        const __m128i bytes = _mm512_cvtepi32_epi8(whole);
        const std::int32_t fours[] = {_mm_cvtsi128_si32(bytes), _mm_extract_epi32(bytes, 1),
                                      _mm_extract_epi32(bytes, 2), _mm_extract_epi32(bytes, 3)};
        for (const std::int32_t& four : fours) {
            std::memcpy(to, &four, sizeof four);
            to += panel.rows * 4;
        }
    }
    panel.scales[group * panel.rows + row] = scale.scale;
    panel.sums[group * panel.rows + row] = _mm512_reduce_add_epi32(sum);
}

void quantize(const Weights& weights, const float* x, const Panel& panel, Range groups) {
    for (std::size_t group = groups.begin; group < groups.end; ++group) {
        const std::size_t start = group * weights.group;
        const std::size_t count = std::min(weights.group, weights.in_features - start);
        for (std::size_t row = 0; row < panel.rows; ++row)
            quantize_group(x + row * weights.in_features + start, count, weights.group, panel, group, row);
    }
}

// Adds the products of 4 inputs: a register of weights for each tile, 4 bytes for each row.
template <int Rows, int Tiles>
INLINE inline void add(Lanes (&sums)[Rows][Tiles], const __m512i (&weights)[Tiles], const std::int8_t* x) {
    each<Rows>([&](auto r) INLINE {
        const __m512i four = broadcast(x + 4 * r);
        each<Tiles>([&](auto t) INLINE {
            sums[r][t] = (Lanes)_mm512_dpbusd_epi32((__m512i)sums[r][t], weights[t], four);
        });
    });
}

// The integer sums of one group. In memory, [Rows][Tiles][16], because what is done with them afterwards would compete
// for the registers.
template <int Bits, int Rows, int Tiles>
INLINE inline void sum_group(const std::uint8_t* w, std::uintptr_t later, std::size_t tile_bytes,
                             std::size_t group_bytes, const std::int8_t* x, std::int32_t* to) {
    // Two additions can start in a cycle and each takes 5: few accumulators are split into several.
    constexpr int chains = Rows * Tiles >= 8 ? 1 : Rows * Tiles >= 4 ? 2 : 4;
    constexpr int parts = Bits == 4 ? 2 : 1;  // of a block: 4 inputs each
    constexpr int blocks = chains > parts ? chains / parts : 1;
    const __m512i low = _mm512_set1_epi8(15);
    Lanes sums[chains][Rows][Tiles];
    each<chains>([&](auto c) INLINE {
        each<Rows>([&](auto r) INLINE { each<Tiles>([&](auto t) INLINE { sums[c][r][t] = Lanes{}; }); });
    });
    const std::uint8_t* const end = w + group_bytes;
    do {
        each<blocks>([&](auto b) INLINE {
            __m512i values[Tiles], half[Tiles];
            each<Tiles>([&](auto t) INLINE {
                values[t] = _mm512_loadu_si512(w + t * tile_bytes);
                prefetch<_MM_HINT_NTA>(later + t * tile_bytes);
            });
            if constexpr (Bits == 4) {
                each<Tiles>([&](auto t) INLINE { half[t] = _mm512_and_si512(values[t], low); });
                add<Rows, Tiles>(sums[2 * b % chains], half, x);
                each<Tiles>([&](auto t) INLINE {
                    half[t] = _mm512_and_si512(_mm512_srli_epi16(values[t], 4), low);
                });
                add<Rows, Tiles>(sums[(2 * b + 1) % chains], half, x + 4 * Rows);
            } else {
                add<Rows, Tiles>(sums[b % chains], values, x);
            }
            x += parts * 4 * Rows;
            w += block_bytes;
            later += block_bytes;
        });
    } while (w < end);
    each<Rows>([&](auto r) INLINE {
        each<Tiles>([&](auto t) INLINE {
            each<chains - 1>([&](auto c) INLINE { sums[0][r][t] += sums[c + 1][r][t]; });
            _mm512_store_si512(to + (r * Tiles + t) * tile_width, (__m512i)sums[0][r][t]);
        });
    });
}

struct Kernel {
    // The memory reads one stream of weights fastest. Few rows want more additions at a time, but from 9 on there are
    // enough, and fewer than 4 wait for the memory anyway.
    static constexpr int tiles(int rows) { return rows >= 4 && rows <= 8 ? 2 : 1; }

    template <int Bits, int Rows, int Tiles>
    static void block(const Weights& weights, const Panel& panel, std::size_t tile, float* y) {
        const std::size_t groups = weights.groups(), group_bytes = weights.group_bytes();
        const std::size_t tile_bytes = groups * group_bytes, width = weights.out_features;
        const std::uint8_t* values = weights.values + tile * tile_bytes;
        float* out = y + tile * tile_width;
        alignas(64) float total[Rows][Tiles][tile_width] = {};
        alignas(64) std::int32_t sums[Rows][Tiles][tile_width];
        if constexpr (Rows > 1) {  // the lines are far apart and would be waited for when they are written
            for (int r = 0; r < Rows; ++r)
                for (int t = 0; t < Tiles; ++t) __builtin_prefetch(out + r * width + t * tile_width, 1);
        }
        for (std::size_t group = 0; group < groups; ++group) {
            // After the last group come those of the next tiles.
            const std::size_t ahead = group + std::max<std::size_t>(1, lookahead / (Tiles * group_bytes));
            const std::size_t later = ahead * group_bytes + (ahead < groups ? 0 : (Tiles - 1) * tile_bytes);
            sum_group<Bits, Rows, Tiles>(values + group * group_bytes,
                                         reinterpret_cast<std::uintptr_t>(values) + later, tile_bytes, group_bytes,
                                         panel.values + group * weights.group * Rows, sums[0][0]);
            for (int t = 0; t < Tiles; ++t) {
                const std::size_t at = ((tile + t) * groups + group) * tile_width;
                const __m512 scale = scales_at(weights, at);
                const __m512i zero = zeros_at(weights, at);
                for (int r = 0; r < Rows; ++r) {
                    const std::size_t place = group * Rows + r;
                    const __m512i shift = _mm512_mullo_epi32(zero, _mm512_set1_epi32(panel.sums[place]));
                    const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(sums[r][t]), shift));
                    const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(panel.scales[place]));
                    _mm512_store_ps(total[r][t], _mm512_fmadd_ps(sum, both, _mm512_load_ps(total[r][t])));
                }
            }
        }
        for (int t = 0; t < Tiles; ++t) {
            const std::size_t columns = std::min(tile_width, width - (tile + t) * tile_width);
            const __mmask16 mask = static_cast<__mmask16>((1u << columns) - 1);
            for (int r = 0; r < Rows; ++r)
                _mm512_mask_storeu_ps(out + r * width + t * tile_width, mask, _mm512_load_ps(total[r][t]));
        }
    }

    static __m512 scales_at(const Weights& weights, std::size_t at) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights.scales + at)));
    }

    static __m512i zeros_at(const Weights& weights, std::size_t at) {
        if (!weights.zeros) return _mm512_set1_epi32(weights.middle());
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights.zeros + at)));
    }
};

}  // namespace

const Path avx512_path = {"avx512", supported, quantize, walk<Kernel>};

}  // namespace qefficient

#pragma GCC pop_options

#endif
