// Runs every path of the native linear layer over awkward sizes, in buffers of exactly the size that they need, so that
// the sanitizers see every byte that is read or written beside them. Exits with 0 if all paths agree.
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "experts.hpp"
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

// Each row that chose its matrix is as if it were alone.
bool check_chosen(std::size_t matrices, std::size_t rows, std::size_t places) {
    std::mt19937 random(2);
    constexpr std::size_t inputs = 100, channels = 33;
    const Weights numbers = {nullptr, nullptr, nullptr, 4, 64, inputs, channels};
    qefficient::Stack stack = {numbers, matrices};
    const std::size_t groups = matrices * numbers.tiles() * numbers.groups() * qefficient::tile_width;
    Exact<std::uint8_t> values(matrices * numbers.bytes()), zeros(groups);
    Exact<std::uint16_t> scales(groups);
    Exact<float> x(places * inputs), y(rows * channels), alone(channels);
    for (std::size_t i = 0; i < values.size; ++i) values.data[i] = static_cast<std::uint8_t>(random());
    for (std::size_t i = 0; i < groups; ++i) zeros.data[i] = static_cast<std::uint8_t>(random());
    for (std::size_t i = 0; i < groups; ++i) scales.data[i] = static_cast<std::uint16_t>(random() & 0xbbff);
    for (std::size_t i = 0; i < x.size; ++i) x.data[i] = std::normal_distribution<float>()(random);
    stack.first.values = values.data.get();
    stack.first.scales = scales.data.get();
    stack.first.zeros = zeros.data.get();
    Exact<qefficient::Choice> choices(rows);
    for (std::size_t i = 0; i < rows; ++i) choices.data[i] = {random() % places, random() % matrices};
    for (const Parallel& parallel : {qefficient::serial, Parallel{share, 3}}) {
        qefficient::multiply_chosen(stack, choices.data.get(), rows, x.data.get(), y.data.get(), parallel);
        for (std::size_t row = 0; row < rows; ++row) {
            const auto& [input, matrix] = choices.data[row];
            const qefficient::Product product = {stack.at(matrix), alone.data.get()};
            qefficient::multiply(&product, 1, x.data.get() + input * inputs, 1, qefficient::serial);
            if (std::memcmp(alone.data.get(), y.data.get() + row * channels, channels * sizeof(float)) != 0) {
                std::printf("row %zu of %zu that chose among %zu matrices differs\n", row, rows, matrices);
                return false;
            }
        }
    }
    return true;
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
    qefficient::choose_path("best");
    for (const std::size_t matrices : {1, 5, 64})
        for (const std::size_t rows : {1, 2, 8, 90}) right &= check_chosen(matrices, rows, rows / 2 + 1);
    std::puts(right ? "all paths agree" : "wrong");
    return right ? 0 : 1;
}
