// What OpenVINO finds in this library.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>

#include "expert_operation.hpp"
#include "linear_operation.hpp"

using qefficient::CompressedLinear;
using qefficient::ExpertLinear;

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<CompressedLinear>>(),
    std::make_shared<ov::frontend::onnx::OpExtension<CompressedLinear>>("CompressedLinear", "qefficient"),
    std::make_shared<ov::OpExtension<ExpertLinear>>(),
    std::make_shared<ov::frontend::onnx::OpExtension<ExpertLinear>>("ExpertLinear", "qefficient"),
}));
