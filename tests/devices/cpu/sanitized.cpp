// Runs every path of the native linear layer over awkward sizes, in buffers of exactly the size that they need, so that
// the sanitizers see every byte that is read or written beside them. Exits with 0 if all paths agree.
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "linear.hpp"

namespace {

using qefficient::Parallel;
using qefficient::Weights;

// A vector may have more room than it says.
template <class T>
struct Exact {
    explicit Exact(std::size_t size) : data(new T[size]), size(size) {}
    std::unique_ptr<T[]> data;
    std::size_t size;
};

void share(std::size_t count, Parallel::Body body, void* context) {
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < 3; ++i) {
        const std::size_t begin = i * count / 3, end = (i + 1) * count / 3;
        if (begin < end) threads.emplace_back(body, context, begin, end);
    }
    for (std::thread& thread : threads) thread.join();
}

bool check(std::size_t bits, std::size_t group, std::size_t inputs, std::size_t channels, std::size_t rows, bool zeros) {
    std::mt19937 random(1);
    Weights weights = {nullptr, nullptr, nullptr, bits, group, inputs, channels};
    const std::size_t numbers = weights.tiles() * weights.groups() * qefficient::tile_width;
    Exact<std::uint8_t> values(weights.bytes()), zero_points(numbers);
    Exact<std::uint16_t> scales(numbers);
    Exact<float> x(rows * inputs);
    for (std::size_t i = 0; i < values.size; ++i) values.data[i] = static_cast<std::uint8_t>(random());
    for (std::size_t i = 0; i < numbers; ++i) zero_points.data[i] = static_cast<std::uint8_t>(random());
    // Every half there is, subnormal ones too, but infinities and NaN
    for (std::size_t i = 0; i < numbers; ++i) scales.data[i] = static_cast<std::uint16_t>(random() & 0xbbff);
    for (std::size_t i = 0; i < x.size; ++i) x.data[i] = std::normal_distribution<float>()(random);
    if (x.size > 5) x.data[5] = std::numeric_limits<float>::infinity();
    weights.values = values.data.get();
    weights.scales = scales.data.get();
    weights.zeros = zeros ? zero_points.data.get() : nullptr;
    Exact<float> expected(rows * channels), y(rows * channels), twin(rows * channels);
    const auto run = [&](const char* path, const Parallel& parallel, Exact<float>& to) {
        if (!qefficient::choose_path(path)) return true;
        const qefficient::Product products[] = {{weights, to.data.get()}, {weights, twin.data.get()}};
        qefficient::multiply(products, 2, x.data.get(), rows, parallel);
        if (std::memcmp(to.data.get(), twin.data.get(), to.size * sizeof(float)) != 0) {
            std::printf("%s: two layers with the same weights differ\n", path);
            return false;
        }
        for (std::size_t i = 0; i < to.size; ++i) {
            const bool both_nan = to.data[i] != to.data[i] && expected.data[i] != expected.data[i];
            if (!both_nan && std::memcmp(&to.data[i], &expected.data[i], sizeof(float)) != 0) {
                std::printf("%s differs: %zu bits, group %zu, %zu by %zu, %zu rows\n", path, bits, group, inputs,
                            channels, rows);
                return false;
            }
        }
        return true;
    };
    bool right = run("portable", qefficient::serial, expected);
    for (const char* path : {"avx512", "avx2", "portable"})
        for (const Parallel& parallel : {qefficient::serial, Parallel{share, 3}}) right &= run(path, parallel, y);
    return right;
}

}  // namespace

int main() {
    bool right = true;
    for (const std::size_t bits : {4, 8})
        for (const std::size_t group : {32, 64, 128})
            for (const auto& [inputs, channels] : {std::pair{1, 1}, {8, 17}, {100, 33}, {260, 100}, {129, 300}})
                for (const std::size_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 40})
                    right &= check(bits, group, inputs, channels, rows, rows % 2 == 0);
    right &= check(4, 128, 8200, 40, 150, true);
    right &= check(8, 32, 600, 1000, 30, false);
    std::puts(right ? "all paths agree" : "wrong");
    return right ? 0 : 1;
}
