"""What the stand-in compiler refuses or warns about: every rule, its severity and its public source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

KNOWN = "known"
DOCUMENTED = "documented"
INHERITED = "inherited"
POLICY = "policy"
SEVERITIES = (KNOWN, DOCUMENTED, INHERITED, POLICY)
"""Seen on the real tool; documented; true of the Glow importer that the tool descends from; ours."""
LENIENT_SEVERITIES = (KNOWN, DOCUMENTED)
JSON_EXIT_CODE = 255
"""What the real compiler ends with when a JSON file is not of the type that it expects."""


@dataclass(frozen=True)
class Rule:
    """One reason to refuse, with the public source that it was read in."""

    id: str
    severity: str
    source: str
    sentence: str
    exit_code: int = 1


class Refusal(Exception):
    """A command that breaks a rule; the message is the real tool's where that is known."""

    def __init__(self, rule: Rule, message: str) -> None:
        super().__init__(message)
        self.rule = rule
        self.message = message

    @property
    def exit_code(self) -> int:
        """What the process ends with."""
        return self.rule.exit_code


@dataclass(frozen=True)
class Warned:
    """Something that is compiled all the same, and told."""

    rule: Rule
    message: str

    @property
    def line(self) -> str:
        """For stderr, with the rule behind."""
        return f"Warning: {self.message} [simulator rule: {self.rule.id} ({self.rule.severity}, {self.rule.source})]"


_ARGUMENTS = (
    Rule("arguments.unknown", KNOWN, "ISS-2", "An option is in the table of options."),
    Rule("arguments.stray", DOCUMENTED, "DOC", "Every argument is -name or -name=value."),
    Rule("arguments.separated", POLICY, "DOC", "A value stands behind '=', not in the next argument."),
    Rule("arguments.double-dash", POLICY, "DOC", "An option has one dash; --help and --usage alone have two."),
    Rule("arguments.blanks", POLICY, "DOC", "There are no blanks around a name, '=' or a value."),
    Rule("arguments.boolean-text", POLICY, "ET", "A flag stands alone, and no value is the text True or False."),
    Rule("arguments.flag-value", DOCUMENTED, "DOC", "A flag has no value."),
    Rule("arguments.empty", POLICY, "DOC", "A value is not empty."),
    Rule("arguments.no-value", INHERITED, "GLOW", "An option that takes a value has one."),
    Rule("arguments.duplicate", KNOWN, "REG", "An option of one value is given once, under either of its names."),
    Rule("arguments.removed", POLICY, "ET", "An option that a release removed is not given to it."),
    Rule("arguments.running", POLICY, "DOC", "Options of running a network are qaic-exec's, not qaic-compile's."),
)

_VALUES = (
    Rule("values.integer", DOCUMENTED, "DOC", "Where a whole number is asked for, one is given."),
    Rule("values.number", DOCUMENTED, "DOC", "Where a number is asked for, one is given."),
    Rule("values.choice", DOCUMENTED, "DOC", "A value is one of those that the option knows."),
    Rule("values.range", DOCUMENTED, "DOC", "A number lies within the range of its option."),
    Rule("values.count", DOCUMENTED, "DOC", "A list has no more members than its option takes."),
    Rule("symbols.form", DOCUMENTED, "DOC", "A symbol is defined as name,number."),
    Rule("symbols.positive", INHERITED, "GLOW", "A symbol stands for a positive number."),
    Rule("symbols.range", POLICY, "GLOW", "A symbol stands for a number of 32 bits."),
    Rule("symbols.twice", POLICY, "GLOW", "A symbol is defined once."),
)

_TARGET = (
    Rule("target.version", DOCUMENTED, "ET", "The hardware version is ai100 or ai200."),
    Rule("target.old-version", POLICY, "CH", "Hardware version 2.0, which 1.21 warns about, is gone from 1.22."),
    Rule("required.model", DOCUMENTED, "DOC", "A model is given."),
    Rule("required.hardware", POLICY, "DOC", "-aic-hw is given; without it the target is a simulator."),
    Rule("required.version", POLICY, "ET", "The hardware version is given."),
    Rule("required.binary-dir", DOCUMENTED, "DOC", "A folder for the binary is given."),
    Rule("required.compile-only", DOCUMENTED, "DOC", "qaic-exec is told to compile only, or it runs the network."),
    Rule("required.fp16", DOCUMENTED, "DOC", "A build for ai100 that is not quantized converts to fp16."),
    Rule("required.output-nodes", DOCUMENTED, "DOC", "A TensorFlow model comes with the names of its outputs."),
    Rule("exclusive.quantize-profile", DOCUMENTED, "DOC", "-convert-to-quantize goes with no profile."),
    Rule("exclusive.preprocessing", DOCUMENTED, "DOC", "-host-preproc and -aic-preproc are opposites."),
    Rule("exclusive.symbols", DOCUMENTED, "DOC", "Symbols are defined on the command line or in a file, not in both."),
    Rule("exclusive.profiling-fp16", INHERITED, "GLOW", "A build that profiles does not convert to fp16."),
    Rule("needs.depth-first", DOCUMENTED, "DOC", "-aic-depth-first-mem goes with -aic-enable-depth-first."),
)

_MAPPING = (
    Rule("mapping.cores", DOCUMENTED, "DOC", "A program uses 1 to as many cores as the device has."),
    Rule("mapping.instances", DOCUMENTED, "DOC", "All instances together use no more cores than the device has."),
    Rule("mapping.splits", DOCUMENTED, "DOC", "-mos and -ols are 1, 2, 4, 8 or 16, or lists of these."),
    Rule("mapping.mos-beyond-cores", DOCUMENTED, "DOC", "-mos is no larger than the number of cores."),
    Rule("mapping.clusters", POLICY, "CM", "A list of -mos has one number for each cluster."),
)

_FILES = (
    Rule("files.absent", DOCUMENTED, "DOC", "Files that are to be read exist."),
    Rule("files.no-folder", DOCUMENTED, "DOC", "No file stands where the folder for the binary is to be."),
    Rule("files.occupied", POLICY, "ET", "The folder for the binary is new or empty."),
    Rule("json.syntax", DOCUMENTED, "ET#1129", "A JSON file is JSON.", JSON_EXIT_CODE),
    Rule("json.type", DOCUMENTED, "ET#1129", "A JSON value is of the expected type.", JSON_EXIT_CODE),
    Rule("json.repeated", POLICY, "ET", "No key stands twice in a JSON object."),
    Rule("json.key", DOCUMENTED, "ET#1129", "A JSON object has the keys that are read.", JSON_EXIT_CODE),
    Rule("yaml.syntax", DOCUMENTED, "DOC", "A YAML file is YAML."),
    Rule("yaml.repeated", POLICY, "GLOW", "No key stands twice in a YAML mapping."),
    Rule("yaml.aliases", POLICY, "DOC", "The aliases of a YAML file stand for no more than a file would hold."),
)

_SPECIALIZATIONS = (
    Rule("specializations.named", KNOWN, "ET#1129", "SDK 1.21 reads flat entries only.", JSON_EXIT_CODE),
    Rule("specializations.flat", POLICY, "ET", "SDK 1.22 is given named entries."),
    Rule("specializations.number", KNOWN, "SPEC", "Values are strings, not numbers.", JSON_EXIT_CODE),
    Rule("specializations.integer", DOCUMENTED, "DOC", "The text of a value is a whole number."),
    Rule("specializations.positive", INHERITED, "GLOW", "A dimension is positive."),
    Rule("specializations.range", POLICY, "GLOW", "A dimension is a number of 32 bits."),
    Rule("specializations.keys", POLICY, "ET", "There are no keys that nobody reads."),
    Rule("specializations.none", POLICY, "ET", "There is an entry, and it binds a symbol."),
    Rule("specializations.name", POLICY, "ET", "The name of an entry is not empty."),
    Rule("specializations.name-twice", DOCUMENTED, "ET", "No two entries have the same name."),
    Rule("specializations.indistinguishable", KNOWN, "CH", "Some input's shape tells each entry from all others."),
    Rule("specializations.many", POLICY, "ET", "There are at most 16 entries; the real limit is not published."),
)

_PRECISIONS = (
    Rule("custom-io.list", DOCUMENTED, "DOC", "The file is a list of inputs and outputs."),
    Rule("custom-io.item", DOCUMENTED, "DOC", "An item is a mapping with IOName and Precision."),
    Rule("custom-io.key", POLICY, "DOC", "An item has no keys that are not documented."),
    Rule("custom-io.precision", DOCUMENTED, "DOC", "A precision is one of those that are known."),
    Rule("custom-io.twice", POLICY, "ET", "An input or output is listed once."),
    Rule("custom-io.pair", DOCUMENTED, "ET", "A retained state has one precision, on its input and on its output."),
    Rule("custom-io.mxint8", POLICY, "ET", "mxint8 is for pairs of retained state only."),
    Rule("custom-io.bfloat16", POLICY, "K2", "bfloat16 is for ai200."),
    Rule("node-precision.mapping", DOCUMENTED, "DOC", "The file is a mapping."),
    Rule("node-precision.key", DOCUMENTED, "DOC", "Its keys are FP16NodeInstanceNames and FP32NodeInstanceNames."),
    Rule("node-precision.names", DOCUMENTED, "DOC", "Under each key stands a list of names."),
    Rule("node-precision.none", POLICY, "DOC", "The file names at least one node."),
    Rule("node-precision.both", POLICY, "DOC", "No node is in both lists."),
)

_PARTITIONS = (
    Rule("partitions.none", DOCUMENTED, "DOC", "There is a partition, and each has a device."),
    Rule("partitions.key", POLICY, "ET", "There are no keys that nobody reads."),
    Rule("partitions.name-twice", POLICY, "ET", "No two partitions have the same name."),
    Rule("partitions.logical", DOCUMENTED, "SDK", "Device ids are logical: 0, 1, 2, and so on without a gap."),
    Rule("partitions.shared-device", KNOWN, "CH", "A device is in one partition, once."),
    Rule("partitions.cores", DOCUMENTED, "DOC", "A device gives 1 to 16 cores."),
    Rule("partitions.cores-disagree", POLICY, "ET", "-aic-num-cores, if given too, is what the partitions say."),
    Rule("partitions.type", DOCUMENTED, "DOC", "A connection is of type p2p."),
    Rule("partitions.connection", POLICY, "DOC", "A connection joins two or more devices of the partitions."),
    Rule("partitions.devices", DOCUMENTED, "DOC", "There are at most 16 devices."),
    Rule("partitions.power-of-two", POLICY, "ET", "Tensors are sliced over a power of two of devices."),
    Rule("partitions.node-list", POLICY, "ET", "Several partitions say which nodes each has."),
)

_GRAPH = (
    Rule("graph.size", KNOWN, "ET", "The model's own file is smaller than 2 GB."),
    Rule("graph.parse", KNOWN, "ET", "The model's file is an ONNX model."),
    Rule("graph.external", DOCUMENTED, "ONNX", "External data is there, as long as its tensors are."),
    Rule("graph.external-folder", DOCUMENTED, "ONNX", "External data lies below the model, at a path from its folder."),
    Rule("graph.ir-version", INHERITED, "GLOW", "The model's IR version is 3 to 10."),
    Rule("graph.no-opset", INHERITED, "GLOW", "The model says which opset of ONNX it uses."),
    Rule("graph.opset", POLICY, "ET", "That opset is 11 to 18, or 21 for weights in blocks; that of functions too."),
    Rule(
        "graph.domain", INHERITED, "GLOW", "Operators are ONNX's, Qualcomm's, Microsoft's or the model's own functions."
    ),
    Rule("graph.operator", INHERITED, "GLOW", "Each operator is on the list of operators."),
    Rule("graph.malformed", DOCUMENTED, "ONNX", "A node has the operands and attributes that its opset says."),
    Rule("graph.order", INHERITED, "GLOW", "A node uses what an input, a constant or an earlier node is called."),
    Rule(
        "graph.twice",
        DOCUMENTED,
        "ONNX",
        "A name stands for one value, one function, or one node that a partition lists.",
    ),
    Rule("graph.import", DOCUMENTED, "ONNX", "A model, and a function, says once which version of a domain it uses."),
    Rule("graph.recursion", DOCUMENTED, "ONNX", "No function calls itself, be it through others."),
    Rule("graph.mismatch", KNOWN, "ET", "The shapes of operands fit one another."),
    Rule("graph.unbound", KNOWN, "SPEC", "Each specialization binds all symbols of the inputs."),
    Rule("graph.unknown-symbol", POLICY, "ET", "A symbol is the graph's, or one that QEfficient always writes."),
    Rule("graph.dynamic", DOCUMENTED, "DOC", "No dimension is left open once symbols are numbers."),
    Rule("graph.zero-dimension", POLICY, "GLOW", "Nothing but a constant has a dimension of zero."),
    Rule("graph.sequence", KNOWN, "ET", "Every value is a tensor."),
    Rule("graph.sparse", POLICY, "GLOW", "All elements of a constant are written down."),
    Rule("graph.complex", KNOWN, "ET", "No value is complex."),
    Rule("graph.text", INHERITED, "GLOW", "No value is text."),
    Rule(
        "graph.io-type", POLICY, "ET", "Inputs and outputs are of types that a device has; float64 is not among them."
    ),
    Rule("graph.declared", POLICY, "ONNX", "Outputs and inner values have the types and shapes that the graph says."),
    Rule("graph.bfloat16", KNOWN, "K2", "Nothing that is computed for ai100 is bfloat16."),
    Rule("graph.memory", POLICY, "SDK", "Weights, states, inputs and outputs fit into the device's memory."),
    Rule("graph.operator-memory", DOCUMENTED, "VQ", "What one operator reads fits into the 3.9 GiB that a core maps."),
)

_NODES = (
    Rule("nodes.if-condition", KNOWN, "CH", "The condition of an If is constant."),
    Rule("nodes.if-outputs", KNOWN, "CH", "An If has one output."),
    Rule(
        "nodes.loop", INHERITED, "GLOW", "A Loop makes a constant number of rounds, at most 20, and collects nothing."
    ),
    Rule("nodes.scan", INHERITED, "GLOW", "A Scan goes over a known length of at most 4096."),
    Rule("nodes.scatter-lengths", KNOWN, "ISS-2", "A ScatterND has an update for each of its indices."),
    Rule("nodes.data-dependent", DOCUMENTED, "DOC", "No shape depends on data."),
    Rule("nodes.einsum", POLICY, "DOC", "An Einsum is written as the operators that it consists of."),
    Rule("nodes.cast-uint8", KNOWN, "CH", "Nothing casts uint8, which is read as quantized."),
    Rule("nodes.cast-int8", POLICY, "CH", "Nothing casts int8, which may be read as quantized."),
    Rule("constancy.reshape", KNOWN, "Q3VL", "The shape of a Reshape is constant."),
    Rule("constancy.repeats", KNOWN, "ET", "What Expand and Tile expand to is constant."),
    Rule("constancy.range", KNOWN, "ET", "The ends of a Range are constant."),
    Rule("constancy.split", KNOWN, "ET", "The sizes of a Split are constant."),
    Rule("constancy.axes", KNOWN, "REG", "The axes of a reduction are constant."),
    Rule("constancy.operand", INHERITED, "GLOW", "Operands that decide about shapes are constant."),
    Rule("constancy.parameter-range", KNOWN, "ET", "In a sub-function, no Range ends at the value of a parameter."),
    Rule("constancy.parameter", POLICY, "ET", "In a sub-function, no other shape hangs on the value of a parameter."),
    Rule("constancy.diagonal", KNOWN, "ISS-16", "The diagonal of a Trilu is a constant scalar."),
)

_CONSTANTS = (
    Rule("constants.half-range", DOCUMENTED, "DOC", "Constants that become fp16 lie within its range, or are -inf."),
    Rule("constants.not-a-number", POLICY, "DOC", "Constants that become fp16 are numbers."),
    Rule("constants.int64-range", POLICY, "ET", "INT64 constants that are no bounds of a Slice fit into 32 bits."),
    Rule("constants.epsilon", POLICY, "DOC", "What keeps a denominator from zero is not zero in fp16."),
    Rule("constants.filled", KNOWN, "ET", "No ConstantOfShape is filled with INT32_MAX."),
)

_INTERFACE = (
    Rule("states.partner", DOCUMENTED, "SDK", "Each retained state's output has an input of its name."),
    Rule("states.twice", POLICY, "SDK", "A retained state has one output."),
    Rule("states.type", DOCUMENTED, "SDK", "Both sides of a retained state have the same type."),
    Rule("states.shape", DOCUMENTED, "SDK", "Both sides of a retained state have the same shape."),
    Rule("states.sizes", DOCUMENTED, "SDK", "A retained state has the same shape in all specializations."),
    Rule("states.copied", POLICY, "ET", "A retained state is made from more than its input alone."),
    Rule("custom-io.name", KNOWN, "REG", "Each name is that of an input or output."),
    Rule("custom-io.type", POLICY, "ET", "A precision is for floats: int8 for int8, besides."),
    Rule("custom-io.blocks", POLICY, "MX", "The last dimension of an mxint8 state is a multiple of 32."),
    Rule("node-precision.name", POLICY, "DOC", "Each name is that of a node's first output."),
    Rule("partitions.node-name", POLICY, "ET", "A node of each partition exists; other names are ignored."),
    Rule("partitions.order", DOCUMENTED, "ET", "The nodes of partitions stand in the graph's order."),
)

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.id: rule
        for group in (_ARGUMENTS, _VALUES, _TARGET, _MAPPING, _FILES, _SPECIALIZATIONS, _PRECISIONS, _PARTITIONS)
        for rule in group
    }
)
"""Every rule about a command and its side files, by its id."""

GRAPH_RULES: Mapping[str, Rule] = MappingProxyType(
    {rule.id: rule for group in (_GRAPH, _NODES, _CONSTANTS, _INTERFACE) for rule in group}
)
"""Every rule about the graph, and about what the side files say of it, by its id."""

WARNINGS: Mapping[str, Rule] = MappingProxyType(
    {
        rule.id: rule
        for rule in (
            Rule("warned.compile-only", POLICY, "ET", "qaic-compile is not told to compile only."),
            Rule("warned.old-version", KNOWN, "CH", "The hardware version is not 2.0, which is going away."),
            Rule("warned.float-io", POLICY, "ET", "No input or output is to be kept in float32 where math is fp16."),
            Rule("warned.state-input", POLICY, "SDK", "An input that is called like a state has an output for it."),
            Rule(
                "warned.uneven-heads", POLICY, "ET", "The devices that slice tensors share the heads of states evenly."
            ),
        )
    }
)
"""Every rule that is told and not enforced, by its id."""


def warned(rule_id: str, message: str) -> Warned:
    """A warning by the id of its rule."""
    return Warned(WARNINGS[rule_id], message)
