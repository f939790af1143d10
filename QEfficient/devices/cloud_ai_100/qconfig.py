"""qconfig.json: what a compiled program was made from, for people and for the tools of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from QEfficient.devices.cloud_ai_100.options import CompilerOptions, Value
from QEfficient.devices.cloud_ai_100.sdk import Sdk
from QEfficient.specs import CompileSpec

FILE = "qconfig.json"


@dataclass(frozen=True)
class Origin:
    """The exported program that was compiled."""

    onnx_path: str
    pytorch_transforms: Sequence[str] = ()
    """What was done to the model before it was traced, in order."""
    onnx_transforms: Sequence[str] = ()
    """What was done to the graph before the compiler read it: by the export, then by the compilation."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further facts about the export, by name."""


def compiler_config(spec: CompileSpec, options: CompilerOptions) -> dict[str, Any]:
    """Everything that the compilation was asked for: the geometry, then the options."""
    geometry = {name: value for name, value in asdict(spec).items() if name != "device_options"}
    geometry["specializations"] = geometry.pop("verbatim")  # as `compile` is told
    own = {name: value for name, value in asdict(options).items() if name != "passed"}
    passed = {name: _shown(value) for name, value in options.passed}
    return {**geometry, **own, "extra_compiler_args": list(options.extra_compiler_args), **passed}


def _shown(value: Value) -> Any:
    """As it is given to `compile`: a number where that is all, else a list."""
    if not isinstance(value, tuple):
        return value
    return value[0] if len(value) == 1 and isinstance(value[0], int) else list(value)


def qconfig(
    huggingface_config: Mapping[str, Any],
    origin: Origin,
    compiler: Mapping[str, Any],
    sdk: Sdk,
    qnn: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of the file; `qnn` where QNN's tools compiled."""
    export = {
        "pytorch_transforms": list(origin.pytorch_transforms),
        "onnx_transforms": list(origin.onnx_transforms),
        "onnx_path": origin.onnx_path,
        **origin.more,
    }
    versions = {"qaic_apps_version": sdk.version, "qaic_platform_version": sdk.platform_version}
    parts = {"QEff_config": export, "compiler_config": dict(compiler), "aic_sdk_config": versions}
    if qnn is not None:
        parts["qnn_config"] = dict(qnn)
    return {"huggingface_config": dict(huggingface_config), "qpc_config": parts}
