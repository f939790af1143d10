"""The Qualcomm Cloud AI 100, through the compiler and the runtime of Qualcomm's SDK.

sdk                     where the SDK lies, which version it has
options                 what `compile` can be told, checked, and how the compiler spells it
command                 the command line
specializations_file    specializations.json: the shapes of one program
custom_io               custom_io.yaml: the precision of the state
precisions              in which a compiled program keeps its state
partitions              mdp_*.json: several devices
qconfig                 qconfig.json: what a program was made from, for people
container               programqpc.bin: what the compiler wrote, read without the SDK
graph/                  what becomes of the graph before the compiler reads it
compilation             all of it, one step after the other
running                 a compiler's run: how it ended, what it said and warned about
bound                   programs that end when we do
qnn/                    the same by QNN's tools
published               records of a compilation by the names that files have in the end
faults                  what goes wrong on a card, by name
shares                  what this process holds of the cards, and who gives way
inference_session       buffers in, buffers out: `QAICInferenceSession`
session                 a program as the engine sees it
stored_program          the program with the weights that a card holds, for the reference device
stated                  how far from it a card computes
opened                  a program known by its container alone, whoever compiled it
written_io              the buffers of the first runs, for Qualcomm's tools
numerics/               what the card's number formats do to a program, before there is a card
plan/                   what a program will need and how fast it will be, before there is a program
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from QEfficient.devices import Accuracy, Device, Session, Watch
from QEfficient.devices.cloud_ai_100 import command
from QEfficient.devices.cloud_ai_100.command import OldNames
from QEfficient.devices.cloud_ai_100.container import BINARY
from QEfficient.devices.cloud_ai_100.custom_io import check_blocks
from QEfficient.devices.cloud_ai_100.opened import find_binary
from QEfficient.devices.cloud_ai_100.options import OPTION_TYPES, READ_FILES, read_options, said
from QEfficient.devices.cloud_ai_100.sdk import find_sdk, is_asked_for, is_simulated, sdk_root
from QEfficient.devices.cloud_ai_100.specializations_file import check_told_apart
from QEfficient.errors import DeviceError, OptionError
from QEfficient.program import CompiledProgram, ExportedProgram, GraphSpec
from QEfficient.specs import CompileSpec

FORMAT = 5
"""Of what `compile` writes: raised whenever an older folder could not be opened, or would be another."""


class CloudAI100(Device):
    """Compiles with Qualcomm's compiler, runs on the card."""

    name = "cloud_ai_100"
    options = OPTION_TYPES
    has_ids = True
    shows_runs = True
    computes_in = "float16"

    def __init__(self, old_names: OldNames | None = None) -> None:
        self._old_names = old_names

    @classmethod
    def availability(cls) -> str | None:
        try:
            find_sdk()
        except DeviceError as error:
            return str(error)
        return None

    @classmethod
    def expected(cls) -> bool:
        return is_asked_for()

    @classmethod
    def lacks_to_run(cls, asking: bool = False) -> str:
        from QEfficient.devices.cloud_ai_100.faults import silence
        from QEfficient.devices.cloud_ai_100.inference_session import runtime_lacks

        return runtime_lacks() or (silence() if asking else "")

    @classmethod
    def software(cls) -> str:
        try:
            sdk = find_sdk()
        except DeviceError:
            return ""
        stated = f"{cls.version()} in {sdk.root}"
        return f"{stated}, simulated: nothing runs on a card" if is_simulated(sdk.root) else stated

    @classmethod
    def version(cls) -> str:
        try:
            return f"Apps SDK {find_sdk().version or 'of unknown version'}"
        except DeviceError:
            return ""

    @classmethod
    def simulated(cls) -> bool:
        return is_simulated(sdk_root())

    @classmethod
    def output(cls, folder: Path) -> Path:
        """Qualcomm's scripts want the folder with the container itself."""
        return find_binary(folder) or folder / BINARY

    @classmethod
    def packed_states(cls, compiled: CompiledProgram) -> Mapping[str, str]:
        from QEfficient.devices.cloud_ai_100.precisions import packed_states

        return packed_states(compiled)

    def for_scripts(self, custom_io: Path | None) -> Device:
        if custom_io is not None and not custom_io.is_file():
            raise OptionError(f"custom_io_file_path names the file {custom_io}, which does not exist.")
        return CloudAI100(OldNames(custom_io))

    def own_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        from QEfficient.devices.cloud_ai_100 import compilation, partitions
        from QEfficient.devices.cloud_ai_100.qnn import compilation as qnn_compilation

        given = partitions.with_cores_of_file(given)
        options = compilation.check_options(given)
        if options.enable_qnn:
            qnn_compilation.check_options(options)
        return said(given)

    def ingredients(self, own: Mapping[str, Any]) -> Mapping[str, Any]:
        sdk, options = find_sdk(), read_options(own)
        named = {**vars(options), **dict(options.passed)}
        files = {name: _digest(Path(named[name])) for name in READ_FILES if named.get(name)}
        found = {"format": FORMAT, "sdk": sdk.version, "root": str(sdk.root), "files": files}
        if self._old_names is not None:
            custom_io = self._old_names.custom_io
            found["old_names"] = _digest(custom_io) if custom_io is not None else ""
        if not options.enable_qnn:
            return found
        from QEfficient.devices.cloud_ai_100.qnn import compilation as qnn_compilation

        return {**found, "qnn": qnn_compilation.ingredients(options)}

    def compile(self, program: ExportedProgram, spec: CompileSpec, folder: Path) -> Mapping[str, Any]:
        from QEfficient.devices.cloud_ai_100 import compilation
        from QEfficient.devices.cloud_ai_100.published import by_final_names
        from QEfficient.devices.cloud_ai_100.qnn import compilation as qnn_compilation

        old, options = self._old_names, compilation.check_options(spec.device_options)
        if old is None or old.custom_io is None:  # whose file says how the state is kept
            self.check_graph(program.graphs["lm"].spec, spec.device_options)
        if not options.enable_qnn:
            report = compilation.compile_program(program, spec, folder, old)
        elif old is None or old.custom_io is None:
            report = qnn_compilation.compile_program(program, spec, folder)
        else:
            raise OptionError("custom_io_file_path and enable_qnn were both given, but QNN reads another file.")
        return by_final_names(folder, _lift(folder) if old is not None else None, report)

    def load(self, compiled: CompiledProgram, device_ids: Sequence[int] | None = None) -> Session:
        from QEfficient.devices.cloud_ai_100.session import CloudSession

        _check_ids(device_ids, compiled.report.get("devices"))
        return CloudSession(compiled, device_ids)

    def load_watched(self, compiled: CompiledProgram, device_ids: Sequence[int] | None, watch: Watch) -> Session:
        from QEfficient.devices.cloud_ai_100.session import CloudSession
        from QEfficient.devices.cloud_ai_100.written_io import opener

        _check_ids(device_ids, compiled.report.get("devices"))
        return CloudSession(compiled, device_ids, opener(watch.folder, watch.debug))

    def check_ids(self, own: Mapping[str, Any], device_ids: Sequence[int]) -> None:
        from QEfficient.devices.cloud_ai_100.partitions import devices_of

        _check_ids(device_ids, devices_of(read_options(own)), "with these options the program is compiled")

    def export_dtype(self, dtype: str, own: Mapping[str, Any]) -> str:
        from QEfficient.devices.cloud_ai_100.compilation import takes

        return dtype if takes(dtype, read_options(own)) else "float32"

    def check_calls(self, spec: CompileSpec, own: Mapping[str, Any]) -> None:
        from QEfficient.devices.cloud_ai_100.qnn import compilation as qnn_compilation

        options, entries = read_options(own), spec.specializations()
        check_told_apart(entries)
        if options.enable_qnn:
            qnn_compilation.check_calls(entries, options)

    def check_layers(self, layers: int, own: Mapping[str, Any]) -> None:
        from QEfficient.devices.cloud_ai_100.partitions import layers_per_partition

        layers_per_partition(layers, read_options(own).mdp_num_partitions)

    def check_graph(self, graph: GraphSpec, own: Mapping[str, Any]) -> None:
        from QEfficient.devices.cloud_ai_100.qnn import compilation as qnn_compilation

        options = read_options(own)
        if options.mxint8_kv_cache:
            check_blocks(graph)
        if options.enable_qnn:
            qnn_compilation.check_graph(graph, options)
        else:
            command.check_graph(graph, options, find_sdk())

    def stored_program(self, compiled: CompiledProgram, folder: Path) -> ExportedProgram | None:
        from QEfficient.devices.cloud_ai_100.stored_program import with_stored_weights

        return with_stored_weights(compiled, folder)

    def accuracy(self, compiled: CompiledProgram) -> Accuracy:
        from QEfficient.devices.cloud_ai_100.stated import accuracy_of

        return accuracy_of(compiled)


def _check_ids(device_ids: Sequence[int] | None, wanted: int | None, what: str = "the program was compiled") -> None:
    """Each device once, and as many as a program is compiled for: None where nobody knows."""
    ids = list(device_ids or ())
    named = f"{len(ids)} device id(s) were given ({', '.join(map(str, ids))})"
    if len(set(ids)) < len(ids) or min(ids, default=0) < 0:
        raise OptionError(f"{named}: cards have numbers from 0 on, and each can be named once.")
    if ids and wanted is not None and len(ids) != wanted:
        raise OptionError(f"{named}, but {what} for {wanted}. Give as many, or compile it with num_devices={len(ids)}.")


def _lift(folder: Path) -> Path:
    """Put the compiled program itself into `folder`; returns where it was."""
    binary = find_binary(folder)
    assert binary is not None, "the compiler's result was checked"
    for path in binary.iterdir():
        path.rename(folder / path.name)
    binary.rmdir()
    return binary


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


DEVICE = CloudAI100
