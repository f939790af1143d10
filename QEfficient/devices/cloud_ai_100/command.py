"""The compiler's command line, as a list of arguments: no shell ever reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from QEfficient.devices.cloud_ai_100 import custom_io, partitions, specializations_file
from QEfficient.devices.cloud_ai_100.options import CompilerOptions, render
from QEfficient.devices.cloud_ai_100.sdk import HARDWARE, Sdk
from QEfficient.errors import OptionError
from QEfficient.program import GraphSpec

REPEATABLE = ("-onnx-define-symbol", "-register-custom-op")
SUB_FUNCTIONS = "sub_functions"
CUSTOM_IO = "-custom-IO-list-file="
"""Behind it stands the file with the precision of each state."""
LEGACY_FIRST = ("mos", "aic_enable_depth_first", "allow_mxint8_mdp_io")
"""Options with a place of their own in the command of the old `compile` function, in its order."""


@dataclass(frozen=True)
class Files:
    """What the compiler reads and where it writes."""

    onnx: Path
    specializations: Path
    binary: Path
    """The folder of the compiled program."""
    custom_io: Path | None = None
    slices: Path | None = None
    """Used where several devices share every layer."""
    pipeline: Path | None = None
    """Used where devices take groups of layers."""

    @classmethod
    def within(cls, folder: Path, onnx: Path, devices: int = 1, custom_io_written: bool = True) -> Files:
        """Under their usual names in one folder."""
        return cls(
            onnx,
            folder / specializations_file.FILE,
            folder / "qpc",
            folder / custom_io.FILE if custom_io_written else None,
            folder / partitions.slices_file(devices),
        )

    @classmethod
    def legacy(cls, folder: Path, onnx: Path, custom_io: Path | None = None) -> Files:
        """Under the names that the old `compile` function gave them."""
        slices = folder / "mdp_ts_config.json"
        return cls(onnx, folder / specializations_file.FILE, folder / "qpcs", custom_io, slices)

    def with_pipeline(self, options: CompilerOptions) -> Files:
        """With the file of partitions beside the others: one for all compilations would be overwritten by the next."""
        name = partitions.pipeline_file(options.num_devices, options.mdp_num_partitions)
        return replace(self, pipeline=self.specializations.with_name(name))


@dataclass(frozen=True)
class OldNames:
    """The files of the old `compile` function, and its order of the compiler's arguments."""

    custom_io: Path | None = None
    """The user's own; None: written here."""


@dataclass(frozen=True)
class Compilation:
    """Everything that one run of the compiler is told."""

    sdk: Sdk
    files: Files
    options: CompilerOptions
    hardware: str = HARDWARE[0]
    """Of the devices of this machine, for options that ask for none."""
    dtype: str = "float32"
    """Of the exported program."""
    retained_state: bool = True
    sub_functions: bool = False
    """Whether the graph holds its layers as functions."""

    def __post_init__(self) -> None:
        if self.options.is_pipeline and not self.files.pipeline:
            raise ValueError("mdp_num_partitions was asked for, but no file with the partitions was written")
        if self._half and "dump_profile" in dict(self.options.passed):
            raise OptionError(
                f"dump_profile does not go with a program exported in {self.dtype}, which is converted to float16."
                " Leave it out."
            )

    @property
    def _half(self) -> bool:
        return custom_io.computed_in(self.dtype) == "float16"

    @property
    def target(self) -> list[str]:
        """Hardware, and which one."""
        return ["-aic-hw", f"-aic-hw-version={self.options.aic_hw_version or self.hardware}"]

    @property
    def model(self) -> str:
        return f"-m={self.files.onnx}"

    @property
    def specializations(self) -> str:
        return f"-network-specialization-config={self.files.specializations}"

    @property
    def binary(self) -> str:
        return f"-aic-binary-dir={self.files.binary}"

    @property
    def custom_io(self) -> list[str]:
        return [f"{CUSTOM_IO}{self.files.custom_io}"] if self.files.custom_io else []

    @property
    def given_partitions(self) -> list[str]:
        """The file with partitions that the user, or a split into groups of layers, brought."""
        return _loaded(self._given_partitions)

    @property
    def slices(self) -> list[str]:
        return _loaded(self._slices)

    @property
    def partitions(self) -> Path | None:
        """The file that says which devices there are; None: there is one."""
        return self._given_partitions or self._slices

    @property
    def _given_partitions(self) -> Path | None:
        given = self.options.mdp_load_partition_config
        return Path(given) if given else self.files.pipeline

    @property
    def _slices(self) -> Path | None:
        return self.files.slices if self.options.slices_tensors else None

    @property
    def as_functions(self) -> list[str]:
        return render([(SUB_FUNCTIONS, self.sub_functions or SUB_FUNCTIONS in dict(self.options.passed))])

    @property
    def only_compiling(self) -> list[str]:
        return ["-compile-only"] if self.sdk.runs_after_compiling else []

    @property
    def half(self) -> list[str]:
        return ["-convert-to-fp16"] if self._half else []

    @property
    def state(self) -> list[str]:
        return ["-retained-state"] if self.retained_state else []

    @property
    def compressed(self) -> list[str]:
        return ["-mxfp6-matmul"] if self.options.mxfp6_matmul else []

    @property
    def cores(self) -> str:
        return f"-aic-num-cores={self.options.num_cores}"

    def passed(self, without: Iterable[str] = ()) -> list[str]:
        """Options in the order in which they were given, then the arguments that only the compiler knows."""
        left_out = {SUB_FUNCTIONS, *without}
        kept = [(name, value) for name, value in self.options.passed if name not in left_out]
        return [*render(kept), *self.options.extra_compiler_args]


def command(asked: Compilation) -> list[str]:
    """Program and arguments, where the program's files lie last."""
    return _checked([
        str(asked.sdk.compiler), *asked.target, asked.model,
        *asked.given_partitions,
        *asked.only_compiling, *asked.state, *asked.half, *asked.compressed, asked.cores, *asked.passed(),
        *asked.as_functions,
        *asked.slices,
        asked.specializations,
        *asked.custom_io,
        asked.binary,
    ])  # fmt: skip


def legacy_command(asked: Compilation) -> list[str]:
    """Program and arguments in the order of the old `compile` function."""
    given = dict(asked.options.passed)
    first = [(name, given[name]) for name in LEGACY_FIRST if name in given]
    return _checked([
        str(asked.sdk.compiler), asked.model, *asked.target, *asked.only_compiling,
        asked.specializations,
        *asked.half, *asked.state, asked.cores,
        *asked.custom_io,
        asked.binary,
        *asked.compressed, *render(first),
        *asked.given_partitions, *asked.slices,
        *asked.passed(without=LEGACY_FIRST), *asked.as_functions,
    ])  # fmt: skip


def check_graph(graph: GraphSpec, options: CompilerOptions, sdk: Sdk) -> None:
    """Refuse what the compiler could not be told of a graph, before that is written. Whether it will have functions is
    not known yet."""
    dtype = _dtype(graph)
    written = custom_io.custom_io_text(graph, dtype, options.mxint8_kv_cache) is not None
    files = Files.within(Path(), Path("graph.onnx"), options.num_devices, written)
    files = files.with_pipeline(options) if options.is_pipeline else files
    command(Compilation(sdk, files, options, dtype=dtype, retained_state=bool(graph.states)))


def _dtype(graph: GraphSpec) -> str:
    """Of the program with this graph. What a layer sums up over time may be kept in float32 beside bfloat16."""
    found = [tensor.dtype for tensor in graph.all_outputs if tensor.dtype not in custom_io.WHOLE_NUMBERS]
    return "bfloat16" if "bfloat16" in found else next(iter(found), "float32")


def _loaded(path: Path | None) -> list[str]:
    return [f"-mdp-load-partition-config={path}"] if path else []


def _checked(arguments: list[str]) -> list[str]:
    """Refuse an option that stands twice, which compilers read in different ways."""
    times = Counter(argument.partition("=")[0] for argument in arguments[1:])
    twice = [name for name, count in times.items() if count > 1 and name not in REPEATABLE]
    if twice:
        raise OptionError(f"the compiler would be told '{twice[0]}' twice. Leave it out of extra_compiler_args.")
    return arguments
