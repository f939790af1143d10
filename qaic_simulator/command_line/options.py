"""The options of the compiler, as data: names, kinds, ranges, and which of them exclude or need one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

FLAG = "flag"
SWITCH = "switch"
"""A flag that may also be given as =0 or =1."""
TEXT = "text"
INPUT_FILE = "input file"
OUTPUT_PATH = "output path"
INTEGER = "integer"
NUMBER = "number"
CHOICE = "choice"
INTEGERS = "integers"
"""Whole numbers, separated by commas."""
SYMBOL = "symbol"
"""A name and a whole number, separated by a comma."""

SPLITS = (1, 2, 4, 8, 16)
"""What `-mos` and `-ols` may be."""


@dataclass(frozen=True)
class Option:
    """One option of the command line; its name is without the dash."""

    name: str
    kind: str = FLAG
    source: str = "DOC"
    low: float = float("-inf")
    high: float = float("inf")
    choices: tuple[str, ...] = ()
    most: int = 0
    """How many members a list may have; 0: any number."""
    repeatable: bool = False
    alias_of: str = ""
    introduced: str = ""
    """The SDK that first had it, where that is one of the profiles; else it has been there before them."""
    removed: str = ""
    """The SDK whose qaic-compile has it no more."""
    runs: bool = False
    """Whether it is about running the network, which only qaic-exec does."""

    @property
    def takes_value(self) -> bool:
        """Whether `-name` alone is incomplete."""
        return self.kind not in (FLAG, SWITCH)


_SCHEMAS = ("asymmetric", "symmetric", "symmetric_with_uint8", "symmetric_with_power2_scale")
_CALIBRATIONS = ("None", "KLMinimization", "KLMinimizationV2", "Percentile", "MSE", "SQNR")
_FRAMEWORKS = ("onnx", "tensorflow", "pytorch", "caffe", "caffe2")
_RECIPES = ("AxiRd", "AxiWr", "AxiRdWr", "KernelUtil", "HmxMacs")

_MODEL = (
    Option("m", INPUT_FILE),
    Option("model", INPUT_FILE, alias_of="m"),
    Option("onnx-define-symbol", SYMBOL, repeatable=True),
    Option("aic-hw"),
    Option("aic-hw-version", TEXT, "ET"),
    Option("aic-binary-dir", OUTPUT_PATH),
    Option("compile-only", removed="1.22"),
    Option("output-node-name", TEXT),
    Option("batchsize", INTEGER, low=1),
    Option("stats-batchsize", INTEGER, low=1),
)

_CORES_AND_MEMORY = (
    Option("aic-num-cores", INTEGER),
    Option("aic-num-of-instances", INTEGER, low=1),
    Option("mos", INTEGERS),
    Option("mdts-mos", INTEGER, "CH", low=1, high=16),
    Option("ols", INTEGERS),
    Option("multicast-weights"),
    Option("aic-enable-depth-first"),
    Option("aic-depth-first-mem", INTEGER, low=8, high=32),
    Option("allocator-dealloc-delay", INTEGER, low=0, high=10),
    Option("size-split-granularity", INTEGER, low=512, high=2048),
    Option("vtcm-working-set-limit-ratio", NUMBER, low=0, high=1),
    Option("sdp-cluster-sizes", INTEGERS, low=1),
    Option("use-producer-dma", SWITCH),
    Option("compile-threads", INTEGER, low=1),
    Option("sub-functions", source="ET"),
    Option("user-tiled", source="CH"),
)

_PRECISION = (
    Option("convert-to-fp16"),
    Option("mxfp6-matmul", source="ET"),
    Option("allow-mxint8-mdp-io", source="ET"),
    Option("custom-IO-list-file", INPUT_FILE),
    Option("dump-custom-IO-config-template", OUTPUT_PATH),
    Option("node-precision-info", INPUT_FILE),
    Option("execute-nodes-in-fp16", TEXT),
    Option("keep-original-precision-for-nodes", TEXT),
    Option("load-profile", INPUT_FILE),
    Option("dump-profile", OUTPUT_PATH),
    Option("external-quantization", INPUT_FILE),
    Option("convert-to-quantize"),
    Option("input-list-file", INPUT_FILE, "CM"),
    Option("use-random-input-data", CHOICE, "CM", choices=("gaussian",)),
    Option("quantization-schema", CHOICE, choices=_SCHEMAS),
    Option("quantization-schema-activations", CHOICE, choices=_SCHEMAS),
    Option("quantization-schema-constants", CHOICE, choices=_SCHEMAS),
    Option("quantization-calibration", CHOICE, choices=_CALIBRATIONS),
    Option("percentile-calibration-value", NUMBER, low=90, high=100),
    Option("num-histogram-bins", INTEGER, low=1),
    Option("quantization-precision", CHOICE, choices=("Int8",)),
    Option("quantization-precision-bias", CHOICE, choices=("Int8", "Int32")),
    Option("enable-channelwise"),
    Option("enable-rowwise"),
    Option("profiling-threads", INTEGER, low=1),
)

_STATE_SHAPES_DEVICES = (
    Option("network-specialization-config", INPUT_FILE),
    Option("retained-state", source="SDK"),
    Option("split-model-io", source="ET"),
    Option("split-retained-state-io", source="VQ"),
    Option("mdp-load-partition-config", INPUT_FILE),
    Option("mdp-dump-partition-config", OUTPUT_PATH),
    Option("always-expand-onnx-functions"),
    Option("dynamic-shape-input", TEXT),
    Option("host-preproc"),
    Option("aic-preproc"),
    Option("combine-inputs"),
    Option("combine-outputs"),
    Option("io-crc"),
    Option("io-crc-stride", INTEGER, low=1),
    Option("io-encrypt", source="ET"),
    Option("register-custom-op", INPUT_FILE, repeatable=True),
)

_DIAGNOSTICS = (
    Option("aic-profiling-type", CHOICE, choices=("stats", "trace", "latency")),
    Option("stats-level", INTEGER, low=10, high=100),
    Option("ddr-stats"),
    Option("aic-perf-metrics"),
    Option("aic-perf-warnings"),
    Option("time-passes"),
    Option("aic-pmu-recipe", CHOICE, choices=_RECIPES),
    Option("aic-pmu-events", TEXT, most=8),
    Option("v"),
    Option("vv", source="CM"),
    Option("vvv", source="CM"),
    Option("h"),
    Option("help"),
    Option("usage"),
    Option("operators-supported", CHOICE, choices=_FRAMEWORKS),
    Option("device-id", INTEGER, low=0, runs=True),
    Option("num-iter", INTEGER, low=1, runs=True),
    Option("write-output-dir", OUTPUT_PATH, runs=True),
    Option("write-output-start-iter", INTEGER, low=0, runs=True),
    Option("write-output-num-samples", INTEGER, low=0, runs=True),
)

OPTIONS: Mapping[str, Option] = MappingProxyType(
    {
        option.name: option
        for group in (_MODEL, _CORES_AND_MEMORY, _PRECISION, _STATE_SHAPES_DEVICES, _DIAGNOSTICS)
        for option in group
    }
)
"""Every option by its name, without the dash."""

ACTIONS: Mapping[str, str] = MappingProxyType(
    {"h": "help", "help": "help", "usage": "help", "operators-supported": "operators"}
)
"""Options that ask for something else than a compilation, and what they ask for."""
DOUBLE_DASHED = ("help", "usage")

EXCLUSIONS: tuple[tuple[str, str, str], ...] = (
    ("exclusive.quantize-profile", "convert-to-quantize", "dump-profile"),
    ("exclusive.quantize-profile", "convert-to-quantize", "load-profile"),
    ("exclusive.preprocessing", "host-preproc", "aic-preproc"),
    ("exclusive.symbols", "onnx-define-symbol", "network-specialization-config"),
    ("exclusive.profiling-fp16", "dump-profile", "convert-to-fp16"),
)
"""A rule, and two options that it keeps apart."""
DEPENDENCIES: tuple[tuple[str, str, str], ...] = (
    ("needs.depth-first", "aic-depth-first-mem", "aic-enable-depth-first"),
)
"""A rule, an option, and the other that it needs."""
QUANTIZING = ("load-profile", "dump-profile", "external-quantization", "convert-to-quantize")
"""Options that make a build one where float math need not be fp16."""
