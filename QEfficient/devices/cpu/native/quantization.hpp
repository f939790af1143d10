// What every instruction set must agree on to the last bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace qefficient {

constexpr std::size_t max_group = 128;

struct Scale {
    float scale;    // what one step is worth
    float inverse;  // what to multiply with before rounding; 0: every value of the group becomes 0
};

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// `top` is the largest magnitude of a group as the bits of a float, which are ordered as the magnitudes are and keep
// infinities and NaN above all else. These make the scale, and with it the row's outputs, NaN.
inline Scale scale_of(std::uint32_t top) {
    constexpr std::uint32_t infinity = 0x7f800000;
    // Below 2^-90 the products with weight scales could be subnormal, which threads need not treat alike: such a group
    // counts as zeros.
    constexpr std::uint32_t least = (127 - 90) << 23;
    if (top >= infinity) return {std::numeric_limits<float>::quiet_NaN(), 0};
    if (top < least) return {0, 0};
    const float magnitude = float_of(top);
    return {magnitude / 127.0f, 127.0f / magnitude};
}

inline float from_half(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent > 0) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
    const float small = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -small : small;
}

}  // namespace qefficient
