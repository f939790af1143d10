"""What the stand-in compiler refuses before it looks at the graph: every rule, its severity and its public source."""

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
    Rule("files.occupied", POLICY, "ET", "The folder for the binary is new or empty."),
    Rule("json.syntax", DOCUMENTED, "ET#1129", "A JSON file is JSON.", JSON_EXIT_CODE),
    Rule("json.type", DOCUMENTED, "ET#1129", "A JSON value is of the expected type.", JSON_EXIT_CODE),
    Rule("json.key", DOCUMENTED, "ET#1129", "A JSON object has the keys that are read.", JSON_EXIT_CODE),
    Rule("yaml.syntax", DOCUMENTED, "DOC", "A YAML file is YAML."),
)

_SPECIALIZATIONS = (
    Rule("specializations.named", KNOWN, "ET#1129", "SDK 1.21 reads flat entries only.", JSON_EXIT_CODE),
    Rule("specializations.flat", POLICY, "ET", "SDK 1.22 is given named entries."),
    Rule("specializations.number", KNOWN, "SPEC", "Values are strings, not numbers.", JSON_EXIT_CODE),
    Rule("specializations.integer", DOCUMENTED, "DOC", "The text of a value is a whole number."),
    Rule("specializations.positive", INHERITED, "GLOW", "A dimension is positive."),
    Rule("specializations.keys", POLICY, "ET", "There are no keys that nobody reads."),
    Rule("specializations.none", POLICY, "ET", "There is an entry, and it binds a symbol."),
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

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.id: rule
        for group in (_ARGUMENTS, _VALUES, _TARGET, _MAPPING, _FILES, _SPECIALIZATIONS, _PRECISIONS, _PARTITIONS)
        for rule in group
    }
)
"""Every rule by its id."""
