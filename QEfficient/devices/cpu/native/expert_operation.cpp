#include "expert_operation.hpp"

#include "checks.hpp"
#include "parallel.hpp"

namespace qefficient {
namespace {

// A shape without its last two sizes: the places that choose.
template <class Shape>
Shape places(const Shape& shape) {
    return Shape(std::vector<typename Shape::value_type>(shape.begin(), shape.end() - 2));
}

// How far apart the places of an input lie in it, where the result has `shape`: 0 where it is broadcast.
std::vector<std::size_t> strides(const ov::Shape& own, const ov::Shape& shape) {
    std::vector<std::size_t> found(shape.size(), 0);
    std::size_t stride = 1;
    for (std::size_t i = own.size(), at = shape.size(); i-- > 0; stride *= own[i]) found[--at] = own[i] == 1 ? 0 : stride;
    return found;
}

ov::Shape broadcast(const ov::Shape& one, const ov::Shape& other) {
    ov::PartialShape shape = one;
    OPENVINO_ASSERT(ov::PartialShape::broadcast_merge_into(shape, other, ov::op::AutoBroadcastType::NUMPY),
                    "ExpertLinear got inputs for the places ", one, " and choices for ", other);
    return shape.to_shape();
}

std::int64_t number_at(const ov::Tensor& tensor, std::size_t place) {
    return tensor.get_element_type() == ov::element::i64 ? tensor.data<const std::int64_t>()[place]
                                                         : tensor.data<const std::int32_t>()[place];
}

// What each row of the result is made of. `rows`: of each place.
std::vector<Choice> choices_of(const ov::Shape& shape, const ov::Shape& given, const ov::Tensor& chosen,
                               std::size_t rows, std::size_t matrices) {
    const std::vector<std::size_t> of_input = strides(given, shape), of_choice = strides(chosen.get_shape(), shape);
    std::vector<Choice> choices;
    choices.reserve(ov::shape_size(shape) * rows);
    for (std::size_t place = 0; place < ov::shape_size(shape); ++place) {
        std::size_t input = 0, choice = 0;
        for (std::size_t axis = shape.size(), left = place; axis-- > 0; left /= shape[axis]) {
            input += left % shape[axis] * of_input[axis];
            choice += left % shape[axis] * of_choice[axis];
        }
        const std::int64_t matrix = number_at(chosen, choice);
        OPENVINO_ASSERT(matrix >= 0 && matrix < static_cast<std::int64_t>(matrices), "expert ", matrix,
                        " was chosen, but there are ", matrices);
        for (std::size_t row = 0; row < rows; ++row)
            choices.push_back({input * rows + row, static_cast<std::size_t>(matrix)});
    }
    return choices;
}

}  // namespace

Stack ExpertLinear::numbers() const {
    const auto size = [](std::int64_t number) { return static_cast<std::size_t>(number); };
    return {{nullptr, nullptr, nullptr, size(bits_), size(group_), size(in_features_), size(out_features_)},
            size(experts_)};
}

void ExpertLinear::validate_and_infer_types() {
    const std::size_t given = get_input_size();
    NODE_VALIDATION_CHECK(this, given == 4 || given == 5, given, " inputs, not 4 or 5");
    NODE_VALIDATION_CHECK(this, experts_ > 0, "there is no expert");
    const ov::element::Type kind = get_input_element_type(1);
    NODE_VALIDATION_CHECK(this, kind == ov::element::i64 || kind == ov::element::i32, "input 1 is ", kind);
    check_rows(*this, in_features_);
    check_weights(*this, 2, given - 2, numbers().first, numbers().count);

    const ov::PartialShape x = get_input_partial_shape(0), chosen = get_input_partial_shape(1);
    ov::PartialShape shape = ov::PartialShape::dynamic();
    if (x.rank().is_static() && chosen.rank().is_static()) {
        NODE_VALIDATION_CHECK(this, x.size() >= 2, "input 0 is ", x, ", but rows of inputs are needed");
        shape = places(x);
        NODE_VALIDATION_CHECK(this,
                              ov::PartialShape::broadcast_merge_into(shape, chosen, ov::op::AutoBroadcastType::NUMPY),
                              "inputs for the places ", places(x), " and choices for ", chosen);
        shape.push_back(x[x.size() - 2]);
        shape.push_back(out_features_);
    }
    set_output_type(0, ov::element::f32, shape);
}

std::shared_ptr<ov::Node> ExpertLinear::clone_with_new_inputs(const ov::OutputVector& inputs) const {
    auto clone = std::make_shared<ExpertLinear>(inputs);
    clone->bits_ = bits_;
    clone->group_ = group_;
    clone->in_features_ = in_features_;
    clone->out_features_ = out_features_;
    clone->experts_ = experts_;
    clone->validate_and_infer_types();
    return clone;
}

bool ExpertLinear::visit_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("bits", bits_);
    visitor.on_attribute("group", group_);
    visitor.on_attribute("in_features", in_features_);
    visitor.on_attribute("out_features", out_features_);
    visitor.on_attribute("experts", experts_);
    return true;
}

bool ExpertLinear::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const ov::Shape x = inputs[0].get_shape();
    OPENVINO_ASSERT(x.size() >= 2 && static_cast<std::int64_t>(x.back()) == in_features_, "ExpertLinear got ", x,
                    ", but an expert has ", in_features_, " inputs");
    const std::size_t rows = x[x.size() - 2];
    ov::Shape shape = broadcast(places(x), inputs[1].get_shape());
    const Stack stack = {weights_at(numbers().first, &inputs[2], inputs.size() - 2), numbers().count};
    const std::vector<Choice> choices = choices_of(shape, places(x), inputs[1], rows, stack.count);
    shape.insert(shape.end(), {rows, stack.first.out_features});
    outputs[0].set_shape(shape);
    multiply_chosen(stack, choices.data(), choices.size(), inputs[0].data<const float>(), outputs[0].data<float>(),
                    threads_here());
    return true;
}

}  // namespace qefficient
