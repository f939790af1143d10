"""`compile_program`: the compiler's files are written, it runs, and what it wrote is held against what was asked for.

1. options    checked, before anything is written
2. graph      constants within float16, tables of what positions decide; names of nodes, where partitions go by them
3. files      specializations.json, custom_io.yaml, mdp_ts_<N>.json or mdp_disagg_<N>d_<P>p.json
4. run        in a folder of its own: the compiler drops files where it stands
5. check      exit code, the container, and the sizes of every input and output in it
6. qconfig    what the program was made from, for people
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from QEfficient.devices.cloud_ai_100 import custom_io, partitions, qconfig
from QEfficient.devices.cloud_ai_100.command import Compilation, Files, OldNames, command, legacy_command
from QEfficient.devices.cloud_ai_100.container import FILE, read_description
from QEfficient.devices.cloud_ai_100.graph import layer_nodes, prepared
from QEfficient.devices.cloud_ai_100.graph.prepared import for_half
from QEfficient.devices.cloud_ai_100.options import CompilerOptions, read_options
from QEfficient.devices.cloud_ai_100.running import Ran, run_compiler, tell_warnings
from QEfficient.devices.cloud_ai_100.sdk import Sdk, find_sdk, installed_hardware
from QEfficient.devices.cloud_ai_100.specializations_file import specializations_text
from QEfficient.devices.slotted import check_batching
from QEfficient.errors import ArtifactError, CompilationError, DeviceError
from QEfficient.program import ExportedProgram, GraphSpec
from QEfficient.specs import CompileSpec, Specialization

ROLE = "lm"
EXPORT_RECORD = "hashed_export_params.json"
SIMULATOR_SAYS = "qaic simulator"


@dataclass(frozen=True)
class Compiler:
    """Which compiler is told what, for which cards."""

    sdk: Sdk
    options: CompilerOptions
    hardware: str
    old_names: OldNames | None = None
    """Files and arguments are those of the old `compile` function."""


@dataclass(frozen=True)
class _Asked:
    """One compilation, put together."""

    compilation: Compilation
    graph: GraphSpec
    entries: Sequence[Specialization]


def check_options(given: Mapping[str, Any]) -> CompilerOptions:
    """Options as a user gives them, with paths that hold everywhere; refused as long as nothing was done for them."""
    options = read_options(given)
    options.check_files()
    if options.mdp_load_partition_config:
        path = Path(options.mdp_load_partition_config)
        if options.num_devices > 1:
            partitions.check_number(path, options.num_devices)
        if not options.enable_qnn:  # whose file has no cores
            partitions.check_file(path, options.num_cores)
    if options.mdp_strategy == "intersection":
        partitions.check_dump(Path(str(options.mdp_compiler_dump_path)))
    return options.with_whole_paths()


def compile_program(
    program: ExportedProgram, spec: CompileSpec, folder: Path, old_names: OldNames | None = None
) -> Mapping[str, Any]:
    """Write the compiled program and everything that belongs to it into `folder`; returns the report."""
    options, sdk = check_options(spec.device_options), find_sdk()
    hardware = options.aic_hw_version or installed_hardware()
    check_program(program, spec, hardware)
    compiler = Compiler(sdk, options, hardware, old_names)
    with TemporaryDirectory(dir=folder, prefix="graph-") as scratch:
        entries = spec.specializations(program.graphs[ROLE].spec.windows)
        onnx = for_half(program.onnx_path(ROLE), Path(scratch), entries)
        if options.names_nodes:
            onnx = layer_nodes.with_names(onnx, Path(scratch))
        asked = _put_together(program, spec, compiler, onnx, folder)
        arguments = (legacy_command if old_names else command)(asked.compilation)
        ran = run_compiler(arguments, folder, Path(scratch))
    check_result(asked.compilation.files.binary, asked.graph, asked.entries, ran)
    write_qconfig(program, spec, compiler, folder)
    tell_warnings(ran.said)
    return {
        "sdk": sdk.version,
        "hardware": hardware,
        "simulated": SIMULATOR_SAYS in ran.log,
        "command": arguments,
        "devices": _devices(asked.compilation),
        "specializations": len(asked.entries),
    }


def computes_in(dtype: str, hardware: str) -> bool:
    """Whether the cards of a generation take programs of this type."""
    return dtype != "bfloat16" or hardware == "ai200"


def takes(dtype: str, options: CompilerOptions) -> bool:
    """Whether a program of this type can be compiled with these options; asks for the hardware only if that matters."""
    if computes_in(dtype, "ai100"):
        return True
    return not options.enable_qnn and computes_in(dtype, options.aic_hw_version or installed_hardware())


def check_program(program: ExportedProgram, spec: CompileSpec, hardware: str) -> None:
    """Refuse a program that does not go with the geometry, or not with the cards."""
    check_batching(program.graphs[ROLE].spec, spec)
    if not computes_in(program.dtype, hardware):
        raise DeviceError(
            f"{program.model.name} was exported in bfloat16, which the {hardware} does not compute in."
            " Export it in float16 or float32: it is compiled for float16."
        )


def _put_together(program: ExportedProgram, spec: CompileSpec, compiler: Compiler, onnx: Path, folder: Path) -> _Asked:
    """Write the files that the compiler reads."""
    graph, options, sdk = program.graphs[ROLE].spec, compiler.options, compiler.sdk
    entries = spec.specializations(graph.windows)
    precisions = custom_io.custom_io_text(graph, program.dtype, options.mxint8_kv_cache)
    own = custom_io.FILE if precisions is not None else None
    files = Files.within(folder, onnx, options.num_devices, own is not None)
    if compiler.old_names is not None:
        given = compiler.old_names.custom_io
        precisions = precisions if given is None else None
        files = Files.legacy(folder, onnx, given or (folder / own if own else None))
    files.specializations.write_text(specializations_text(entries, sdk), encoding="utf-8")
    if files.custom_io is not None and precisions is not None:
        files.custom_io.write_text(precisions, encoding="utf-8")
    if files.slices is not None and options.slices_tensors:
        files.slices.write_text(partitions.slices_text(options.num_devices, options.num_cores), encoding="utf-8")
    if options.is_pipeline:
        files = files.with_pipeline(options)
        _write_pipeline(files, options, graph)
    as_functions = bool(_export_record(program)["spec"]["subfunctions"])
    compilation = Compilation(sdk, files, options, compiler.hardware, program.dtype, bool(graph.states), as_functions)
    return _Asked(compilation, graph, entries)


def _write_pipeline(files: Files, options: CompilerOptions, graph: GraphSpec) -> None:
    """Write which devices take which nodes."""
    lists = layer_nodes.node_lists(files.onnx, graph, options.mdp_num_partitions)
    if options.mdp_strategy == "intersection":
        lists = partitions.only_known(lists, Path(str(options.mdp_compiler_dump_path)))
    assert files.pipeline is not None, "it was asked for"
    text = partitions.pipeline_text(lists, options.num_devices, options.num_cores)
    files.pipeline.write_text(text, encoding="utf-8")


def _devices(compilation: Compilation) -> int:
    """How many the program runs on: as many as the compiler was told of, which are not those of a dump."""
    path = compilation.partitions
    return partitions.devices_in(path) if path else 1


def check_result(binary: Path, graph: GraphSpec, entries: Sequence[Specialization], ran: Ran) -> None:
    """Hold the container against what was asked for: its tensors, and their sizes in every specialization."""
    path = binary / FILE
    if not path.is_file():
        raise CompilationError(f"{ran.tool} wrote no {FILE}. {ran.describe()}")
    try:
        found = read_description(path).sizes()
    except ArtifactError as error:
        unread = str(error.__cause__ or error)
        raise CompilationError(f"what {ran.tool} wrote is no program: {unread}. {ran.describe()}") from error
    wanted = [_sizes(graph, entry) for entry in entries]
    for entry, sizes in zip(entries, wanted, strict=True):
        if sizes not in found:
            differing = _difference(sizes, found)
            raise CompilationError(f"the compiled program does not take what '{entry.name}' asks for: {differing}.")
    if len(found) != len(wanted):
        raise CompilationError(
            f"the compiled program has {len(found)} specializations, but {len(wanted)} were asked for."
        )


def _sizes(graph: GraphSpec, entry: Specialization) -> dict[str, tuple[int, ...]]:
    tensors = (*graph.all_inputs, *graph.all_outputs)
    return {tensor.name: tensor.resolve(entry.symbols) for tensor in tensors}


def _difference(wanted: Mapping[str, tuple[int, ...]], found: Sequence[Mapping[str, tuple[int, ...]]]) -> str:
    """The first tensor that differs from the specialization that is nearest."""
    nearest = max(found, key=lambda sizes: sum(sizes.get(name) == size for name, size in wanted.items()), default={})
    for name, size in wanted.items():
        if nearest.get(name) != size:
            return f"{name} should be {list(size)} and is {list(nearest[name]) if name in nearest else 'not there'}"
    extra = sorted(set(nearest) - set(wanted))
    return f"it has {', '.join(extra)} besides"


def _model_config(program: ExportedProgram) -> Mapping[str, Any]:
    config: Mapping[str, Any] = _export_record(program)["config"]
    return config


def _export_record(program: ExportedProgram) -> Mapping[str, Any]:
    """What the export was named by."""
    record: Mapping[str, Any] = json.loads((program.folder / EXPORT_RECORD).read_text(encoding="utf-8"))
    return record


def write_qconfig(
    program: ExportedProgram, spec: CompileSpec, compiler: Compiler, folder: Path, qnn: Mapping[str, Any] | None = None
) -> None:
    """Write down what the compiled program was made from; `qnn` where QNN's tools compiled."""
    done = program.report.get("transforms", {})
    named = [layer_nodes.with_names.__name__] if compiler.options.names_nodes and qnn is None else []
    graph = [*done.get("graph", ()), *prepared.TRANSFORMS, *named]
    origin = qconfig.Origin(str(program.onnx_path(ROLE)), done.get("model", ()), graph)
    asked = qconfig.compiler_config(spec, compiler.options)
    content = qconfig.qconfig(_model_config(program), origin, asked, compiler.sdk, qnn)
    (folder / qconfig.FILE).write_text(json.dumps(content, indent=4), encoding="utf-8")
