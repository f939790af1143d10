// The kernel for rows that choose their matrix, as an operation of OpenVINO: ExpertLinear of the domain `qefficient`.
#pragma once

#include <openvino/op/op.hpp>
#include <vector>

#include "experts.hpp"

namespace qefficient {

// Inputs: x [..., rows, in_features] f32; the numbers of the chosen matrices, an integer for each place of [...]; then
// values u8 of any shape, scales f16 [matrices * tiles, groups, 16], and zeros u8 like the scales, or none. linear.hpp says how
// they lie. The places of x and of the choices are broadcast to one another. Output: [..., rows, out_features] f32.
class ExpertLinear : public ov::op::Op {
public:
    OPENVINO_OP("ExpertLinear", "qefficient");

    ExpertLinear() = default;
    explicit ExpertLinear(const ov::OutputVector& inputs) : Op(inputs) {}

    void validate_and_infer_types() override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override;
    bool visit_attributes(ov::AttributeVisitor& visitor) override;
    bool has_evaluate() const override { return true; }
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;

private:
    Stack numbers() const;

    std::int64_t bits_ = 0, group_ = 0, in_features_ = 0, out_features_ = 0, experts_ = 0;
};

}  // namespace qefficient
