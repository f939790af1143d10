#include "checks.hpp"

namespace qefficient {
namespace {

void check_input(const ov::Node& node, std::size_t input, ov::element::Type type, std::size_t elements) {
    NODE_VALIDATION_CHECK(&node, node.get_input_element_type(input) == type, "input ", input, " is ",
                          node.get_input_element_type(input), ", not ", type);
    const ov::PartialShape& shape = node.get_input_partial_shape(input);
    NODE_VALIDATION_CHECK(&node, shape.is_static() && ov::shape_size(shape.to_shape()) == elements, "input ", input,
                          " has the shape ", shape, ", but ", elements, " elements are needed");
}

}  // namespace

void check_rows(const ov::Node& node, std::int64_t in_features) {
    NODE_VALIDATION_CHECK(&node, node.get_input_element_type(0) == ov::element::f32, "input 0 is ",
                          node.get_input_element_type(0), ", not f32");
    const ov::PartialShape& shape = node.get_input_partial_shape(0);
    if (shape.rank().is_static())
        NODE_VALIDATION_CHECK(&node, shape.size() > 0 && shape[shape.size() - 1].compatible(in_features), "input 0 is ",
                              shape, ", but the layer has ", in_features, " inputs");
}

void check_weights(const ov::Node& node, std::size_t first, std::size_t inputs, const Weights& numbers,
                   std::size_t count) {
    NODE_VALIDATION_CHECK(&node, known(numbers), "no kernel for ", numbers.bits, " bits in groups of ", numbers.group,
                          ", ", numbers.in_features, " by ", numbers.out_features);
    const std::size_t numbers_of_groups = count * numbers.tiles() * numbers.groups() * tile_width;
    check_input(node, first, ov::element::u8, count * numbers.bytes());
    check_input(node, first + 1, ov::element::f16, numbers_of_groups);
    if (inputs == 3) check_input(node, first + 2, ov::element::u8, numbers_of_groups);
    // Or the plugin would make 32-bit copies of them. The key is what `ov::KeepConstPrecision`, whose header is not
    // public, goes by; were it not, the check above would say so when the model is compiled.
    node.get_input_node_ptr(first + 1)->get_rt_info()["keep_const_precision_0"] = true;
}

Weights weights_at(Weights numbers, const ov::Tensor* given, std::size_t inputs) {
    numbers.values = given[0].data<const std::uint8_t>();
    numbers.scales = reinterpret_cast<const std::uint16_t*>(given[1].data<const ov::float16>());
    numbers.zeros = inputs == 3 ? given[2].data<const std::uint8_t>() : nullptr;
    return numbers;
}

}  // namespace qefficient
