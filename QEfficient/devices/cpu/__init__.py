"""The CPU, through OpenVINO: the default device of those who have no card.

`options` says what can be asked. `compilation` makes the artifact (`lowering`, `linear`, `experts`, `compression`) that
`opening` opens. `packed` runs it, or `slotted_states` where its graph cannot be packed. `restoration` gives its weights
back, and `stated` says how far from them it computes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from QEfficient.devices import Accuracy, Device, Session
from QEfficient.devices.cpu.options import OPTION_TYPES, read_options, recorded_options
from QEfficient.devices.slotted import check_slots, write_specializations
from QEfficient.errors import OptionError
from QEfficient.program import CompiledProgram, ExportedProgram
from QEfficient.specs import CompileSpec

FORMAT = 4
"""Of what `compile` writes: raised whenever an older folder could not be opened, or would be another."""


class CpuDevice(Device):
    """Compiles for this machine's processors."""

    name = "cpu"
    options = OPTION_TYPES
    pads_calls = False
    in_small_pieces: Mapping[str, Any] = MappingProxyType({"max_tokens": 8})

    @classmethod
    def availability(cls) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return "OpenVINO is not installed (pip install openvino)."
        return None

    def own_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        own = super().own_options(given)
        read_options(own).check()
        return own

    def ingredients(self, own: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"format": FORMAT, "calibration": read_options(own).calibration_digest()}

    def compile(self, program: ExportedProgram, spec: CompileSpec, folder: Path) -> Mapping[str, Any]:
        from QEfficient.devices.cpu.compilation import compile_graph

        graph = program.graphs["lm"].spec
        check_slots(graph, spec)
        if graph.chooses_tokens:
            raise OptionError(
                "the program chooses tokens itself; for device 'cpu' they are chosen on the host, where every option of"
                " sampling works. Export it without include_sampler."
            )
        if graph.guesses:
            raise OptionError(
                "the program guesses tokens behind the next one, which device 'cpu' does not run. Export it without"
                " speculative_model_type, and use prompt lookup or a draft model."
            )
        write_specializations(folder / "specializations.json", spec.specializations(graph.windows))
        return compile_graph(program, spec, read_options(spec.device_options), folder)

    def load(self, compiled: CompiledProgram, device_ids: Sequence[int] | None = None) -> Session:
        from QEfficient.devices.cpu.packed import PackedSession
        from QEfficient.devices.cpu.slotted_states import SlottedStatesSession

        self.has_no_ids(device_ids)
        return SlottedStatesSession(compiled) if compiled.report["states"] is None else PackedSession(compiled)

    def stored_program(self, compiled: CompiledProgram, folder: Path) -> ExportedProgram | None:
        from QEfficient.devices.cpu.restoration import restore_program

        return restore_program(compiled, folder)

    def exactly(self, compiled: CompiledProgram) -> CompiledProgram | None:
        options = recorded_options(compiled.report)
        if options == options.exact:
            return None
        return replace(compiled, report={**compiled.report, "options": asdict(options.exact)})

    def accuracy(self, compiled: CompiledProgram) -> Accuracy:
        from QEfficient.devices.cpu.stated import accuracy_of

        return accuracy_of(compiled)


DEVICE = CpuDevice
