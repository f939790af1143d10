"""What QNN's generator reads beside the converted graph: settings of the backend, partitions, formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qaic_simulator.profiles import profile_of
from qaic_simulator.qnn.custom_io import Conversion
from qaic_simulator.qnn.rules import refuse
from qaic_simulator.side_files.custom_io import input_of_state
from qaic_simulator.side_files.specializations import read_json

FORMAT = "QNN_TENSOR_DATA_FORMAT_MX"
HOST = "x86_64-linux-clang"

_TYPED: Mapping[type, str] = {
    bool: "convert_to_FP16 retained_state mxfp6_matmul_weights mxint8_mdp_io do_DDR_to_multicast enable_depth_first"
    " perfWarnings printPerfMetrics printDDRStats time_passes genCRC combine_inputs combine_outputs"
    " userDMAProducerDMAEnabled directApi force_VTCM_spill",
    str: "compilation_target hardware_version exclude_mxfp6_matmul max_out_channel_split PMU_events PMU_recipe_opt"
    " cluster_sizes mdp_load_partition_config mdp_dump_partition_config",
}
RANGES: Mapping[str, tuple[float, float]] = {
    "compiler_num_of_cores": (1, 16),
    "compiler_overlap_split_factor": (1, 16),
    "compiler_size_split_granularity": (512, 2048),
    "compiler_buffer_dealloc_delay": (0, 10),
    "compiler_stat_level": (10, 100),
    "compiler_stats_batch_size": (1, 1 << 16),
    "compiler_crc_stride": (1, 1 << 16),
    "compiler_compileThreads": (1, 1 << 10),
    "compiler_VTCM_working_set_limit_ratio": (0, 1),
    "runtime_num_activations": (1, 1 << 10),
    "runtime_submit_timeout": (0, 1 << 20),
    "runtime_submit_num_retries": (0, 1 << 20),
    "runtime_threads_per_queue": (1, 1 << 10),
}
"""Settings that are numbers; ranges without a public source are wide."""
RATIO = "compiler_VTCM_working_set_limit_ratio"
SETTINGS: Mapping[str, type] = {
    "graph_names": list,
    "runtime_device_ids": list,
    **{f"compiler_{name}": kind for kind, names in _TYPED.items() for name in names.split()},
    **dict.fromkeys(RANGES, int),
}
"""Everything that the backend knows, and the type of each."""
SETTING_CHOICES: Mapping[str, Sequence[Any]] = {
    "compiler_compilation_target": ("hardware",),
    "compiler_hardware_version": ("2.0",),
    "compiler_convert_to_FP16": (True,),
    "compiler_PMU_recipe_opt": ("AxiRd", "AxiWr", "AxiRdWr", "KernelUtil"),
}
NEEDED_SETTINGS = (
    "graph_names", "compiler_compilation_target", "compiler_hardware_version", "compiler_convert_to_FP16",
    "compiler_retained_state", "compiler_num_of_cores",
)  # fmt: skip
SPLITS = ("1", "2", "4", "8", "16")

_READER = profile_of("1.22")


def check_library(option: str, path: Path, name: str) -> None:
    """Refuse a library that is not there, or is another one."""
    if not path.is_file():
        refuse("qnn.files.absent", f"{option}: there is no library {path}.")
    if path.name != name or path.parent.name != HOST:
        refuse("qnn.target", f"{option} is {path}, not {name} for {HOST}.")


def _object(value: Any, keys: Sequence[str], where: str) -> list[Any]:
    """The values of an object that has these keys and no others."""
    if not isinstance(value, dict):
        refuse("qnn.json.type", f"{where} is no object.")
    if set(value) != set(keys):
        refuse("qnn.json.key", f"{where} has {', '.join(value) or 'nothing'}, not {', '.join(keys)}.")
    return [value[key] for key in keys]


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        refuse("qnn.json.type", f"{where} is no list, or an empty one.")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """The settings of the backend that a configuration file names."""
    (extensions,) = _object(read_json(path, _READER), ["backend_extensions"], path.name)
    keys = ["config_file_path", "shared_library_path"]
    backend, library = (str(value) for value in _object(extensions, keys, "backend_extensions"))
    check_library("shared_library_path", Path(library), "libQnnAicNetRunExtensions.so")
    if not Path(backend).is_file():
        refuse("qnn.files.absent", f"config_file_path: there is no file {backend}.")
    settings = read_json(Path(backend), _READER)
    if not isinstance(settings, dict):
        refuse("qnn.json.type", f"{Path(backend).name} is no object.")
    return settings


def check_settings(settings: Mapping[str, Any], conversion: Conversion) -> int:
    """Refuse settings that do not fit the backend or the graph; how many devices they are for."""
    for key, value in settings.items():
        _check_setting(key, value)
    for key in NEEDED_SETTINGS:
        if key not in settings:
            refuse("qnn.backend.required", f"The backend is not told {key}.")
    if settings["graph_names"] != conversion.graph_names:
        found, expected = settings["graph_names"], conversion.graph_names
        refuse("qnn.backend.graphs", f"graph_names is {found}, but the converted file has {expected}.")
    has_state = any(input_of_state(tensor.name) for tensor in conversion.outputs)
    if settings["compiler_retained_state"] is not has_state:
        refuse("qnn.backend.state", f"compiler_retained_state is not {has_state}, but the graph is so.")
    _check_splits(settings.get("compiler_max_out_channel_split", "1"), settings["compiler_num_of_cores"])
    partitions = settings.get("compiler_mdp_load_partition_config")
    return _devices_of(Path(partitions)) if partitions else 1


def _check_setting(key: str, value: Any) -> None:
    if key not in SETTINGS:
        refuse("qnn.backend.key", f"{key}: Extra inputs are not permitted.")
    fits = type(value) is SETTINGS[key] or (key == RATIO and type(value) is float)
    if not fits:
        refuse("qnn.json.type", f"{key} is {value!r}, which is no {SETTINGS[key].__name__}.")
    if value == "" and key != "compiler_exclude_mxfp6_matmul":
        refuse("qnn.backend.value", f"{key} is empty.")
    low, high = RANGES.get(key, (0, 0))
    if key in RANGES and not low <= value <= high:
        refuse("qnn.backend.value", f"{key} lies in {low:g}..{high:g}, not at {value}.")
    known = SETTING_CHOICES.get(key)
    if known and value not in known:
        refuse("qnn.backend.value", f"{key} is {value!r}, which is none of {', '.join(map(str, known))}.")


def _check_splits(text: str, cores: int) -> None:
    for split in text.split(" "):
        if split not in SPLITS or int(split) > cores:
            refuse("qnn.backend.splits", f"compiler_max_out_channel_split has '{split}', with {cores} cores.")


def _devices_of(path: Path) -> int:
    """How many devices a file of partitions names: all of them work on everything."""
    if not path.is_file():
        refuse("qnn.files.absent", f"compiler_mdp_load_partition_config: there is no file {path}.")
    connections, partitions = _object(read_json(path, _READER), ["connections", "partitions"], path.name)
    if len(_list(partitions, "partitions")) > 1:
        refuse("qnn.partitions", "There is more than one partition; only slices of every layer are known here.")
    _, devices = _object(partitions[0], ["name", "devices"], "A partition")
    numbers = [_object(device, ["deviceId"], "A device")[0] for device in _list(devices, "devices")]
    in_order = all(type(number) is int for number in numbers) and numbers == list(range(len(numbers)))
    if not in_order or len(numbers) > 16 or len(numbers).bit_count() != 1:
        refuse("qnn.partitions", f"Devices are {numbers}, not a power of two of them from 0 on.")
    for connection in _list(connections, "connections"):
        if _object(connection, ["devices", "type"], "A connection") != [numbers, "p2p"]:
            refuse("qnn.partitions", f"A connection does not join {numbers} by p2p.")
    return len(numbers)


def check_formats(path: Path | None, conversion: Conversion) -> None:
    """Refuse formats that do not fit the graph."""
    if path is None:
        if conversion.block_floats:
            refuse("qnn.format", "There are states of uint8, but no --data_format_config says that they are MXINT8.")
        return
    (graphs,) = _object(read_json(path, _READER), ["graphs"], path.name)
    read = [_object(graph, ["graph_name", "tensors"], "A graph") for graph in _list(graphs, "graphs")]
    names = [name for name, _ in read]
    if names != conversion.graph_names:
        refuse("qnn.format", f"Formats are given for the graphs {names}, not for {conversion.graph_names}.")
    for _, tensors in read:
        _check_tensors(_list(tensors, "tensors"), conversion.block_floats)


def _check_tensors(tensors: Sequence[Any], expected: set[str]) -> None:
    read = [_object(tensor, ["tensor_name", "dataFormat"], "A tensor") for tensor in tensors]
    for name, data_format in read:
        if data_format != FORMAT:
            refuse("qnn.format", f"{name} has the format {data_format!r}, not {FORMAT}.")
    names = [name for name, _ in read]
    if sorted(map(str, names)) != sorted(expected):
        refuse("qnn.format", f"Formats are given for {names}, but the states of uint8 are {sorted(expected)}.")
