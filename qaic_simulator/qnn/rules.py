"""What the stand-ins for QNN's tools refuse: every rule, its severity and its public source."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NoReturn

from qaic_simulator.rules import DOCUMENTED, KNOWN, POLICY, Refusal, Rule

QNN_RULES = (
    Rule("qnn.arguments.unknown", DOCUMENTED, "QNN", "An option is in the table of options, in full."),
    Rule("qnn.arguments.stray", DOCUMENTED, "QNN", "Every value belongs to an option."),
    Rule("qnn.arguments.joined", POLICY, "ET", "A value stands in the next argument, not behind '='."),
    Rule("qnn.arguments.no-value", DOCUMENTED, "QNN", "An option has as many values as it takes."),
    Rule("qnn.arguments.duplicate", POLICY, "ET", "An option that is not a list is given once."),
    Rule("qnn.required", DOCUMENTED, "ET", "Everything that the route to this device needs is given."),
    Rule("qnn.values", DOCUMENTED, "QNN", "A value is one of those that the option knows."),
    Rule("qnn.names", POLICY, "ET", "Files have the endings and names that the next step looks for."),
    Rule("qnn.target", DOCUMENTED, "ET", "The target is this device, from a host with x86-64."),
    Rule("qnn.files.absent", DOCUMENTED, "QNN", "Files and folders that are to be used exist."),
    Rule("qnn.files.occupied", POLICY, "ET", "The folder for the program is empty."),
    Rule("qnn.network", DOCUMENTED, "QNN", "The network is an ONNX file."),
    Rule("qnn.io.sections", DOCUMENTED, "ET", "The YAML has one section for inputs and one for outputs."),
    Rule("qnn.io.item", DOCUMENTED, "ET", "An item has a name and the parameters that are desired."),
    Rule("qnn.io.key", POLICY, "ET", "An item has no other keys; shapes are for inputs only, which all have one."),
    Rule("qnn.io.type", DOCUMENTED, "ET", "A type is one of those that are known."),
    Rule("qnn.io.twice", POLICY, "ET", "An input or output is listed once."),
    Rule("qnn.io.shape", DOCUMENTED, "ET", "A shape is written as tuples of positive numbers, all of one rank."),
    Rule("qnn.io.specializations", KNOWN, "ET", "Every input has one shape for each specialization: one or two."),
    Rule("qnn.io.indistinguishable", POLICY, "CH", "Some input's shape tells the specializations apart."),
    Rule("qnn.io.pair", POLICY, "ET", "A retained state has one type, on its input and on its output."),
    Rule("qnn.io.uint8", POLICY, "ET", "uint8 is for pairs of retained state, which hold MXINT8."),
    Rule("qnn.graph.names", POLICY, "ET", "The YAML lists the inputs and outputs of the network, all of them."),
    Rule("qnn.graph.shape", DOCUMENTED, "QNN", "A shape fits that of the network; a symbol has one size at a time."),
    Rule("qnn.graph.type", POLICY, "ET", "Whole numbers stay what they are in the network."),
    Rule("qnn.dlc", POLICY, "ET", "The graph was made by the stand-in for the converter."),
    Rule("qnn.json.type", DOCUMENTED, "QNN", "A JSON value is of the expected type."),
    Rule("qnn.json.key", DOCUMENTED, "QNN", "A JSON object has the keys that are read, and no others."),
    Rule("qnn.backend.key", KNOWN, "QNN", "The backend is told nothing that it does not know."),
    Rule("qnn.backend.required", POLICY, "ET", "The backend is told the target, the precision and the cores."),
    Rule("qnn.backend.value", DOCUMENTED, "QNN", "A setting lies within its range, or is one of its choices."),
    Rule("qnn.backend.graphs", DOCUMENTED, "ET", "The graphs are those of the converted file: at most two."),
    Rule("qnn.backend.state", POLICY, "ET", "Whether state is retained is what the graph says."),
    Rule("qnn.backend.splits", DOCUMENTED, "DOC", "Channels are split over 1, 2, 4, 8 or 16 cores that there are."),
    Rule("qnn.format", DOCUMENTED, "ET", "The formats are known, for every graph and for every uint8 state."),
    Rule("qnn.partitions", DOCUMENTED, "ET", "Partitions have devices 0, 1, 2, and so on, which are connected."),
)
RULES: Mapping[str, Rule] = MappingProxyType({rule.id: rule for rule in QNN_RULES})
"""Every rule of these tools by its id; what is no JSON or no YAML breaks a rule of the compiler's."""


def refuse(rule: str, message: str) -> NoReturn:
    """Raise the refusal; these tools have one profile, which applies every rule."""
    raise Refusal(RULES[rule], message)
