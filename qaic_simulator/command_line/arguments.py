"""Reads a command line as strictly as the compiler may: the grammar, each value, and what goes with what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qaic_simulator.command_line.options import (
    ACTIONS,
    CHOICE,
    DEPENDENCIES,
    DOUBLE_DASHED,
    EXCLUSIONS,
    INPUT_FILE,
    INTEGER,
    INTEGERS,
    NUMBER,
    OPTIONS,
    QUANTIZING,
    SPLITS,
    SWITCH,
    SYMBOL,
    Option,
)
from qaic_simulator.profiles import HARDWARE, OLD_HARDWARE_VERSION, TOOLS, Hardware, Profile
from qaic_simulator.rules import Warned, warned
from qaic_simulator.side_files.specializations import LARGEST_SIZE

WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
REAL_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?|-?\.[0-9]+")
BOOLEAN_TEXTS = ("true", "false")
COMPILE_ONLY = warned("warned.compile-only", "qaic-compile always compiles only; -compile-only is deprecated.")
OLD_VERSION = warned(
    "warned.old-version", "-aic-hw-version=2.0 is deprecated and will be removed; use -aic-hw-version=ai100."
)


@dataclass(frozen=True)
class Arguments:
    """A command line that passed, by option; aliases are resolved and names are without the dash."""

    tool: str
    values: Mapping[str, tuple[str, ...]]
    """What each option was given, as text; a flag has the text "1"."""
    action: str = "compile"
    """What is asked for: "compile", "help" or "operators"."""
    warnings: tuple[Warned, ...] = ()

    def has(self, name: str) -> bool:
        """Whether the option was given."""
        return name in self.values

    def text(self, name: str, default: str = "") -> str:
        """The only value of an option."""
        return self.values[name][0] if name in self.values else default

    def integer(self, name: str, default: int) -> int:
        """The only value of an option, a whole number."""
        return int(self.values[name][0]) if name in self.values else default

    def integers(self, name: str) -> tuple[int, ...]:
        """The members of an option's list; empty if it was not given."""
        return tuple(int(text) for text in self.text(name).split(",")) if name in self.values else ()

    @property
    def symbols(self) -> dict[str, int]:
        """The symbols that the command line defines."""
        pairs = (text.rpartition(",") for text in self.values.get("onnx-define-symbol", ()))
        return {name: int(number) for name, _, number in pairs}

    @property
    def hardware(self) -> Hardware:
        """The generation of chips that is compiled for."""
        return HARDWARE.get(self.text("aic-hw-version"), HARDWARE["ai100"])

    @property
    def quantizes(self) -> bool:
        """Whether float math is turned into integers."""
        return any(self.has(name) for name in QUANTIZING)


@dataclass
class _Reader:
    """Takes the arguments one after the other."""

    profile: Profile
    tool: str
    values: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[Warned] = field(default_factory=list)
    open_option: Option | None = None
    """One that had no value yet, which a lenient reader takes from the next argument."""

    def read(self, argv: Sequence[str]) -> None:
        for argument, following in zip(argv, [*argv[1:], "-"], strict=True):
            bare = not argument.strip().startswith("-")
            if bare and self.open_option:
                self._store(self.open_option, argument)
                self.open_option = None
                continue
            self.open_option = None
            if bare or argument.strip("- ") == "":
                self.profile.refuse("arguments.stray", f"'{argument}' is neither -name nor -name=value.")
            self._read_option(argument, takes_next=not following.startswith("-"))

    def _read_option(self, argument: str, takes_next: bool) -> None:
        name, equals, value = argument.partition("=")
        if name != name.strip() or value != value.strip():
            self.profile.refuse("arguments.blanks", f"'{argument}' has blanks around its name or its value.")
        option = self._find(name.strip())
        value = value.strip()
        if not option.takes_value:
            self._store_flag(option, equals, value)
        elif equals:
            self._store(option, value)
        else:
            self._without_value(option, takes_next)

    def _find(self, dashed: str) -> Option:
        name = dashed[1:]
        if name.startswith("-"):
            name = name[1:]
            if name not in DOUBLE_DASHED:
                self.profile.refuse("arguments.double-dash", f"'{dashed}' has two dashes: write -{name}.")
        option = OPTIONS.get(name)
        if option is None or _later(option.introduced, self.profile.sdk):
            self.profile.refuse(
                "arguments.unknown",
                f"Invalid option {dashed}. Use -h, -help, or --help for list of options.",
            )
        assert option is not None
        self._check_tool(option)
        return option

    def _check_tool(self, option: Option) -> None:
        if self.tool == "qaic-exec":
            return
        if option.runs:
            self.profile.refuse("arguments.running", f"-{option.name} is for running, which {self.tool} does not do.")
        if option.removed and not _later(option.removed, self.profile.sdk):
            self.profile.refuse("arguments.removed", f"-{option.name} was removed in SDK {option.removed}.")
        elif option.name == "compile-only":
            self.warnings.append(COMPILE_ONLY)

    def _store_flag(self, option: Option, equals: str, value: str) -> None:
        if value.lower() in BOOLEAN_TEXTS:
            self.profile.refuse("arguments.boolean-text", f"-{option.name} is a flag: leave out '={value}'.")
            if value.lower() == "false":
                return
        elif equals and not (option.kind == SWITCH and value in ("0", "1")):
            self.profile.refuse("arguments.flag-value", f"-{option.name} is a flag, but has the value '{value}'.")
        self._keep(option, value if option.kind == SWITCH and equals else "1")

    def _without_value(self, option: Option, takes_next: bool) -> None:
        if takes_next:
            self.profile.refuse("arguments.separated", f"The value of -{option.name} stands apart: write -name=value.")
            self.open_option = option
        else:
            self.profile.refuse("arguments.no-value", f"-{option.name} requires a value.")

    def _store(self, option: Option, value: str) -> None:
        if value.lower() in BOOLEAN_TEXTS:
            self.profile.refuse("arguments.boolean-text", f"-{option.name} has the text '{value}' for a value.")
        if not value:
            self.profile.refuse("arguments.empty", f"The value of -{option.name} is empty.")
            return
        _check_value(option, value, self.profile)
        self._keep(option, value)

    def _keep(self, option: Option, value: str) -> None:
        name = option.alias_of or option.name
        if name in self.values and not option.repeatable:
            self.profile.refuse("arguments.duplicate", f"-{option.name} is given more than once.")
        self.values.setdefault(name, []).append(value)


def _later(release: str, sdk: str) -> bool:
    """Whether a release, if any is named, comes after the SDK."""
    return bool(release) and _numbers(release) > _numbers(sdk)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


def _check_value(option: Option, value: str, profile: Profile) -> None:
    members = value.split(",")
    if option.most and len(members) > option.most:
        profile.refuse("values.count", f"-{option.name} takes {option.most} members, but has {len(members)}.")
    if option.kind == CHOICE and value not in option.choices:
        known = ", ".join(option.choices)
        profile.refuse("values.choice", f"-{option.name} does not know '{value}'; it knows {known}.")
    if option.kind == SYMBOL:
        _check_symbol(value, profile)
    for member in members if option.kind == INTEGERS else [value]:
        _check_number(option, member, profile)


def _check_number(option: Option, value: str, profile: Profile) -> None:
    if option.kind in (INTEGER, INTEGERS) and not WHOLE_NUMBER.fullmatch(value):
        profile.refuse("values.integer", f"-{option.name} needs whole numbers, not '{value}'.")
    if option.kind == NUMBER and not REAL_NUMBER.fullmatch(value):
        profile.refuse("values.number", f"-{option.name} needs a number, not '{value}'.")
    if option.kind in (INTEGER, INTEGERS, NUMBER) and not option.low <= float(value) <= option.high:
        profile.refuse("values.range", f"-{option.name} lies in {option.low:g}..{option.high:g}, not at {value}.")


def _check_symbol(value: str, profile: Profile) -> None:
    name, comma, number = value.rpartition(",")
    if not (name and comma and WHOLE_NUMBER.fullmatch(number)) or "," in name:
        profile.refuse("symbols.form", f"-onnx-define-symbol needs name,number, not '{value}'.")
    if int(number) < 1:
        profile.refuse("symbols.positive", f"Symbol {name} must be positive, but is {number} (-onnx-define-symbol).")
    if int(number) > LARGEST_SIZE:
        profile.refuse("symbols.range", f"Symbol {name} is {number}, but no dimension is larger than {LARGEST_SIZE}.")


def parse(argv: Sequence[str], profile: Profile, tool: str) -> Arguments:
    """The arguments of a command line (without the tool's own name), or a refusal."""
    if tool not in TOOLS:
        raise ValueError(f"'{tool}' is not one of {', '.join(TOOLS)}.")
    reader = _Reader(profile, tool)
    reader.read(argv)
    given = {name: tuple(values) for name, values in reader.values.items()}
    action = next((ACTIONS[name] for name in given if name in ACTIONS), "compile")
    if action != "compile":
        return Arguments(tool, given, action)
    arguments = Arguments(tool, given)
    _check_target(arguments, profile)
    _check_required(arguments, profile)
    _check_combinations(arguments, profile)
    _check_mapping(arguments, profile)
    old = [OLD_VERSION] if arguments.text("aic-hw-version") == OLD_HARDWARE_VERSION else []
    return Arguments(tool, given, warnings=(*reader.warnings, *old))


def _check_target(arguments: Arguments, profile: Profile) -> None:
    version = arguments.text("aic-hw-version", "ai100")
    if version == OLD_HARDWARE_VERSION:
        if not profile.has_old_hardware_version:
            profile.refuse("target.old-version", "-aic-hw-version=2.0 was removed; use -aic-hw-version=ai100.")
    elif version not in HARDWARE:
        profile.refuse("target.version", f"-aic-hw-version does not know '{version}'; it knows {', '.join(HARDWARE)}.")


def _check_required(arguments: Arguments, profile: Profile) -> None:
    required = [
        ("required.model", "m"),
        ("required.hardware", "aic-hw"),
        ("required.version", "aic-hw-version"),
        ("required.binary-dir", "aic-binary-dir"),
    ]
    if arguments.tool == "qaic-exec":
        required.append(("required.compile-only", "compile-only"))
    if arguments.hardware.needs_fp16 and not arguments.quantizes:
        required.append(("required.fp16", "convert-to-fp16"))
    if arguments.text("m").endswith(".pb"):
        required.append(("required.output-nodes", "output-node-name"))
    for rule, name in required:
        if not arguments.has(name):
            profile.refuse(rule, f"-{name} is missing.")


def _check_combinations(arguments: Arguments, profile: Profile) -> None:
    for rule, one, other in EXCLUSIONS:
        if arguments.has(one) and arguments.has(other):
            profile.refuse(rule, f"-{one} and -{other} exclude one another.")
    for rule, name, needed in DEPENDENCIES:
        if arguments.has(name) and not arguments.has(needed):
            profile.refuse(rule, f"-{name} needs -{needed}.")
    if len(arguments.symbols) < len(arguments.values.get("onnx-define-symbol", ())):
        profile.refuse("symbols.twice", "-onnx-define-symbol defines a symbol twice.")


def _check_mapping(arguments: Arguments, profile: Profile) -> None:
    cores = arguments.integer("aic-num-cores", 1)
    if not 1 <= cores <= profile.device_cores:
        profile.refuse("mapping.cores", f"-aic-num-cores lies in 1..{profile.device_cores}, not at {cores}.")
    check_instances(arguments, cores, profile)
    for name in ("mos", "ols"):
        odd = [number for number in arguments.integers(name) if number not in SPLITS]
        if odd:
            profile.refuse("mapping.splits", f"-{name} is {odd[0]}, which is none of {', '.join(map(str, SPLITS))}.")
    splits, clusters = arguments.integers("mos"), arguments.integers("sdp-cluster-sizes")
    if len(splits) > 1 and len(splits) != len(clusters):
        profile.refuse("mapping.clusters", f"-mos has {len(splits)} numbers for {len(clusters)} clusters.")
    if not arguments.has("mdp-load-partition-config"):
        check_splits_fit(arguments, cores, profile)


def check_instances(arguments: Arguments, cores: int, profile: Profile) -> None:
    """Refuse instances that together want more cores than a device has."""
    instances = arguments.integer("aic-num-of-instances", 1)
    if instances * cores > profile.device_cores:
        profile.refuse("mapping.instances", f"{instances} x {cores} cores are more than {profile.device_cores}.")


def check_splits_fit(arguments: Arguments, cores: int, profile: Profile) -> None:
    """Refuse weights that are split over more cores than there are."""
    largest = max(arguments.integers("mos"), default=1)
    if largest > cores:
        profile.refuse("mapping.mos-beyond-cores", f"-mos is {largest}, but the program has {cores} cores.")


def check_files(arguments: Arguments, profile: Profile) -> None:
    """Refuse files that are not there, and a folder for the binary that something is in."""
    for name, values in arguments.values.items():
        if OPTIONS[name].kind == INPUT_FILE:
            for absent in (value for value in values if not Path(value).is_file()):
                profile.refuse("files.absent", f"-{name}: there is no file {absent}.")
    folder = Path(arguments.text("aic-binary-dir"))
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if arguments.has("aic-binary-dir") and not nearest.is_dir():
        profile.refuse("files.no-folder", f"-aic-binary-dir: {nearest} is a file, and no folder.")
    if arguments.has("aic-binary-dir") and folder.is_dir() and any(folder.iterdir()):
        profile.refuse("files.occupied", f"-aic-binary-dir: {folder} is not empty.")
