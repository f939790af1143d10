// Rows that choose their matrix: the experts of a mixture.
#pragma once

#include "linear.hpp"

namespace qefficient {

// Matrices of the same size that lie one behind the other, each in whole tiles.
struct Stack {
    Weights first;
    std::size_t count;

    Weights at(std::size_t number) const;
};

// One row of a call: which row of the inputs it takes, and which matrix.
struct Choice {
    std::size_t input, matrix;
};

// y[row, N] = x[choices[row].input, K] · Wᵀ of the row's matrix, as `multiply` would write it for this row alone. A
// matrix that nobody chose is not read.
void multiply_chosen(const Stack& stack, const Choice* choices, std::size_t rows, const float* x, float* y,
                     const Parallel& parallel);

}  // namespace qefficient
