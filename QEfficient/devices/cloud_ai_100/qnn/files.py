"""What QNN's two tools read beside the graph: shapes and types, what the backend is told, formats, devices."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from QEfficient.devices.cloud_ai_100.custom_io import CACHE, WHOLE_NUMBERS
from QEfficient.devices.cloud_ai_100.options import CompilerOptions, Value, check_sharing
from QEfficient.errors import OptionError, did_you_mean
from QEfficient.program import GraphSpec, StateSpec, TensorSpec
from QEfficient.specs import Specialization

MODEL = "model"
"""What the converted graph is called; its file is `model.dlc`."""
MOST_GRAPHS = 2
BLOCK_FLOAT_STORED = "uint8"
"""How the converter is told of MXINT8, which it has no name for; the format follows in a file of its own."""
BLOCK_FLOAT_FORMAT = "QNN_TENSOR_DATA_FORMAT_MX"
STATE_TYPE = "float16"
YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "y", "n", "null")
PARTITION_KEY = "compiler_mdp_load_partition_config"

_COMPILER_SETTINGS: Mapping[type, str] = {
    bool: "convert_to_FP16 retained_state mxfp6_matmul_weights mxint8_mdp_io do_DDR_to_multicast enable_depth_first"
    " perfWarnings printPerfMetrics printDDRStats time_passes genCRC combine_inputs combine_outputs"
    " userDMAProducerDMAEnabled directApi force_VTCM_spill",
    int: "num_of_cores overlap_split_factor size_split_granularity buffer_dealloc_delay stat_level stats_batch_size"
    " crc_stride compileThreads",
    float: "VTCM_working_set_limit_ratio",
    str: "compilation_target hardware_version exclude_mxfp6_matmul max_out_channel_split PMU_events PMU_recipe_opt"
    " cluster_sizes mdp_load_partition_config mdp_dump_partition_config",
}
_RUNTIME_SETTINGS: Mapping[type, str] = {
    list: "device_ids",
    int: "num_activations submit_timeout submit_num_retries threads_per_queue",
}
SETTINGS: Mapping[str, type] = MappingProxyType(
    {"graph_names": list}
    | {f"compiler_{name}": kind for kind, names in _COMPILER_SETTINGS.items() for name in names.split()}
    | {f"runtime_{name}": kind for kind, names in _RUNTIME_SETTINGS.items() for name in names.split()}
)
"""Everything that the backend can be told; it refuses other keys."""

QUIET: Mapping[str, Any] = MappingProxyType(
    {
        "compiler_do_DDR_to_multicast": True,
        "compiler_perfWarnings": False,
        "compiler_printDDRStats": False,
        "compiler_printPerfMetrics": False,
        "compiler_stat_level": 10,
        "compiler_stats_batch_size": 1,
        "compiler_time_passes": False,
        "compiler_mxint8_mdp_io": False,
        "compiler_enable_depth_first": False,
    }
)
"""What the backend is told where nobody asks for anything else."""

SPELT: Mapping[str, str] = MappingProxyType(
    {
        "mos": "compiler_max_out_channel_split",
        "ols": "compiler_overlap_split_factor",
        "multicast_weights": "compiler_do_DDR_to_multicast",
        "aic_enable_depth_first": "compiler_enable_depth_first",
        "allocator_dealloc_delay": "compiler_buffer_dealloc_delay",
        "size_split_granularity": "compiler_size_split_granularity",
        "vtcm_working_set_limit_ratio": "compiler_VTCM_working_set_limit_ratio",
        "sdp_cluster_sizes": "compiler_cluster_sizes",
        "use_producer_dma": "compiler_userDMAProducerDMAEnabled",
        "compile_threads": "compiler_compileThreads",
        "allow_mxint8_mdp_io": "compiler_mxint8_mdp_io",
        "mdp_dump_partition_config": "compiler_mdp_dump_partition_config",
        "combine_inputs": "compiler_combine_inputs",
        "combine_outputs": "compiler_combine_outputs",
        "io_crc": "compiler_genCRC",
        "io_crc_stride": "compiler_crc_stride",
        "stats_level": "compiler_stat_level",
        "stats_batchsize": "compiler_stats_batch_size",
        "ddr_stats": "compiler_printDDRStats",
        "aic_perf_metrics": "compiler_printPerfMetrics",
        "aic_perf_warnings": "compiler_perfWarnings",
        "time_passes": "compiler_time_passes",
        "aic_pmu_recipe": "compiler_PMU_recipe_opt",
        "aic_pmu_events": "compiler_PMU_events",
    }
)
"""Options of the native compiler, and what the backend of QNN calls them."""

CONSTANT: Mapping[str, Any] = MappingProxyType(
    {
        "compiler_compilation_target": "hardware",
        "compiler_hardware_version": "2.0",
        "compiler_convert_to_FP16": True,
    }
)
"""Settings that this device has always."""
DECIDED = (*CONSTANT, "graph_names", "compiler_retained_state", PARTITION_KEY)
"""Settings that the user cannot have otherwise: those, and what follows from the program and its geometry."""


def graph_names(specializations: Sequence[Specialization]) -> list[str]:
    """What the converter calls the graph of each specialization."""
    if len(specializations) == 1:
        return [MODEL]
    return [f"{MODEL}_configuration_{number}" for number in range(1, len(specializations) + 1)]


def check_specializations(entries: Sequence[Specialization]) -> None:
    """Refuse more than the tools take."""
    if not 1 <= len(entries) <= MOST_GRAPHS:
        names = f" ({', '.join(entry.name for entry in entries)})" if entries else ""
        raise OptionError(
            f"QNN's tools take 1 or {MOST_GRAPHS} specializations, but there are {len(entries)}{names}. Ask for fewer"
            " numbers in num_speculative_tokens and comp_ctx_lengths_…, or compile without enable_qnn."
        )


def custom_io_text(graph: GraphSpec, specializations: Sequence[Specialization], mxint8: bool = False) -> str:
    """The text of `custom_io_config.yaml`: types of all inputs and outputs, and the shapes of the inputs."""
    states = {name: _state_type(state, mxint8) for state in graph.states for name in _names(state)}
    lines = ["Input Tensor Configuration:"]
    for tensor in graph.all_inputs:
        lines += _entry(tensor, states.get(tensor.name, tensor.dtype))
        lines.append(f"      Shape: {_shapes(tensor, specializations)}")
    lines.append("Output Tensor Configuration:")
    for tensor in graph.all_outputs:  # without shapes, which follow from those of the inputs
        lines += _entry(tensor, states.get(tensor.name, tensor.dtype))
    return "\n".join(lines) + "\n"


def _names(state: StateSpec) -> tuple[str, str]:
    return state.input.name, state.output.name


def _state_type(state: StateSpec, mxint8: bool) -> str:
    if state.tensor.dtype in WHOLE_NUMBERS:
        return state.tensor.dtype
    return BLOCK_FLOAT_STORED if mxint8 and state.kind in CACHE else STATE_TYPE


def _entry(tensor: TensorSpec, dtype: str) -> list[str]:
    return [f"  - Name: {_scalar(tensor.name)}", "    Desired Model Parameters:", f"      DataType: {dtype}"]


def _scalar(name: str) -> str:
    """A name as YAML reads it back; quoted where it would be taken for a number, a truth value or a sign."""
    plain = re.fullmatch(r"[A-Za-z_][\w.]*", name, re.ASCII) and name.lower() not in YAML_WORDS
    return name if plain else json.dumps(name)


def _shapes(tensor: TensorSpec, specializations: Sequence[Specialization]) -> str:
    """One tuple for each specialization, even where they are equal: they are told apart by their place."""
    shapes = (tensor.resolve(entry.symbols) for entry in specializations)
    return ", ".join(f"({', '.join(map(str, shape))})" for shape in shapes)


def block_float_tensors(graph: GraphSpec) -> list[str]:
    """Inputs and outputs that hold MXINT8 where that was asked for."""
    return [name for state in graph.states if state.kind in CACHE for name in _names(state)]


def data_format_text(graph: GraphSpec, specializations: Sequence[Specialization]) -> str:
    """The text of the file that says which tensors hold MXINT8."""
    # The converter takes a point out of the names of tensors, here alone: in the YAML they are the graph's.
    names = [name.replace(".", "_") for name in block_float_tensors(graph)]
    tensors = [{"tensor_name": name, "dataFormat": BLOCK_FLOAT_FORMAT} for name in names]
    return _json({"graphs": [{"graph_name": name, "tensors": tensors} for name in graph_names(specializations)]})


def slices_text(devices: int) -> str:
    """The text of `tensor_slicing.json`: every device works on every layer. The cores are said elsewhere."""
    numbers = range(devices)
    connections = [{"devices": list(numbers), "type": "p2p"}]
    partitions = [{"name": "Partition0", "devices": [{"deviceId": number} for number in numbers]}]
    return _json({"connections": connections, "partitions": partitions})


def partition_devices(path: Path) -> int:
    """How many devices a file of partitions is for."""
    return len(set().union(*_devices_of_partitions(path)))


def check_partitions(path: Path) -> None:
    """Refuse a file that is none of partitions, or has layers shared by a number of devices that cannot."""
    for devices in _devices_of_partitions(path):
        check_sharing(len(devices), f"{path} gives {len(devices)} devices to one partition")


def _devices_of_partitions(path: Path) -> list[set[int]]:
    try:
        partitions = json.loads(path.read_text(encoding="utf-8"))["partitions"]
        found = [{int(device["deviceId"]) for device in partition["devices"]} for partition in partitions]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        found = []
    if not any(found):
        raise OptionError(
            f"{path} is no file of partitions: an object is expected whose 'partitions' have 'devices', each with its"
            " 'deviceId'. Correct it, or ask for num_devices and have one written."
        )
    return found


def compiler_config_text(backend: str, extensions: Path) -> str:
    """The text of `qnn_compiler_config.json`: the file of the backend's settings, and the library that reads them."""
    return _json({"backend_extensions": {"config_file_path": backend, "shared_library_path": str(extensions)}})


def backend_text(settings: Mapping[str, Any]) -> str:
    """The text of `qnn_compile_backend.json`."""
    return _json(settings)


def merged_settings(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Our settings, then those that the user changes."""
    check_decided(own, given)
    return {**own, **given}


def check_decided(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse settings of the user that are not the user's."""
    for key in DECIDED:
        if key in own and key in given and given[key] != own[key]:
            raise OptionError(
                f"qnn_compilation_backend sets '{key}' to {given[key]!r}, but the program and its options ask for"
                f" {own[key]!r}. Leave it out."
            )


def backend_settings(
    graph: GraphSpec, specializations: Sequence[Specialization], options: CompilerOptions, slices: str
) -> dict[str, Any]:
    """What the backend is told of a program, its geometry and its options."""
    partitions = options.mdp_load_partition_config or (slices if options.slices_tensors else None)
    return {
        **CONSTANT,
        "compiler_retained_state": bool(graph.states),
        "graph_names": graph_names(specializations),
        "compiler_mxfp6_matmul_weights": options.mxfp6_matmul,
        "compiler_num_of_cores": options.num_cores,
        **QUIET,
        **{SPELT[name]: _as(SETTINGS[SPELT[name]], value) for name, value in options.passed if name in SPELT},
        **({PARTITION_KEY: partitions} if partitions else {}),
    }


def _as(kind: type, value: Value) -> Any:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return kind(value)


def check_settings(given: Any) -> dict[str, Any]:
    """The user's own settings of the backend, or an `OptionError`."""
    if not isinstance(given, dict):
        raise OptionError(f"qnn_compilation_backend must hold settings by name, not {given!r}.")
    for key, value in given.items():
        if key not in SETTINGS:
            raise OptionError(
                f"qnn_compilation_backend has the key '{key}', which the backend does not know and would refuse."
                f"{did_you_mean(key, SETTINGS)}"
            )
        if not _fits(value, SETTINGS[key]):
            raise OptionError(f"qnn_compilation_backend: '{key}' must be {_SAID[SETTINGS[key]]}, not {value!r}.")
    return dict(given)


_SAID = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}


def _fits(value: Any, kind: type) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)


def _json(content: Any) -> str:
    return json.dumps(content, indent=4)
