"""What `compile` can be told for this device, checked before the compiler sees it, and how the compiler spells it.

A name is the compiler's own with underscores for dashes. What is not listed here goes by `extra_compiler_args`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from QEfficient.devices.cloud_ai_100.sdk import HARDWARE
from QEfficient.errors import OptionError, did_you_mean, unknown_option

logger = logging.getLogger(__name__)

Value = bool | int | float | str | tuple[str, ...] | tuple[int, ...]
Kind = Callable[[str, Any], Value]
"""Takes an option's name and value; gives the value in its one form, or refuses it."""

CORES = 16
"""Of one device."""
DEVICES = 16
"""Most devices that reach one another."""
SHARING = tuple(2**power for power in range(DEVICES.bit_length()))
"""How many devices can share a layer, each with a slice of its tensors."""


def _refuse(name: str, expected: str, value: Any) -> OptionError:
    return OptionError(f"option '{name}' must be {expected}, not {value!r}.")


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, "True or False", value)
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, (str, Path)) or not str(value):
        raise _refuse(name, "a text or a path", value)
    return str(value)


def _flag_or_text(name: str, value: Any) -> bool | str:
    """A command line has no other way to say yes and no than as texts."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value if isinstance(value, bool) else _text(name, value)


def _whole(lowest: int, highest: int | None = None) -> Callable[[str, Any], int]:
    expected = f"a whole number of at least {lowest}"
    if highest is not None:
        expected = f"a whole number from {lowest} to {highest}"

    def check(name: str, value: Any) -> int:
        fits = isinstance(value, int) and not isinstance(value, bool)
        if not fits or value < lowest or (highest is not None and value > highest):
            raise _refuse(name, expected, value)
        return int(value)

    return check


def _number(lowest: float, highest: float) -> Kind:
    def check(name: str, value: Any) -> int | float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest <= value <= highest:
            raise _refuse(name, f"a number from {lowest:g} to {highest:g}", value)
        return value if isinstance(value, int) else float(value)

    return check


def _choice(*known: str) -> Kind:
    def check(name: str, value: Any) -> str:
        if value not in known:
            suggestion = did_you_mean(value, known) if isinstance(value, str) else ""
            raise OptionError(f"option '{name}' is {value!r}, which is not one of {', '.join(known)}.{suggestion}")
        return str(value)

    return check


def _parts(name: str, value: Any, most: int | None = None) -> list[Any]:
    """One value, a list of them, or a text with commas."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, (list, tuple)) else [parts]
    if not parts or (most is not None and len(parts) > most):
        raise _refuse(name, f"a list of 1 to {most} entries" if most else "a list that is not empty", value)
    return parts


def _texts(most: int | None = None) -> Kind:
    def check(name: str, value: Any) -> tuple[str, ...]:
        return tuple(_text(name, part) for part in _parts(name, value, most))

    return check


def _wholes(lowest: int, highest: int) -> Kind:
    one = _whole(lowest, highest)

    def check(name: str, value: Any) -> tuple[int, ...]:
        parts = (int(p) if isinstance(p, str) and p.isdecimal() else p for p in _parts(name, value))
        return tuple(one(name, part) for part in parts)

    return check


_SCHEMAS = ("asymmetric", "symmetric", "symmetric_with_uint8", "symmetric_with_power2_scale")
_CALIBRATIONS = ("None", "KLMinimization", "KLMinimizationV2", "Percentile", "MSE", "SQNR")

CONSUMED: Mapping[str, Kind] = {
    "num_cores": _whole(1, CORES),
    "num_devices": _whole(1, DEVICES),
    "mxfp6_matmul": _flag,
    "mxint8_kv_cache": _flag,
    "aic_hw_version": _choice(*HARDWARE),
    "mdp_load_partition_config": _text,
    "mdp_num_partitions": _whole(1, DEVICES),
    "mdp_strategy": _choice("onnx", "intersection"),
    "mdp_compiler_dump_path": _text,
    "enable_qnn": _flag,
    "qnn_config": _text,
}
"""Options that have a field of their own, since more than their spelling depends on them."""

PASSED: Mapping[str, Kind] = {
    # mapping to cores and memory
    "aic_num_of_instances": _whole(1, CORES),
    "mos": _wholes(1, CORES),
    "mdts_mos": _whole(1, DEVICES),
    "ols": _whole(1),
    "multicast_weights": _flag,
    "aic_enable_depth_first": _flag,
    "aic_depth_first_mem": _whole(8, 32),
    "allocator_dealloc_delay": _whole(0, 10),
    "size_split_granularity": _whole(512, 2048),
    "vtcm_working_set_limit_ratio": _number(0, 1),
    "sdp_cluster_sizes": _wholes(1, CORES),
    "use_producer_dma": _flag,
    "compile_threads": _whole(1),
    "sub_functions": _flag,
    "user_tiled": _flag,
    # precision
    "allow_mxint8_mdp_io": _flag,
    "dump_custom_IO_config_template": _text,
    "node_precision_info": _text,
    "execute_nodes_in_fp16": _texts(),
    "keep_original_precision_for_nodes": _texts(),
    "load_profile": _text,
    "dump_profile": _text,
    "external_quantization": _text,
    "convert_to_quantize": _flag,
    "input_list_file": _text,
    "use_random_input_data": _choice("gaussian"),
    "quantization_schema": _choice(*_SCHEMAS),
    "quantization_schema_activations": _choice(*_SCHEMAS),
    "quantization_schema_constants": _choice(*_SCHEMAS),
    "quantization_calibration": _choice(*_CALIBRATIONS),
    "percentile_calibration_value": _number(90, 100),
    "num_histogram_bins": _whole(1),
    "quantization_precision": _choice("Int8"),
    "quantization_precision_bias": _choice("Int8", "Int32"),
    "enable_channelwise": _flag,
    "enable_rowwise": _flag,
    "profiling_threads": _whole(1),
    # state, shapes, devices
    "split_retained_state_io": _flag,
    "split_model_io": _flag,
    "mdp_dump_partition_config": _text,
    "always_expand_onnx_functions": _flag,
    "dynamic_shape_input": _text,
    "host_preproc": _flag,
    "aic_preproc": _flag,
    "combine_inputs": _flag,
    "combine_outputs": _flag,
    "io_crc": _flag,
    "io_crc_stride": _whole(1),
    "io_encrypt": _flag_or_text,
    "register_custom_op": _text,
    "output_node_name": _texts(),
    "stats_batchsize": _whole(1),
    # diagnostics
    "aic_profiling_type": _choice("stats", "trace", "latency"),
    "stats_level": _whole(10, 100),
    "ddr_stats": _flag,
    "aic_perf_metrics": _flag,
    "aic_perf_warnings": _flag,
    "time_passes": _flag,
    "aic_pmu_recipe": _choice("AxiRd", "AxiWr", "AxiRdWr", "KernelUtil", "HmxMacs"),
    "aic_pmu_events": _texts(most=8),
    "operators_supported": _choice("onnx"),
    "v": _flag,
    "vv": _flag,
    "vvv": _flag,
}
"""Options that are told to the compiler as they are, in the order in which they were given."""

_TYPES: Mapping[str, type] = {"_flag": bool, "_whole": int, "_number": float, "_flag_or_text": object}

OPTION_TYPES: Mapping[str, type] = {
    name: _TYPES.get(kind.__qualname__.partition(".")[0], str) for name, kind in {**CONSUMED, **PASSED}.items()
}
"""What a command line reads a value as; `object`: a text, or nothing behind the flag."""

DECIDED: Mapping[str, str] = {
    **dict.fromkeys(("m", "model", "aic_binary_dir", "aic_hw"), "where a program lies and runs is the device's to say"),
    **dict.fromkeys(("batchsize", "onnx_define_symbol", "network_specialization_config"), "the geometry decides it"),
    "custom_IO_list_file": "mxint8_kv_cache and the dtype of the export decide it",
    "convert_to_fp16": "the dtype of the export decides it",
    "retained_state": "the graph decides it",
    "aic_num_cores": "it is called num_cores here",
}
"""Options of the compiler that follow from other things, and from what."""

NEEDS = (
    ("aic_depth_first_mem", "aic_enable_depth_first"),
    ("io_crc_stride", "io_crc"),
    ("qnn_config", "enable_qnn"),
)
EXCLUDES = (
    ("host_preproc", "aic_preproc"),
    ("convert_to_quantize", "dump_profile"),
    ("convert_to_quantize", "load_profile"),
)
DROPPED = "compile_only"
EXTRA = "extra_compiler_args"
LEFT_OPEN = (("mos", -1), ("num_devices", 0))
"""What old scripts give for an option that they do not mean to give."""
READ_FILES = (
    "mdp_load_partition_config", "mdp_compiler_dump_path", "qnn_config", "node_precision_info", "load_profile",
    "external_quantization", "input_list_file", "register_custom_op",
)  # fmt: skip
WRITTEN_FILES = ("mdp_dump_partition_config", "dump_profile", "dump_custom_IO_config_template")


@dataclass(frozen=True)
class CompilerOptions:
    """Options of one compilation, checked; `read_options` makes them."""

    num_cores: int = CORES
    num_devices: int = 1
    mxfp6_matmul: bool = False
    mxint8_kv_cache: bool = False
    aic_hw_version: str | None = None
    """None: that of the devices of this machine."""
    mdp_load_partition_config: str | None = None
    mdp_num_partitions: int = 1
    """Partitions of the layers that devices work through one after another."""
    mdp_strategy: str = "onnx"
    mdp_compiler_dump_path: str | None = None
    enable_qnn: bool = False
    qnn_config: str | None = None
    passed: tuple[tuple[str, Value], ...] = ()
    """Name and value of every other option, in the order given."""
    extra_compiler_args: tuple[str, ...] = ()

    @property
    def slices_tensors(self) -> bool:
        """Whether all devices work on every layer, each on a slice, by a file that we write."""
        brought = self.mdp_load_partition_config is not None or self._dumps_partitions
        return self.num_devices > 1 and self.mdp_num_partitions == 1 and not brought

    @property
    def is_pipeline(self) -> bool:
        """Whether devices work on layers of their own, one after another, by a file that we write."""
        return self.mdp_num_partitions > 1

    @property
    def sharing(self) -> int:
        """How many devices share a layer by a file that we write; what is left over in a pipeline stays idle."""
        written = self.slices_tensors or self.is_pipeline
        return self.num_devices // self.mdp_num_partitions if written else 1

    @property
    def names_nodes(self) -> bool:
        """Whether a file with names of nodes is read or written: each node has one then, the same in all such files."""
        return self.is_pipeline or self.mdp_load_partition_config is not None or self._dumps_partitions

    @property
    def _dumps_partitions(self) -> bool:
        return "mdp_dump_partition_config" in dict(self.passed)

    def check_files(self) -> None:
        """Refuse files that the compiler would not find."""
        named = {**vars(self), **dict(self.passed)}
        for name in READ_FILES:
            if named.get(name) and not Path(named[name]).is_file():
                raise OptionError(f"option '{name}' names the file {named[name]}, which does not exist.")

    def with_whole_paths(self) -> CompilerOptions:
        """The same for a compiler that stands in another folder."""
        files = (*READ_FILES, *WRITTEN_FILES)
        own: dict[str, Any] = {n: str(Path(v).absolute()) for n, v in vars(self).items() if n in files and v}
        passed = ((name, str(Path(str(v)).absolute()) if name in files else v) for name, v in self.passed)
        return replace(self, **own, passed=tuple(passed))


def read_options(given: Mapping[str, Any]) -> CompilerOptions:
    """Options as a user gives them. Raises `OptionError` for what is unknown, out of range or contradictory."""
    fields: dict[str, Any] = {}
    passed: dict[str, Value] = {}
    for spelt, value in given.items():
        name = spelt.replace("-", "_")
        value = None if value is not False and (name, value) in LEFT_OPEN else value  # False equals 0
        if name in fields or name in passed:
            raise OptionError(f"option '{name}' is given twice, with dashes and with underscores. Leave one out.")
        if name == DROPPED:
            _say_dropped()
        elif name == EXTRA:
            fields[name] = _extra_arguments(value)
        elif name in CONSUMED:
            if value is not None:
                fields[name] = CONSUMED[name](name, value)
        elif value is not None:
            passed[name] = _kind(name)(name, value)
    _check_together({**fields, **passed})
    options = CompilerOptions(**fields, passed=tuple(passed.items()))
    asked = f"num_devices is {options.num_devices}"
    if options.is_pipeline:
        asked += f", which gives {options.sharing} to each of {options.mdp_num_partitions} mdp_num_partitions"
    check_sharing(options.sharing, asked)
    return options


def said(given: Mapping[str, Any]) -> dict[str, Any]:
    """What of these options is not so anyway: equal compilations are told equal things."""
    usual = vars(CompilerOptions()).items()
    return {
        spelt: value
        for spelt, value in given.items()
        if value is not None
        and value is not False
        and (name := spelt.replace("-", "_")) != DROPPED
        and (name, value) not in (*usual, *LEFT_OPEN)
    }


def check_sharing(devices: int, asked: str) -> None:
    """Refuse a number of devices that layers are not sliced over. `asked`: who wants how many."""
    if devices not in SHARING:
        raise OptionError(
            f"{asked}, but a layer is shared by {', '.join(map(str, SHARING[:-1]))} or {SHARING[-1]} devices. Take as"
            " many, or have devices take layers of their own, with other partitions (mdp_num_partitions)."
        )


@functools.cache
def _say_dropped() -> None:
    """Once: options are read at several places on the way to one program."""
    logger.warning("option '%s' has no effect: programs are always compiled only. Leave it out.", DROPPED)


def render(options: Sequence[tuple[str, Value]]) -> list[str]:
    """The arguments for options that the compiler is told as they are."""
    return [_argument(name, value) for name, value in options if value is not False]


def _argument(name: str, value: Value) -> str:
    flag = "-" + name.replace("_", "-")
    if value is True:
        return flag
    return f"{flag}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


def _kind(name: str) -> Kind:
    if name in DECIDED:
        raise OptionError(f"option '{name}' of the compiler cannot be set: {DECIDED[name]}. Leave it out.")
    if name not in PASSED:
        raise unknown_option(
            "device 'cloud_ai_100'",
            name,
            (*CONSUMED, *PASSED, EXTRA),
            f" An option that only the compiler knows goes into {EXTRA}, as the compiler spells it"
            " (--compiler-arg=-name=value).",
        )
    return PASSED[name]


def _extra_arguments(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        raise _refuse(EXTRA, "a list of texts", value)
    for part in value:
        if not part.startswith("-"):
            raise OptionError(f"{EXTRA} holds {part!r}, but the compiler takes '-name' and '-name=value' only.")
    return tuple(value)


def _check_together(given: Mapping[str, Any]) -> None:
    chosen = {name for name, value in given.items() if value is not False}
    for name, needed in NEEDS:
        if name in chosen and needed not in chosen:
            raise OptionError(f"option '{name}' has a meaning with '{needed}' only. Give {needed} too.")
    for one, other in EXCLUDES:
        if one in chosen and other in chosen:
            raise OptionError(f"options '{one}' and '{other}' exclude each other. Leave one out.")
    _check_cores(given)
    _check_devices(given)


def _check_cores(given: Mapping[str, Any]) -> None:
    cores, instances = given.get("num_cores", CORES), given.get("aic_num_of_instances", 1)
    if "aic_num_of_instances" in given and cores * instances > CORES:
        raise OptionError(
            f"aic_num_of_instances {instances} with num_cores {cores} needs {cores * instances} cores, but a device has"
            f" {CORES}. Lower one of them."
        )
    shares, clusters = given.get("mos", ()), given.get("sdp_cluster_sizes", ())
    for share in shares:
        if share > cores:
            raise OptionError(f"mos {share} is larger than num_cores {cores}. Lower the one or raise the other.")
    if len(shares) > 1 and len(shares) != len(clusters):
        raise OptionError(
            f"mos has {len(shares)} numbers, one for each cluster of cores, but sdp_cluster_sizes has {len(clusters)}."
            " Give as many sizes as numbers, or one number."
        )


def _check_devices(given: Mapping[str, Any]) -> None:
    devices, partitions = given.get("num_devices", 1), given.get("mdp_num_partitions", 1)
    if partitions > 1 and "mdp_load_partition_config" in given:
        raise OptionError(
            f"mdp_load_partition_config names the partitions itself, but mdp_num_partitions {partitions} was asked for"
            " too. Leave mdp_num_partitions out, or leave the file out and have one written."
        )
    if partitions > devices:
        raise OptionError(f"mdp_num_partitions {partitions} needs as many devices, but num_devices is {devices}.")
    if given.get("mdp_strategy") == "intersection" and "mdp_compiler_dump_path" not in given:
        raise OptionError(
            "mdp_strategy 'intersection' needs mdp_compiler_dump_path: what an earlier compilation with"
            " mdp_dump_partition_config wrote."
        )
