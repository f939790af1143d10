"""Compiling with QNN's tools (QAIRT) instead of the native compiler: where they lie, and their two command lines.

`qairt-converter` makes `model.dlc` of the graph, `qnn-context-binary-generator` makes the program of that.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from QEfficient.devices.cloud_ai_100.options import EXTRA, CompilerOptions
from QEfficient.devices.cloud_ai_100.qnn import files as qnn_files
from QEfficient.devices.cloud_ai_100.sdk import SIMULATOR_VARIABLE, simulated_root, simulated_version
from QEfficient.errors import DeviceError, OptionError, did_you_mean
from QEfficient.program import GraphSpec
from QEfficient.specs import Specialization

logger = logging.getLogger(__name__)

ROOT_VARIABLE = "QNN_SDK_ROOT"
SDK_FILE = "sdk.yaml"
TARGET = "x86_64-linux-clang"
MACHINES = ("x86_64", "amd64")
LARGEST_SDK_FILE = 65_536
_VERSION = re.compile(r"^\s*[\w-]*version[\w-]*\s*:\s*[\"']?v?(\d+(?:\.\d+){1,4})", re.IGNORECASE | re.MULTILINE)

CONVERTER_KEY = "converter_args_extension"
CONTEXT_BINARY_KEY = "context_binary_generator_args_extension"
BACKEND_KEY = "qnn_compilation_backend"
SKIP_KEY = "SKIP_QNN_CONVERTER_STEP"
KEYS = (CONVERTER_KEY, CONTEXT_BINARY_KEY, BACKEND_KEY, SKIP_KEY)
FIXED_FOR_CONVERTER = (
    "--input_network", "-i", "--output_path", "-o", "--config", "--float_bias_bitwidth", "--float_bitwidth",
    "--preserve_io_datatype", "--onnx_skip_simplification", "-oss", "--target_backend",
)  # fmt: skip
FIXED_FOR_CONTEXT_BINARY = (
    "--binary_file", "--backend_binary", "--output_dir", "--backend", "--model", "--dlc_path", "--config_file",
    "--data_format_config",
)  # fmt: skip
SHORT_BUT_FREE = ("-opc",)
"""Begins like a short name that is fixed, but is the short name of `--op_package_config`."""
LOG_LEVEL = "--log_level"


@dataclass(frozen=True)
class QnnSdk:
    """An installed QAIRT SDK, as far as compiling needs it."""

    root: Path
    version: str | None = None
    """None where its file names none that can be read."""

    @property
    def converter(self) -> Path:
        """Makes the graph of an ONNX file."""
        return self.root / "bin" / TARGET / "qairt-converter"

    @property
    def context_binary_generator(self) -> Path:
        """Makes the program of the graph."""
        return self.root / "bin" / TARGET / "qnn-context-binary-generator"

    @property
    def backend(self) -> Path:
        """The library that compiles for this device."""
        return self.root / "lib" / TARGET / "libQnnAic.so"

    @property
    def extensions(self) -> Path:
        """The library that reads the settings of the backend."""
        return self.root / "lib" / TARGET / "libQnnAicNetRunExtensions.so"

    def environment(self) -> dict[str, str]:
        """That of this process, with what the tools find their own libraries and modules by."""
        added = {"LD_LIBRARY_PATH": self.root / "lib" / TARGET, "PYTHONPATH": self.root / "lib" / "python"}
        paths = {name: os.pathsep.join([str(path), *_paths(name)]) for name, path in added.items()}
        return {**os.environ, **paths, ROOT_VARIABLE: str(self.root)}


def _paths(name: str) -> list[str]:
    return [os.environ[name]] if os.environ.get(name) else []


def find_qnn_sdk() -> QnnSdk:
    """The QAIRT SDK of this machine, or its simulator's. Raises `DeviceError` where it is absent or incomplete."""
    machine = platform.machine()
    if machine.lower() not in MACHINES or sys.platform != "linux":
        raise DeviceError(
            f"QNN's tools compile for the Cloud AI 100 on Linux on x86-64 only, but this is {sys.platform} on"
            f" {machine}. Compile without enable_qnn, or on such a machine."
        )
    root = qnn_root()
    if root is None:
        raise _absence(f"{ROOT_VARIABLE} is not set")
    sdk = QnnSdk(root, _version(root / SDK_FILE))
    parts = (sdk.root / SDK_FILE, sdk.converter, sdk.context_binary_generator, sdk.backend, sdk.extensions)
    missing = [str(path.relative_to(sdk.root)) for path in parts if not path.is_file()]
    if missing:
        raise _absence(f"{ROOT_VARIABLE} is {sdk.root}, which holds no {' and no '.join(missing)}")
    for tool in (sdk.converter, sdk.context_binary_generator):
        if not os.access(tool, os.X_OK):
            raise DeviceError(f"QNN's tool {tool} cannot be executed by this user. Check its permissions.")
    if sdk.version is None:
        _say_unknown_version(root / SDK_FILE)
    return sdk


@functools.cache
def _say_unknown_version(path: Path) -> None:
    """Once for each: the SDK is looked for many times."""
    logger.warning(
        "the version of QNN's SDK cannot be read from %s. Nothing depends on it, but programs of another version are"
        " not told from those of this one. Install the SDK again if the file is damaged.",
        path,
    )


def qnn_root() -> Path | None:
    """The folder that the SDK is expected in; None if nobody said. The simulator goes first, as for the Apps SDK."""
    simulated = simulated_version()
    if simulated:
        return simulated_root(simulated, qnn=True)
    given = os.environ.get(ROOT_VARIABLE)
    return Path(given).expanduser().absolute() if given else None  # the tools run in another folder


def _absence(found: str) -> DeviceError:
    return DeviceError(
        f"compiling with enable_qnn needs Qualcomm's QAIRT SDK with its parts for the Cloud AI 100, but {found}."
        f" Install the SDK and set {ROOT_VARIABLE} to the folder in which its {SDK_FILE} lies, or leave enable_qnn out."
        f" {SIMULATOR_VARIABLE}=1, or --simulate with a command, takes the simulator in its place"
        " (pip install 'qefficient[simulator]')."
    )


def _version(path: Path) -> str | None:
    """The first entry that looks like a version: the one part of the file's form that is known."""
    try:
        text = path.read_bytes()[:LARGEST_SDK_FILE].decode("utf-8", errors="replace")
    except OSError:
        return None
    found = _VERSION.search(text)
    return found[1] if found else None


@dataclass(frozen=True)
class QnnConfig:
    """What the user's own file adds to the two commands and to the settings of the backend."""

    converter_arguments: tuple[str, ...] = ()
    context_binary_arguments: tuple[str, ...] = ()
    backend: Mapping[str, Any] = field(default_factory=dict)
    skips_converter: bool = False
    """Take the `model.dlc` that is there: asked for, but there never is one."""

    def check(self, options: CompilerOptions) -> None:
        """Refuse settings of which it is known without a program that it decides them otherwise."""
        own = dict(qnn_files.CONSTANT)
        if options.mdp_load_partition_config:
            own[qnn_files.PARTITION_KEY] = options.mdp_load_partition_config
        elif options.slices_tensors:
            own[qnn_files.PARTITION_KEY] = f"a file for {options.num_devices} devices"
        qnn_files.check_decided(own, self.backend)


def read_qnn_config(path: Path | None) -> QnnConfig:
    """The user's file, checked; None is a file that says nothing."""
    return qnn_config(config_content(path)) if path else QnnConfig()


def qnn_config(given: Any) -> QnnConfig:
    """The content of a user's file, checked. Raises `OptionError` for what is unknown or not the user's to say."""
    if not isinstance(given, dict):
        raise OptionError(f"qnn_config must hold an object with some of {', '.join(KEYS)}, not {given!r}.")
    for key in given:
        if key not in KEYS:
            raise OptionError(
                f"qnn_config has the key '{key}', which is not one of {', '.join(KEYS)}.{did_you_mean(key, KEYS)}"
            )
    skips = given.get(SKIP_KEY, False)
    if not isinstance(skips, bool):
        raise OptionError(f"qnn_config: {SKIP_KEY} must be true or false, not {skips!r}.")
    return QnnConfig(
        _extension(given, CONVERTER_KEY, FIXED_FOR_CONVERTER),
        _extension(given, CONTEXT_BINARY_KEY, FIXED_FOR_CONTEXT_BINARY),
        qnn_files.check_settings(given.get(BACKEND_KEY, {})),
        skips,
    )


def config_content(path: Path) -> Any:
    """What the file holds, as it stands there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"qnn_config {path} cannot be read: {error.strerror}. Give the path of a file.") from None
    except (ValueError, RecursionError):
        raise OptionError(f"qnn_config {path} is not JSON. Correct it, or leave qnn_config out.") from None


def _extension(given: Mapping[str, Any], key: str, fixed: Sequence[str]) -> tuple[str, ...]:
    """Arguments as a list, or as a text that is split like a shell would."""
    value = given.get(key, "")
    try:
        arguments = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:
        raise OptionError(f"qnn_config: {key} cannot be split into arguments: {error}.") from None
    if not isinstance(arguments, list) or not all(isinstance(part, str) and part for part in arguments):
        raise OptionError(f"qnn_config: {key} must be a text or a list of texts, not {value!r}.")
    if arguments and not arguments[0].startswith("-"):
        raise OptionError(f"qnn_config: {key} must begin with an option, not with {arguments[0]!r}.")
    for argument in arguments:
        _refuse_fixed(argument.partition("=")[0], key, fixed)
    return tuple(arguments)


def _refuse_fixed(name: str, key: str, fixed: Sequence[str]) -> None:
    # The tools take an option's first letters for the whole, and a value that hangs on a short name.
    shortened = name.startswith("--") and len(name) > 2 and any(known.startswith(name) for known in fixed)
    attached = name[:2] in fixed and name not in SHORT_BUT_FREE
    if name in fixed or shortened or attached:
        raise OptionError(f"qnn_config: {key} sets '{name}', which the program and its options decide. Leave it out.")


def check_target(options: CompilerOptions) -> None:
    """Refuse options that ask for what the tools cannot do."""
    if options.aic_hw_version not in (None, "ai100"):
        raise OptionError(
            f"QNN's tools compile for ai100 only, not for {options.aic_hw_version}. Compile without enable_qnn."
        )
    if options.mdp_num_partitions > 1:
        raise OptionError("mdp_num_partitions does not go with enable_qnn. Leave one of them out.")


@dataclass(frozen=True)
class QnnFiles:
    """What the tools read and where they write: everything in one folder, but the graph."""

    folder: Path
    onnx: Path
    scratch: Path | None = None
    """Where the converted graph lies if not in the folder: it holds all weights once more, and is not kept."""

    @property
    def custom_io(self) -> Path:
        return self.folder / "custom_io_config.yaml"

    @property
    def workplace(self) -> Path:
        """Where the tools stand, and leave what nobody keeps."""
        return self.scratch or self.folder

    @property
    def dlc(self) -> Path:
        return self.workplace / f"{qnn_files.MODEL}.dlc"

    @property
    def compiler_config(self) -> Path:
        return self.folder / "qnn_compiler_config.json"

    @property
    def backend(self) -> Path:
        return self.folder / "qnn_compile_backend.json"

    @property
    def data_format(self) -> Path:
        return self.folder / "qnn_data_format_config.json"

    @property
    def slices(self) -> Path:
        return self.folder / "tensor_slicing.json"

    @property
    def binary(self) -> Path:
        """The folder of the compiled program, which must be there, and empty, before the second tool runs."""
        return self.folder / "qpc"


@dataclass(frozen=True)
class QnnCompilation:
    """Everything that one run of the two tools is told."""

    sdk: QnnSdk
    files: QnnFiles
    graph: GraphSpec
    specializations: Sequence[Specialization]
    options: CompilerOptions = CompilerOptions()
    config: QnnConfig = QnnConfig()
    dtype: str = "float32"
    """Of the exported program."""

    def __post_init__(self) -> None:
        qnn_files.check_specializations(self.specializations)
        if self.dtype == "bfloat16":
            raise OptionError("QNN's tools compile in float16 only, but the program has bfloat16. Export in float16.")
        check_target(self.options)
        self._warn_of_options_without_effect()

    def _warn_of_options_without_effect(self) -> None:
        ignored = [name for name, _ in self.options.passed if name not in qnn_files.SPELT]
        ignored += [EXTRA] if self.options.extra_compiler_args else []
        if ignored:
            logger.warning("QNN's tools have no option for %s: no effect. Use qnn_config.", ", ".join(ignored))
        if self.config.skips_converter:
            logger.warning("qnn_config: %s has no effect: the converted graph is not kept between runs.", SKIP_KEY)

    @property
    def holds_block_floats(self) -> bool:
        """Whether a file says which tensors are MXINT8."""
        return self.options.mxint8_kv_cache and bool(qnn_files.block_float_tensors(self.graph))


def texts(asked: QnnCompilation) -> dict[Path, str]:
    """Every file that the tools read beside the graph, by where it lies."""
    files, graph, entries = asked.files, asked.graph, asked.specializations
    written = {
        files.custom_io: qnn_files.custom_io_text(graph, entries, asked.options.mxint8_kv_cache),
        files.compiler_config: qnn_files.compiler_config_text(files.backend.name, asked.sdk.extensions),
        files.backend: qnn_files.backend_text(settings(asked)),
    }
    if asked.holds_block_floats:
        written[files.data_format] = qnn_files.data_format_text(graph, entries)
    if asked.options.slices_tensors:
        written[files.slices] = qnn_files.slices_text(asked.options.num_devices)
    return written


def settings(asked: QnnCompilation) -> dict[str, Any]:
    """What the backend is told: by us, and by the user's file. Files of ours have plain names, which hold wherever the
    folder lies later."""
    own = qnn_files.backend_settings(asked.graph, asked.specializations, asked.options, asked.files.slices.name)
    merged = qnn_files.merged_settings(own, asked.config.backend)
    if qnn_files.PARTITION_KEY in merged and not asked.options.slices_tensors:  # the tools do not stand where users do
        merged[qnn_files.PARTITION_KEY] = os.path.abspath(merged[qnn_files.PARTITION_KEY])
    return merged


def named_plainly(asked: QnnCompilation) -> dict[str, str]:
    """The files that others name by their plain names: the tools must stand beside them."""
    written = texts(asked)
    return {path.name: written[path] for path in (asked.files.backend, asked.files.slices) if path in written}


def converter_command(asked: QnnCompilation) -> list[str]:
    """Program and arguments of the first tool."""
    return [
        str(asked.sdk.converter),
        "--input_network", str(asked.files.onnx),
        "--output_path", str(asked.files.dlc),
        "--config", str(asked.files.custom_io),
        "--float_bias_bitwidth", "32",
        "--float_bitwidth", "16",
        "--preserve_io_datatype", "--onnx_skip_simplification",
        "--target_backend", "AIC",
        *asked.config.converter_arguments,
    ]  # fmt: skip


def context_binary_command(asked: QnnCompilation) -> list[str]:
    """Program and arguments of the second tool."""
    files, given = asked.files, asked.config.context_binary_arguments
    says_level = any(argument.partition("=")[0] == LOG_LEVEL for argument in given)
    return [
        str(asked.sdk.context_binary_generator),
        "--binary_file", "qnngraph.serialized",
        "--backend_binary", "programqpc.bin",
        "--output_dir", str(files.binary),
        "--backend", str(asked.sdk.backend),
        "--dlc_path", str(files.dlc),
        "--config_file", str(files.compiler_config),
        *(["--data_format_config", str(files.data_format)] if asked.holds_block_floats else []),
        *([] if says_level else [LOG_LEVEL, "error"]),
        *given,
    ]  # fmt: skip
