// What the operations ask of their inputs, and how they find their weights among them.
#pragma once

#include <openvino/op/op.hpp>

#include "linear.hpp"

namespace qefficient {

// That input 0 is rows of so many floats.
void check_rows(const ov::Node& node, std::int64_t in_features);

// That `inputs` inputs (2 or 3) from the number `first` on are `count` matrices. Keeps scales in half precision.
void check_weights(const ov::Node& node, std::size_t first, std::size_t inputs, const Weights& numbers,
                   std::size_t count = 1);

// The weights that lie in `inputs` tensors (2 or 3).
Weights weights_at(Weights numbers, const ov::Tensor* given, std::size_t inputs);

}  // namespace qefficient
