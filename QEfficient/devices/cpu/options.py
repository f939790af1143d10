"""What this device can be told at `compile`, and what "auto" means for a program."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from QEfficient.errors import OptionError, did_you_mean

WEIGHT_FORMATS = ("auto", "f32", "bf16", "f16", "int8", "int4")
CACHE_FORMATS = ("auto", "f32", "bf16", "f16", "u8")
CACHES = ("f32", "f16", "u8")
CACHES_OF = {"bf16": ("bf16", "u8"), "f16": ("f16", "u8"), "f32": CACHES}
"""What attention takes, by what it computes in."""
COMPUTED_IN = ("auto", *CACHES_OF)
KERNELS = ("auto", "native", "openvino")
OWN_TEXT = "self"
GROUP_SIZES = (32, 64, 128)
INVARIANCE = "Sums of OpenVINO's own linear layers depend on the number of rows; those of ours do not."
COMPRESSED_FROM = 200_000_000
"""Bytes of float32 linear weights from which "auto" means 8 bits: below, exactness costs next to nothing."""


@dataclass(frozen=True)
class CpuOptions:
    """As given; `resolved` replaces what is "auto"."""

    weight_format: str = "auto"
    group_size: int = 128
    """Weights of one row that share a scale (int8, int4)."""
    symmetric: bool = True
    """Whether 0 is the middle of the 8 or 4 bits (else each group has a zero point)."""
    head_format: str = "auto"
    """Format of the output layer; "auto": that of the other weights."""
    expert_format: str = "auto"
    """Format of the experts of mixtures; "auto": that of the other weights."""
    calibration: str = ""
    """Round weights by what layers are fed with: "self" (text that the model writes), or a text file."""
    compute_in: str = "auto"
    """What is not in 8 or 4 bits; "auto": 16 bits with 16-bit weights, else float32."""
    kv_cache: str = "auto"
    kv_cache_tokens: int = 0
    """Tokens that the blocks hold, for all sequences together; 0: slots x ctx_len."""
    max_sequences: int = 0
    """Most sequences of one run; 0: full_batch_size or batch_size, or with neither 32, as far as the blocks go."""
    max_tokens: int = 512
    """Most tokens of one run: a prompt's chunk, and the rows that decode with it."""
    linear_kernel: str = "auto"
    """Who computes compressed layers: "native" (ours), "openvino"; "auto": ours where it was built."""
    batch_invariant: bool = False
    """The same bits whatever shares a batch, is cached or has to be computed again."""
    num_threads: int = 0
    """0: one for each core that this process may use."""
    hyper_threading: bool = False
    """Whether the default is a thread for each processor: two for cores that have two."""
    pin_threads: bool = True
    """Whether each thread stays on its processor."""
    numa_node: int = -1
    """The process binds itself to the processors of this node of memory when the program is opened; -1: it does not."""

    def __post_init__(self) -> None:
        for name, known in (
            ("weight_format", WEIGHT_FORMATS),
            ("head_format", WEIGHT_FORMATS),
            ("expert_format", WEIGHT_FORMATS),
            ("compute_in", COMPUTED_IN),
            ("kv_cache", CACHE_FORMATS),
            ("linear_kernel", KERNELS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise OptionError(f"{name} '{value}' is not one of {', '.join(known)}.{did_you_mean(value, known)}")
        if self.group_size not in GROUP_SIZES:
            raise OptionError(f"group_size {self.group_size} is not one of {', '.join(map(str, GROUP_SIZES))}.")
        for name in ("kv_cache_tokens", "max_sequences", "num_threads"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} must not be negative, but it is {getattr(self, name)}.")
        if self.numa_node < -1:
            raise OptionError(f"numa_node must be the number of a node, or -1, but it is {self.numa_node}.")
        if self.max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, but it is {self.max_tokens}.")

    def check(self) -> None:
        """Refuse what cannot work, before anything is done for it."""
        self._check_calibration()
        if self.batch_invariant and self.linear_kernel == "openvino":
            raise OptionError(f"batch_invariant does not go with linear_kernel 'openvino'. {INVARIANCE}")
        if self.batch_invariant and self.kv_cache == "u8":
            raise OptionError(
                "batch_invariant does not go with kv_cache 'u8', whose scales depend on when a token was written."
                " Choose f16 or f32, or leave it out."
            )

    def _check_calibration(self) -> None:
        if not self.calibration:
            return
        if self.calibration != OWN_TEXT and not Path(self.calibration).is_file():
            raise OptionError(f"calibration '{self.calibration}' is neither '{OWN_TEXT}' nor a text file.")
        if self.weight_format != "auto" and not self.compresses:
            raise OptionError(
                f"calibration is for weight_format int8 and int4, not for '{self.weight_format}'. Leave it out."
            )

    def calibration_digest(self) -> str | None:
        """Stands for the content of the calibration's file."""
        if self.calibration in ("", OWN_TEXT):
            return None
        return hashlib.sha256(Path(self.calibration).read_bytes()).hexdigest()

    @property
    def compresses(self) -> bool:
        """Whether any layer has less than 16 bits."""
        return not {"int8", "int4"}.isdisjoint(self.formats)

    @property
    def exact(self) -> CpuOptions:
        """The same weights, with as little rounding beside them as there can be."""
        return replace(self, compute_in="f32", kv_cache="f32")

    @property
    def formats(self) -> tuple[str, str, str]:
        """Of layers, head and experts."""
        return self.weight_format, self.head_format, self.expert_format

    def resolved(self, linear_bytes: int) -> CpuOptions:
        """With everything "auto" decided, for a program with so many bytes of linear weights in float32."""
        weights = self.weight_format
        if weights == "auto":
            weights = "int8" if linear_bytes >= COMPRESSED_FROM else "f32"
        head = weights if self.head_format == "auto" else self.head_format
        experts = weights if self.expert_format == "auto" else self.expert_format
        if self.batch_invariant and not {weights, head, experts} <= {"int8", "int4"}:
            raise OptionError(f"batch_invariant is for weight_format int8 and int4, not for '{weights}'. {INVARIANCE}")
        computing, cache = self.compute_in, self.kv_cache
        if computing == "auto":
            computing = weights if weights in ("bf16", "f16") else "f32"
        if cache == "auto":
            cache = "f32" if weights == "f32" else "f16" if self.batch_invariant else "u8"
        taken = CACHES_OF[computing]
        if cache not in taken:
            raise OptionError(f"kv_cache '{cache}' does not go with computing in {computing}: {', '.join(taken)} do.")
        formats = {"weight_format": weights, "head_format": head, "expert_format": experts}
        return replace(self, **formats, compute_in=computing, kv_cache=cache)  # type: ignore[arg-type]


OPTION_TYPES: Mapping[str, type] = {f.name: type(f.default) for f in fields(CpuOptions)}


def read_options(given: Mapping[str, Any]) -> CpuOptions:
    """The options among those given to `compile`; names and types were checked by the device."""
    return CpuOptions(**{name: value for name, value in given.items() if name in OPTION_TYPES})


def recorded_options(report: Mapping[str, Any]) -> CpuOptions:
    """Those that a program was compiled with; what its report does not know is as it was before there was a choice."""
    return CpuOptions(**report["options"]).resolved(0)
