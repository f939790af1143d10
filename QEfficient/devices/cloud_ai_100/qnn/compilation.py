"""`compile_program` by QNN's two tools: the same steps as in `compilation`, with two commands in place of one.

1. options    those of the native compiler that have a meaning here, and the user's own file; before any work
2. graph      constants within float16, tables of what positions decide
3. files      custom_io_config.yaml, qnn_*.json, tensor_slicing.json
4. run        the converter, then the generator; the converted graph is not kept
5. check      exit codes, the container, and the sizes of every input and output in it
6. qconfig    what the program was made from, for people
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from QEfficient.artifacts import fingerprint
from QEfficient.devices.cloud_ai_100 import compilation
from QEfficient.devices.cloud_ai_100.graph.prepared import for_half
from QEfficient.devices.cloud_ai_100.options import CompilerOptions
from QEfficient.devices.cloud_ai_100.qnn import files as qnn_files
from QEfficient.devices.cloud_ai_100.qnn import tools
from QEfficient.devices.cloud_ai_100.qnn.tools import QnnCompilation, QnnFiles
from QEfficient.devices.cloud_ai_100.running import Ran, run_compiler, tell_warnings
from QEfficient.devices.cloud_ai_100.sdk import Sdk, find_sdk, installed_hardware
from QEfficient.devices.cloud_ai_100.specializations_file import FILE, specializations_text
from QEfficient.errors import CompilationError
from QEfficient.program import ExportedProgram, GraphSpec
from QEfficient.specs import CompileSpec, Specialization


def check_options(options: CompilerOptions) -> None:
    """Refuse what can be refused without a program: no SDK, a file that says too much, partitions of nobody."""
    tools.check_target(options)
    tools.find_qnn_sdk()
    config = tools.read_qnn_config(_config_path(options))
    config.check(options)
    path = options.mdp_load_partition_config or config.backend.get(qnn_files.PARTITION_KEY)
    if path:
        qnn_files.check_partitions(Path(path))


def check_calls(entries: Sequence[Specialization], options: CompilerOptions) -> None:
    """Refuse shapes that the tools do not take, and a user's file that has other graphs for them."""
    qnn_files.check_specializations(entries)
    _check_decided(options, {"graph_names": qnn_files.graph_names(entries)})


def check_graph(graph: GraphSpec, options: CompilerOptions) -> None:
    """Refuse a user's file that says otherwise whether the graph keeps a state."""
    _check_decided(options, {"compiler_retained_state": bool(graph.states)})


def _check_decided(options: CompilerOptions, own: Mapping[str, Any]) -> None:
    qnn_files.check_decided(own, tools.read_qnn_config(_config_path(options)).backend)


def ingredients(options: CompilerOptions) -> Mapping[str, Any]:
    """What the compiled form depends on beside the options: the SDK, and what the user's file says and names."""
    sdk, content = tools.find_qnn_sdk(), _content(options)
    partitions = tools.qnn_config(content).backend.get(qnn_files.PARTITION_KEY)
    named = Path(partitions).read_text(encoding="utf-8") if partitions else ""
    return {"sdk": sdk.version, "root": str(sdk.root), "config": content, "partitions": fingerprint({"text": named})}


def compile_program(program: ExportedProgram, spec: CompileSpec, folder: Path) -> Mapping[str, Any]:
    """Write the compiled program and everything that belongs to it into `folder`; returns the report."""
    options, sdk = compilation.check_options(spec.device_options), find_sdk()
    check_options(options)
    check_calls(spec.specializations(), options)
    hardware = options.aic_hw_version or installed_hardware()
    options = replace(options, aic_hw_version=hardware)
    compilation.check_program(program, spec, hardware)
    with TemporaryDirectory(dir=folder, prefix="graph-") as scratch:
        entries = spec.specializations(program.graphs[compilation.ROLE].spec.windows)
        onnx = for_half(program.onnx_path(compilation.ROLE), Path(scratch), entries)
        asked = _put_together(program, spec, options, QnnFiles(folder, onnx, Path(scratch)))
        _write_files(asked, sdk)
        converted, generated = _run(asked)
    compilation.check_result(asked.files.binary, asked.graph, asked.specializations, generated)
    content = {"qnn_sdk_version": asked.sdk.version, **_content(options)}
    compilation.write_qconfig(program, spec, compilation.Compiler(sdk, options, hardware), folder, content)
    tell_warnings(f"{converted.said}\n{generated.said}")
    return _report(asked, sdk, converted.log + generated.log)


def _config_path(options: CompilerOptions) -> Path | None:
    return Path(options.qnn_config) if options.qnn_config else None


def _content(options: CompilerOptions) -> dict[str, Any]:
    path = _config_path(options)
    return dict(tools.config_content(path)) if path else {}


def _put_together(
    program: ExportedProgram, spec: CompileSpec, options: CompilerOptions, files: QnnFiles
) -> QnnCompilation:
    graph = program.graphs[compilation.ROLE].spec
    entries, config = spec.specializations(graph.windows), tools.read_qnn_config(_config_path(options))
    return QnnCompilation(tools.find_qnn_sdk(), files, graph, entries, options, config, program.dtype)


def _write_files(asked: QnnCompilation, sdk: Sdk) -> None:
    """What the tools read, and for those who look for the shapes of a program, the file that every device writes."""
    specializations = specializations_text(asked.specializations, sdk)
    beside = {asked.files.workplace / name: text for name, text in tools.named_plainly(asked).items()}
    for path, text in {**tools.texts(asked), asked.files.folder / FILE: specializations, **beside}.items():
        path.write_text(text, encoding="utf-8")
    asked.files.binary.mkdir()


def _run(asked: QnnCompilation) -> tuple[Ran, Ran]:
    """Both tools."""
    files, environment = asked.files, asked.sdk.environment()
    converted = run_compiler(tools.converter_command(asked), files.folder, files.workplace, environment)
    if not asked.files.dlc.is_file():
        raise CompilationError(f"{converted.tool} wrote no {asked.files.dlc.name}. {converted.describe()}")
    generating = tools.context_binary_command(asked)
    return converted, run_compiler(generating, files.folder, files.workplace, environment)


def _report(asked: QnnCompilation, sdk: Sdk, log: str) -> Mapping[str, Any]:
    partitions = tools.settings(asked).get(qnn_files.PARTITION_KEY)
    return {
        "sdk": sdk.version,
        "qnn_sdk": asked.sdk.version,
        "hardware": asked.options.aic_hw_version,
        "simulated": compilation.SIMULATOR_SAYS in log,
        "commands": [tools.converter_command(asked), tools.context_binary_command(asked)],
        "devices": qnn_files.partition_devices(asked.files.folder / partitions) if partitions else 1,
        "specializations": len(asked.specializations),
    }
