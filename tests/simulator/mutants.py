"""A compilation that is to be broken: its command, the texts of its files, its graph, its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import onnx

FOLDER = "{dir}"
"""Stands in a command for the folder that its files are written to."""
MODEL = "model.onnx"


@dataclass
class Mutant:
    """A good job, until something is changed in it."""

    sdk: str
    argv: list[str]
    files: dict[str, str]
    """By name; JSON and YAML as they are written."""
    model: onnx.ModelProto
    weights: bytes
    weights_name: str
    occupied: bool = False
    """Whether something lies where the program is to be written."""
    model_bytes: int = -1
    """How much is left of the model's own file; all of it where this is negative."""

    def lay_out(self, folder: Path) -> list[str]:
        """Write everything into an empty folder, and say the command."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        written = self.model.SerializeToString()
        (folder / MODEL).write_bytes(written if self.model_bytes < 0 else written[: self.model_bytes])
        (folder / self.weights_name).write_bytes(self.weights)
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        if self.occupied:
            (folder / "qpc").mkdir()
            (folder / "qpc" / "programqpc.bin").touch()
        return [argument.replace(FOLDER, str(folder)) for argument in self.argv]

    # The command.

    def place(self, chance: Random, fits: Callable[[str], bool]) -> int:
        """Where in the command one of the arguments stands that fit."""
        return chance.choice([place for place, argument in enumerate(self.argv) if fits(argument)])

    def replace(self, name: str, argument: str) -> None:
        """Put something else in the place of an option."""
        place = next(place for place, given in enumerate(self.argv) if given.partition("=")[0] == name)
        self.argv[place] = argument

    # Its files.

    def edit_json(self, name: str, change: Callable[[Any], None]) -> None:
        content = json.loads(self.files[name])
        change(content)
        self.files[name] = json.dumps(content)

    def symbols(self, content: Any) -> list[dict[str, Any]]:
        """Of each specialization, in either form of the file."""
        return [entry.get("symbols", entry) for entry in content["specializations"]]

    def edit_symbols(self, change: Callable[[list[dict[str, Any]]], None]) -> None:
        self.edit_json("specializations.json", lambda content: change(self.symbols(content)))

    def swap_line(self, name: str, old: str, new: str) -> None:
        """Replace a line of a file, which must be there."""
        assert old in self.files[name].splitlines(), (old, self.files[name])
        self.files[name] = "".join(f"{new if line == old else line}\n" for line in self.files[name].splitlines())

    # Its graph.

    @property
    def graph(self) -> onnx.GraphProto:
        return self.model.graph

    def state(self, chance: Random) -> onnx.ValueInfoProto:
        """The output of some state."""
        return chance.choice([value for value in self.graph.output if value.name.endswith("_RetainedState")])

    def node(self, chance: Random, *operators: str) -> onnx.NodeProto:
        """Some node, or one with one of these operators."""
        return chance.choice([node for node in self.graph.node if not operators or node.op_type in operators])

    def append(self, operator: str, given: list[str], made: list[str], **attributes: Any) -> None:
        self.graph.node.append(onnx.helper.make_node(operator, given, made, **attributes))

    def insert_before(self, node: onnx.NodeProto, place: int, made: str, *new: onnx.NodeProto) -> None:
        """Nodes before another, of which one operand becomes what they make."""
        node.input[place] = made
        nodes = list(self.graph.node)
        position = next(number for number, other in enumerate(nodes) if other is node or other.name == node.name)
        nodes[position:position] = new
        copies = [onnx.NodeProto.FromString(other.SerializeToString()) for other in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def maker(self, name: str) -> tuple[onnx.NodeProto, int]:
        """The node that makes a value, and which of its outputs that is."""
        return next((node, place) for node in self.graph.node for place, made in enumerate(node.output) if made == name)


Mutation = Callable[[Mutant, Random], object]
