// The kernel as an operation of OpenVINO: CompressedLinear of the domain `qefficient`.
#pragma once

#include <openvino/op/op.hpp>
#include <vector>

#include "linear.hpp"

namespace qefficient {

// One or more layers that are fed with the same. Inputs: x [..., in_features] f32; then, for each number in
// out_features, values u8 of any shape; scales f16 [tiles, groups, 16]; zeros u8 like the scales, or none of any layer.
// linear.hpp says how they lie. Outputs: [..., out_features] f32 of each layer.
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
    Weights numbers(std::size_t layer) const;
    std::size_t layers() const { return out_features_.size(); }
    std::size_t inputs_per_layer() const { return (get_input_size() - 1) / layers(); }

    std::int64_t bits_ = 0, group_ = 0, in_features_ = 0;
    std::vector<std::int64_t> out_features_;
};

}  // namespace qefficient
