// The kernel as an operation of OpenVINO: CompressedLinear of the domain `qefficient`.
#pragma once

#include <openvino/op/op.hpp>

#include "linear.hpp"

namespace qefficient {

// Inputs: x [..., in_features] f32; values u8 of any shape; scales f16 [tiles, groups, 16]; zeros u8 like the scales, or
// none. linear.hpp says how they lie. Output: [..., out_features] f32.
class CompressedLinear : public ov::op::Op {
public:
    OPENVINO_OP("CompressedLinear", "qefficient");

    CompressedLinear() = default;
    explicit CompressedLinear(const ov::OutputVector& inputs) : Op(inputs) {}

    void validate_and_infer_types() override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override;
    bool visit_attributes(ov::AttributeVisitor& visitor) override;
    bool has_evaluate() const override { return true; }
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;

private:
    Weights numbers() const;
    void check_size(std::size_t input, std::size_t elements) const;

    std::int64_t bits_ = 0, group_ = 0, in_features_ = 0, out_features_ = 0;
};

}  // namespace qefficient
