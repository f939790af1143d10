#include "experts.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

namespace qefficient {
namespace {

// From so many rows of a matrix on, threads share its work: below, each takes some matrices.
constexpr std::size_t many_rows = 8;

// The rows of a call by the matrix that they chose.
class ChosenCall {
public:
    ChosenCall(const Stack& stack, const Choice* choices, std::size_t rows, const float* x, float* y)
        : stack_(stack), choices_(choices), x_(x), y_(y), order_(rows), begins_(stack.count + 1) {
        for (std::size_t row = 0; row < rows; ++row) ++begins_[choices[row].matrix + 1];
        for (std::size_t matrix = 0; matrix < stack.count; ++matrix) {
            if (begins_[matrix + 1] > 0) chosen_.push_back(matrix);
            begins_[matrix + 1] += begins_[matrix];
        }
        std::vector<std::size_t> next(begins_.begin(), begins_.end() - 1);
        for (std::size_t row = 0; row < rows; ++row) order_[next[choices[row].matrix]++] = row;
    }

    void execute(const Parallel& parallel) const {
        if (chosen_.size() < 2 * parallel.threads || order_.size() >= many_rows * chosen_.size()) {
            for (const std::size_t matrix : chosen_) multiply_one(matrix, parallel);
            return;
        }
        const auto body = [](void* context, std::size_t begin, std::size_t end) {
            const auto& call = *static_cast<const ChosenCall*>(context);
            for (std::size_t i = begin; i < end; ++i) call.multiply_one(call.chosen_[i], serial);
        };
        parallel.run(chosen_.size(), body, const_cast<ChosenCall*>(this));
    }

private:
    void multiply_one(std::size_t matrix, const Parallel& parallel) const {
        const std::size_t* const rows = &order_[begins_[matrix]];
        const std::size_t count = begins_[matrix + 1] - begins_[matrix];
        const Weights weights = stack_.at(matrix);
        if (in_place(rows, count)) {
            const Product product = {weights, y_ + rows[0] * weights.out_features};
            multiply(&product, 1, x_ + choices_[rows[0]].input * weights.in_features, count, parallel);
            return;
        }
        const std::size_t inputs = weights.in_features, outputs = weights.out_features;
        const std::unique_ptr<float[]> x(new float[count * inputs]), y(new float[count * outputs]);
        for (std::size_t i = 0; i < count; ++i)
            std::memcpy(&x[i * inputs], x_ + choices_[rows[i]].input * inputs, inputs * sizeof(float));
        const Product product = {weights, y.get()};
        multiply(&product, 1, x.get(), count, parallel);
        for (std::size_t i = 0; i < count; ++i)
            std::memcpy(y_ + rows[i] * outputs, &y[i * outputs], outputs * sizeof(float));
    }

    // Whether these rows follow one another, in what they take and in what they give.
    bool in_place(const std::size_t* rows, std::size_t count) const {
        for (std::size_t i = 1; i < count; ++i)
            if (rows[i] != rows[0] + i || choices_[rows[i]].input != choices_[rows[0]].input + i) return false;
        return true;
    }

    const Stack& stack_;
    const Choice* const choices_;
    const float* const x_;
    float* const y_;
    std::vector<std::size_t> order_, begins_, chosen_;  // rows by matrix, where each matrix's begin, who has any
};

}  // namespace

Weights Stack::at(std::size_t number) const {
    Weights weights = first;
    const std::size_t numbers_of_groups = first.tiles() * first.groups() * tile_width;
    weights.values += number * first.bytes();
    weights.scales += number * numbers_of_groups;
    if (weights.zeros) weights.zeros += number * numbers_of_groups;
    return weights;
}

void multiply_chosen(const Stack& stack, const Choice* choices, std::size_t rows, const float* x, float* y,
                     const Parallel& parallel) {
    if (rows > 0) ChosenCall(stack, choices, rows, x, y).execute(parallel);
}

}  // namespace qefficient
