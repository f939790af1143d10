"""What a container says of the command that made it, as far as it shows in the numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass

MODEL, SETTINGS, DESCRIPTOR = "sim.onnx", "sim.json", "networkdesc.bin"

Pin = frozenset[str]
"""First outputs of the nodes that keep a precision."""


class ExecutionError(ValueError):
    """The container holds no program that can be run here."""


@dataclass(frozen=True)
class Settings:
    """What the compiler was told."""

    half: bool
    mxfp6: bool
    retained_state: bool
    """Whether the device keeps states between runs; otherwise they are inputs and outputs like others."""
    devices: int
    cores: int
    fp16: Pin
    fp32: Pin
    mxint8: frozenset[str]
    """Inputs and outputs that are stored in MXINT8."""
    bytes_per_device: int | None
    """Of constants, states, inputs and outputs; None where the compiler did not say."""


def read_settings(raw: bytes) -> Settings:
    """The settings in a container."""
    try:
        content = json.loads(raw)
        pinned = content.get("node_precision") or {}
        rounded = (name for name, precision in (content.get("custom_io") or {}).items() if precision == "mxint8")
        return Settings(
            half=bool(content["convert_to_fp16"]),
            mxfp6=bool(content["mxfp6"]),
            retained_state=bool(content["retained_state"]),
            devices=int(content["devices"]),
            cores=int(content["cores"]),
            fp16=frozenset(pinned.get("fp16", ())),
            fp32=frozenset(pinned.get("fp32", ())),
            mxint8=frozenset(rounded),
            bytes_per_device=content.get("bytes_per_device"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExecutionError(f"{SETTINGS} is not what the stand-in compiler writes: {error!r}.") from error
