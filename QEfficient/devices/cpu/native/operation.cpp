#include "operation.hpp"

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>

#include "parallel.hpp"

namespace qefficient {

Weights CompressedLinear::numbers() const {
    const auto size = [](std::int64_t number) { return static_cast<std::size_t>(number); };
    return {nullptr, nullptr, nullptr, size(bits_), size(group_), size(in_features_), size(out_features_)};
}

void CompressedLinear::check_size(std::size_t input, std::size_t elements) const {
    const ov::PartialShape& shape = get_input_partial_shape(input);
    NODE_VALIDATION_CHECK(this, shape.is_static() && ov::shape_size(shape.to_shape()) == elements, "input ", input,
                          " has the shape ", shape, ", but ", elements, " elements are needed");
}

void CompressedLinear::validate_and_infer_types() {
    const Weights weights = numbers();
    NODE_VALIDATION_CHECK(this, known(weights), "no kernel for ", bits_, " bits in groups of ", group_, ", ",
                          in_features_, " by ", out_features_);
    NODE_VALIDATION_CHECK(this, get_input_size() == 3 || get_input_size() == 4, get_input_size(), " inputs, not 3 or 4");
    const auto check_type = [this](std::size_t input, ov::element::Type type) {
        NODE_VALIDATION_CHECK(this, get_input_element_type(input) == type, "input ", input, " is ",
                              get_input_element_type(input), ", not ", type);
    };
    check_type(0, ov::element::f32);
    check_type(1, ov::element::u8);
    check_type(2, ov::element::f16);
    check_size(1, weights.bytes());
    check_size(2, weights.tiles() * weights.groups() * tile_width);
    if (get_input_size() == 4) {
        check_type(3, ov::element::u8);
        check_size(3, weights.tiles() * weights.groups() * tile_width);
    }
    // Or the plugin would make 32-bit copies of them. The key is what `ov::KeepConstPrecision`, whose header is not
    // public, goes by; were it not, the check above would say so when the model is compiled.
    get_input_node_ptr(2)->get_rt_info()["keep_const_precision_0"] = true;
    ov::PartialShape shape = get_input_partial_shape(0);
    if (shape.rank().is_static()) {
        NODE_VALIDATION_CHECK(this, shape.size() > 0 && shape[shape.size() - 1].compatible(in_features_), "input 0 is ",
                              shape, ", but the layer has ", in_features_, " inputs");
        shape[shape.size() - 1] = out_features_;
    }
    set_output_type(0, ov::element::f32, shape);
}

std::shared_ptr<ov::Node> CompressedLinear::clone_with_new_inputs(const ov::OutputVector& inputs) const {
    auto clone = std::make_shared<CompressedLinear>(inputs);
    clone->bits_ = bits_;
    clone->group_ = group_;
    clone->in_features_ = in_features_;
    clone->out_features_ = out_features_;
    clone->validate_and_infer_types();
    return clone;
}

bool CompressedLinear::visit_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("bits", bits_);
    visitor.on_attribute("group", group_);
    visitor.on_attribute("in_features", in_features_);
    visitor.on_attribute("out_features", out_features_);
    return true;
}

bool CompressedLinear::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    Weights weights = numbers();
    weights.values = inputs[1].data<const std::uint8_t>();
    weights.scales = reinterpret_cast<const std::uint16_t*>(inputs[2].data<const ov::float16>());
    weights.zeros = inputs.size() == 4 ? inputs[3].data<const std::uint8_t>() : nullptr;
    ov::Shape shape = inputs[0].get_shape();
    OPENVINO_ASSERT(!shape.empty() && shape.back() == weights.in_features, "CompressedLinear got ", shape,
                    ", but the layer has ", in_features_, " inputs");
    shape.back() = weights.out_features;
    outputs[0].set_shape(shape);
    multiply(weights, inputs[0].data<const float>(), inputs[0].get_size() / weights.in_features,
             outputs[0].data<float>(), threads_here());
    return true;
}

}  // namespace qefficient

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<qefficient::CompressedLinear>>(),
    std::make_shared<ov::frontend::onnx::OpExtension<qefficient::CompressedLinear>>("CompressedLinear", "qefficient"),
}));
