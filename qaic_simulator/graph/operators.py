"""The operators that a graph may have, and which of their operands must be constant: data, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

CUSTOM_DOMAINS = ("com.qualcomm.cloud", "com.qti.aisw.onnx", "com.microsoft")
"""Domains whose operators the compiler knows, beside ONNX's own."""

_ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Celu Clip Cos
    Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less
    LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh
    Softplus Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor
"""
_REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
"""
_LAYERS = """
    AveragePool BatchNormalization Conv ConvInteger ConvTranspose DeformConv Dropout GRU Gemm GlobalAveragePool
    GlobalMaxPool GroupNormalization Hardmax InstanceNormalization LRN LSTM LayerNormalization LogSoftmax
    LpNormalization LpPool MatMul MatMulInteger MaxPool MeanVarianceNormalization NonMaxSuppression RNN RoiAlign
    Softmax
"""
_MOVEMENT = """
    ArgMax ArgMin Cast CastLike Compress Concat Constant ConstantOfShape CumSum DepthToSpace Einsum Expand EyeLike
    Flatten Gather GatherElements GatherND GridSample Identity NonZero OneHot Pad Range Reshape Resize ReverseSequence
    Scatter ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile TopK Transpose Trilu Unique
    Unsqueeze Upsample
"""
_QUANTIZATION = "DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul QuantizeLinear"
_CONTROL = "If Loop Scan"

OPERATORS = frozenset(" ".join([_ELEMENTWISE, _REDUCTIONS, _LAYERS, _MOVEMENT, _QUANTIZATION, _CONTROL]).split())
"""Of ONNX: what exports of transformers and Glow's importer have in common with the list that is not published.

Some of these are refused for what they do with their operands, with a message of their own.
"""

CUSTOM_OPERATORS = frozenset(
    {
        ("com.qti.aisw.onnx", "CustomRMSNorm"),
        ("com.qti.aisw.onnx", "CastToUInt4"),
        ("com.microsoft", "MatMulNBits"),
        ("com.microsoft", "QMoE"),
    }
)
"""Operators of the custom domains that need no local function."""

DATA_DEPENDENT = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose outputs are as long as the data makes them."""

REDUCTIONS = tuple(_REDUCTIONS.split())


@dataclass(frozen=True)
class Requirement:
    """Operands of an operator that must be constant once symbols are numbers."""

    rule: str
    what: str
    """What the operand is called in the refusal."""
    operands: tuple[int, ...] = (1,)


CONSTANCY: dict[str, tuple[Requirement, ...]] = {
    "Reshape": (Requirement("constancy.reshape", "shape"),),
    "Expand": (Requirement("constancy.repeats", "shape"),),
    "Tile": (Requirement("constancy.repeats", "repeats"),),
    "Range": (Requirement("constancy.range", "limit", (0, 1, 2)),),
    "Split": (Requirement("constancy.split", "split"),),
    **dict.fromkeys(REDUCTIONS, (Requirement("constancy.axes", "axes"),)),
    "Slice": (Requirement("constancy.operand", "bounds", (1, 2, 3, 4)),),
    "TopK": (Requirement("constancy.operand", "k"),),
    "Pad": (Requirement("constancy.operand", "pads", (1, 2, 3)),),
    "Resize": (Requirement("constancy.operand", "scales", (1, 2, 3)),),
    "Trilu": (Requirement("constancy.diagonal", "diagonal"),),
    "CumSum": (Requirement("constancy.operand", "axis"),),
    "ConstantOfShape": (Requirement("constancy.operand", "shape", (0,)),),
    "OneHot": (Requirement("constancy.operand", "depth"),),
    "Squeeze": (Requirement("constancy.operand", "axes"),),
    "Unsqueeze": (Requirement("constancy.operand", "axes"),),
}
"""By operator: what must be constant, and the rule that says so."""
