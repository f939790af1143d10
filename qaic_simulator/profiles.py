"""What differs between releases of the SDK, between generations of hardware and between cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qaic_simulator.rules import GRAPH_RULES, LENIENT_SEVERITIES, RULES, Refusal

TOOLS = ("qaic-compile", "qaic-exec")


@dataclass(frozen=True)
class Hardware:
    """A generation of chips, as `-aic-hw-version` names it."""

    name: str
    needs_fp16: bool
    """Whether float math that is neither fp16 nor quantized has no kernels."""
    has_bfloat16: bool


HARDWARE: Mapping[str, Hardware] = MappingProxyType(
    {
        "ai100": Hardware("ai100", needs_fp16=True, has_bfloat16=False),
        "ai200": Hardware("ai200", needs_fp16=False, has_bfloat16=True),
    }
)
OLD_HARDWARE_VERSION = "2.0"
"""How releases before 1.22 may also call ai100."""

CORES: Mapping[str, int] = MappingProxyType({"standard": 14, "pro": 16, "ultra": 16})
"""Cores that programs may use on one device, by card."""


@dataclass(frozen=True)
class Profile:
    """The tool that is stood in for: a release, the card that it compiles for, and how much is taken on trust."""

    sdk: str
    named_specializations: bool
    """Whether entries of the specialization file have names; each release reads one form only."""
    has_compile_only: bool
    """Whether qaic-compile still takes `-compile-only`, which it has no use for."""
    has_old_hardware_version: bool
    sku: str = "ultra"
    strict: bool = True
    """Whether rules apply that are ours or Glow's, beside those seen on the real tool or documented."""

    @property
    def device_cores(self) -> int:
        """Cores of one device."""
        return CORES[self.sku]

    def refuse(self, rule_id: str, message: str) -> None:
        """Raise the refusal, or return where this profile does not apply the rule."""
        rule = RULES.get(rule_id) or GRAPH_RULES[rule_id]
        if self.strict or rule.severity in LENIENT_SEVERITIES:
            raise Refusal(rule, message)


@dataclass(frozen=True)
class _Release:
    named_specializations: bool
    has_compile_only: bool
    has_old_hardware_version: bool


_RELEASES: Mapping[str, _Release] = MappingProxyType(
    {
        "1.21": _Release(named_specializations=False, has_compile_only=True, has_old_hardware_version=True),
        "1.22": _Release(named_specializations=True, has_compile_only=False, has_old_hardware_version=False),
    }
)
SDKS = tuple(_RELEASES)


def profile_of(sdk: str, sku: str = "ultra", strict: bool = True) -> Profile:
    """The profile of a release and a card."""
    if sdk not in _RELEASES:
        raise ValueError(f"SDK '{sdk}' has no profile: {', '.join(SDKS)} have.")
    if sku not in CORES:
        raise ValueError(f"Card '{sku}' is not known: {', '.join(CORES)} are.")
    release = _RELEASES[sdk]
    return Profile(
        sdk,
        release.named_specializations,
        release.has_compile_only,
        release.has_old_hardware_version,
        sku,
        strict,
    )
