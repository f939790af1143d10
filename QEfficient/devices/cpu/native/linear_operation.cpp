#include "linear_operation.hpp"

#include "checks.hpp"
#include "parallel.hpp"

namespace qefficient {

Weights CompressedLinear::numbers(std::size_t layer) const {
    const auto size = [](std::int64_t number) { return static_cast<std::size_t>(number); };
    return {nullptr, nullptr, nullptr, size(bits_), size(group_), size(in_features_), size(out_features_[layer])};
}

void CompressedLinear::validate_and_infer_types() {
    NODE_VALIDATION_CHECK(this, layers() > 0, "there is no layer");
    const std::size_t given = get_input_size();
    NODE_VALIDATION_CHECK(this, given == 1 + 2 * layers() || given == 1 + 3 * layers(), given, " inputs, not one and 2 or",
                          " 3 for each of ", layers(), " layers");
    check_rows(*this, in_features_);
    ov::PartialShape shape = get_input_partial_shape(0);
    set_output_size(layers());
    for (std::size_t layer = 0; layer < layers(); ++layer) {
        check_weights(*this, 1 + layer * inputs_per_layer(), inputs_per_layer(), numbers(layer));
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
        const Weights weights =
            weights_at(numbers(layer), &inputs[1 + layer * inputs_per_layer()], inputs_per_layer());
        shape.back() = weights.out_features;
        outputs[layer].set_shape(shape);
        products[layer] = {weights, outputs[layer].data<float>()};
    }
    multiply(products.data(), layers(), inputs[0].data<const float>(), inputs[0].get_size() / inputs[0].get_shape().back(),
             threads_here());
    return true;
}

}  // namespace qefficient
