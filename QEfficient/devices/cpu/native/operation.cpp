#include "operation.hpp"

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>

#include "parallel.hpp"

namespace qefficient {

Weights CompressedLinear::numbers(std::size_t layer) const {
    const auto size = [](std::int64_t number) { return static_cast<std::size_t>(number); };
    return {nullptr, nullptr, nullptr, size(bits_), size(group_), size(in_features_), size(out_features_[layer])};
}

void CompressedLinear::check_input(std::size_t input, ov::element::Type type, std::size_t elements) const {
    NODE_VALIDATION_CHECK(this, get_input_element_type(input) == type, "input ", input, " is ",
                          get_input_element_type(input), ", not ", type);
    const ov::PartialShape& shape = get_input_partial_shape(input);
    NODE_VALIDATION_CHECK(this, shape.is_static() && ov::shape_size(shape.to_shape()) == elements, "input ", input,
                          " has the shape ", shape, ", but ", elements, " elements are needed");
}

void CompressedLinear::check_layer(std::size_t layer) {
    const Weights weights = numbers(layer);
    NODE_VALIDATION_CHECK(this, known(weights), "no kernel for ", bits_, " bits in groups of ", group_, ", ",
                          in_features_, " by ", out_features_[layer]);
    const std::size_t first = 1 + layer * inputs_per_layer();
    const std::size_t numbers_of_groups = weights.tiles() * weights.groups() * tile_width;
    check_input(first, ov::element::u8, weights.bytes());
    check_input(first + 1, ov::element::f16, numbers_of_groups);
    if (inputs_per_layer() == 3) check_input(first + 2, ov::element::u8, numbers_of_groups);
    // Or the plugin would make 32-bit copies of them. The key is what `ov::KeepConstPrecision`, whose header is not
    // public, goes by; were it not, the check above would say so when the model is compiled.
    get_input_node_ptr(first + 1)->get_rt_info()["keep_const_precision_0"] = true;
}

void CompressedLinear::validate_and_infer_types() {
    NODE_VALIDATION_CHECK(this, layers() > 0, "there is no layer");
    const std::size_t given = get_input_size();
    NODE_VALIDATION_CHECK(this, given == 1 + 2 * layers() || given == 1 + 3 * layers(), given, " inputs, not one and 2 or",
                          " 3 for each of ", layers(), " layers");
    NODE_VALIDATION_CHECK(this, get_input_element_type(0) == ov::element::f32, "input 0 is ", get_input_element_type(0),
                          ", not f32");
    ov::PartialShape shape = get_input_partial_shape(0);
    if (shape.rank().is_static())
        NODE_VALIDATION_CHECK(this, shape.size() > 0 && shape[shape.size() - 1].compatible(in_features_), "input 0 is ",
                              shape, ", but the layer has ", in_features_, " inputs");
    set_output_size(layers());
    for (std::size_t layer = 0; layer < layers(); ++layer) {
        check_layer(layer);
        if (shape.rank().is_static()) shape[shape.size() - 1] = out_features_[layer];
        set_output_type(layer, ov::element::f32, shape);
    }
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
    ov::Shape shape = inputs[0].get_shape();
    OPENVINO_ASSERT(!shape.empty() && static_cast<std::int64_t>(shape.back()) == in_features_, "CompressedLinear got ",
                    shape, ", but the layer has ", in_features_, " inputs");
    std::vector<Product> products(layers());
    for (std::size_t layer = 0; layer < layers(); ++layer) {
        const ov::Tensor* const own = &inputs[1 + layer * inputs_per_layer()];
        Weights weights = numbers(layer);
        weights.values = own[0].data<const std::uint8_t>();
        weights.scales = reinterpret_cast<const std::uint16_t*>(own[1].data<const ov::float16>());
        weights.zeros = inputs_per_layer() == 3 ? own[2].data<const std::uint8_t>() : nullptr;
        shape.back() = weights.out_features;
        outputs[layer].set_shape(shape);
        products[layer] = {weights, outputs[layer].data<float>()};
    }
    multiply(products.data(), layers(), inputs[0].data<const float>(), inputs[0].get_size() / inputs[0].get_shape().back(),
             threads_here());
    return true;
}

}  // namespace qefficient

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<qefficient::CompressedLinear>>(),
    std::make_shared<ov::frontend::onnx::OpExtension<qefficient::CompressedLinear>>("CompressedLinear", "qefficient"),
}));
