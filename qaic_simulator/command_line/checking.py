"""All that can be said about a command before its graph is looked at, in the order in which the compiler would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qaic_simulator.command_line.arguments import Arguments, check_files, check_instances, check_splits_fit, parse
from qaic_simulator.profiles import Profile, profile_of
from qaic_simulator.rules import Refusal
from qaic_simulator.side_files.custom_io import read_custom_io
from qaic_simulator.side_files.node_precision import NodePrecision, read_node_precision
from qaic_simulator.side_files.partitions import PartitionConfig, read_partitions
from qaic_simulator.side_files.specializations import Specialization, read_specializations


@dataclass(frozen=True)
class Checked:
    """What a command asks for, or why it is refused."""

    arguments: Arguments | None = None
    partitions: PartitionConfig | None = None
    specializations: tuple[Specialization, ...] = ()
    custom_io: Mapping[str, str] = field(default_factory=dict)
    node_precision: NodePrecision | None = None
    refusal: Refusal | None = None

    @property
    def verdict(self) -> str:
        """ "accept" or "refuse"."""
        return "refuse" if self.refusal else "accept"

    @property
    def rule(self) -> str:
        """The id of the rule that is broken; empty if none is."""
        return self.refusal.rule.id if self.refusal else ""


def check_command(argv: Sequence[str], sdk: str, tool: str, strict: bool = True, sku: str = "ultra") -> Checked:
    """Check a command line, without the tool's own name, and the files that it names."""
    try:
        return check(argv, profile_of(sdk, sku, strict), tool)
    except Refusal as refusal:
        return Checked(refusal=refusal)


def check(argv: Sequence[str], profile: Profile, tool: str) -> Checked:
    """The same, for who wants the refusal raised."""
    arguments = parse(argv, profile, tool)
    if arguments.action != "compile":
        return Checked(arguments)
    check_files(arguments, profile)
    return Checked(
        arguments,
        _partitions(arguments, profile),
        _specializations(arguments, profile),
        _custom_io(arguments, profile),
        _node_precision(arguments, profile),
    )


def _partitions(arguments: Arguments, profile: Profile) -> PartitionConfig | None:
    name = "mdp-load-partition-config"
    if not arguments.has(name):
        return None
    config = read_partitions(Path(arguments.text(name)), profile)
    cores = {device.cores for device in config.devices}
    if arguments.has("aic-num-cores") and cores != {arguments.integer("aic-num-cores", 1)}:
        profile.refuse(
            "partitions.cores-disagree",
            f"-aic-num-cores is {arguments.text('aic-num-cores')}, but the partitions have {sorted(cores)}.",
        )
    check_splits_fit(arguments, min(cores, default=1), profile)
    check_instances(arguments, max(cores, default=1), profile)
    return config


def _specializations(arguments: Arguments, profile: Profile) -> tuple[Specialization, ...]:
    name = "network-specialization-config"
    return read_specializations(Path(arguments.text(name)), profile) if arguments.has(name) else ()


def _custom_io(arguments: Arguments, profile: Profile) -> dict[str, str]:
    name = "custom-IO-list-file"
    if not arguments.has(name):
        return {}
    precisions = read_custom_io(Path(arguments.text(name)), arguments.hardware, profile)
    packed = [name for name, precision in precisions.items() if precision == "mxint8"]
    if packed and not arguments.has("retained-state"):
        profile.refuse("custom-io.mxint8", f"{packed[0]} is mxint8, but without -retained-state no state is retained.")
    return precisions


def _node_precision(arguments: Arguments, profile: Profile) -> NodePrecision | None:
    name = "node-precision-info"
    return read_node_precision(Path(arguments.text(name)), profile) if arguments.has(name) else None
