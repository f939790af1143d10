"""The command line of the stand-in compiler: what it reads, how it words a refusal, and no way around it by a slip."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qaic_simulator.command_line.arguments import parse
from qaic_simulator.command_line.checking import check_command
from qaic_simulator.profiles import profile_of
from qaic_simulator.rules import Refusal
from qaic_simulator.side_files.specializations import INDISTINGUISHABLE, Specialization, check_against

OLD, NEW = profile_of("1.21"), profile_of("1.22")
COMPILER = "qaic-compile"
SMALLEST = ["-m=m.onnx", "-aic-hw", "-aic-hw-version=ai100", "-aic-binary-dir=qpc", "-convert-to-fp16"]


def refusal_of(*extra: str, sdk: str = "1.21", tool: str = COMPILER) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse([*SMALLEST, *extra], profile_of(sdk), tool)
    return caught.value


def test_values_are_read() -> None:
    extra = ["-aic-num-cores=16", "-mos=1,2", "-sdp-cluster-sizes=8,8", "-onnx-define-symbol=batch_size,4"]
    arguments = parse([*SMALLEST, *extra], OLD, COMPILER)
    assert arguments.integer("aic-num-cores", 1) == 16
    assert arguments.integers("mos") == (1, 2) and arguments.integers("ols") == ()
    assert arguments.symbols == {"batch_size": 4}
    assert arguments.text("m") == "m.onnx" and arguments.has("convert-to-fp16") and not arguments.quantizes


def test_unknown_option_is_refused_in_the_compiler_s_words() -> None:
    refusal = refusal_of("-retained-states")
    assert str(refusal) == "Invalid option -retained-states. Use -h, -help, or --help for list of options."
    assert refusal.exit_code == 1


def test_unknown_option_with_a_value_is_named_without_it() -> None:
    assert refusal_of("-cores=4").message.startswith("Invalid option -cores. ")


def test_what_1_21_notes_1_22_refuses() -> None:
    (noted,) = parse([*SMALLEST, "-compile-only"], OLD, COMPILER).warnings
    assert "-compile-only" in noted.message and "[simulator rule: warned.compile-only (" in noted.line
    assert refusal_of("-compile-only", sdk="1.22").rule.id == "arguments.removed"
    assert not parse([*SMALLEST, "-compile-only"], NEW, "qaic-exec").warnings


def test_old_hardware_version_is_warned_about() -> None:
    argv = [argument.replace("ai100", "2.0") for argument in SMALLEST]
    arguments = parse(argv, OLD, COMPILER)
    assert "ai100" in arguments.warnings[0].message and arguments.hardware.name == "ai100"


def test_json_faults_have_the_words_and_the_exit_code_of_the_real_tool(tmp_path: Path) -> None:
    entry = {"name": "Prefill", "symbols": {"batch_size": "1"}}
    for value, found in ((entry, "object"), ({"batch_size": 1}, "number")):
        path = tmp_path / "s.json"
        path.write_text(json.dumps({"specializations": [value]}))
        (tmp_path / "m.onnx").touch()
        argv = [f"-m={tmp_path}/m.onnx", *SMALLEST[1:], f"-network-specialization-config={path}"]
        refusal = check_command(argv, "1.21", COMPILER).refusal
        assert refusal and refusal.exit_code == 255
        assert str(refusal) == f"[json.exception.type_error.302] type must be string, but is {found}"


def entries(*symbols: dict[str, int]) -> list[Specialization]:
    return [Specialization("", given) for given in symbols]


PREFILL, DECODE = {"batch": 1, "seq": 128, "ctx": 4096}, {"batch": 1, "seq": 1, "ctx": 4096}


def test_entries_are_told_apart_by_the_shape_of_an_input() -> None:
    inputs: dict[str, list[str | int]] = {"input_ids": ["batch", "seq"], "past": ["batch", 8, "ctx", 64]}
    check_against(inputs, entries(PREFILL, DECODE), OLD)
    check_against(inputs, entries(PREFILL), OLD)
    check_against({}, entries(PREFILL), OLD)


@pytest.mark.parametrize(
    ("inputs", "symbols"),
    [
        pytest.param({"past": ["batch", 8, "ctx", 64]}, [PREFILL, DECODE], id="symbol on no input"),
        pytest.param({"input_ids": ["batch", 128]}, [PREFILL, DECODE], id="frozen dimension"),
        pytest.param({}, [PREFILL, DECODE], id="no input left"),
        pytest.param(
            {"input_ids": ["seq"], "window": ["ctx"]},
            [PREFILL, {**PREFILL, "ctx": 2048}, DECODE],
            id="two inputs together only",
        ),
    ],
)
def test_entries_that_no_input_tells_apart(inputs: dict[str, list[str | int]], symbols: list[dict[str, int]]) -> None:
    with pytest.raises(Refusal, match=INDISTINGUISHABLE):
        check_against(inputs, entries(*symbols), OLD)


# Slips: a good command, and one change that breaks a rule for certain.


@dataclass
class Command:
    sdk: str
    argv: list[str]
    specializations: list[dict[str, object]]
    items: list[dict[str, str]]
    devices: list[dict[str, object]]
    renamed: dict[str, str] = field(default_factory=dict)

    def verdict(self, folder: Path) -> tuple[str, str]:
        """What is said about it; JSON is YAML too."""
        (folder / "m.onnx").touch()
        contents = {
            "s.json": {self.renamed.get("specializations", "specializations"): self.specializations},
            "io.yaml": self.items,
            "mdp.json": {self.renamed.get("partitions", "partitions"): [{"name": "A", "devices": self.devices}]},
        }
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content))
        checked = check_command([a.replace("{dir}", str(folder)) for a in self.argv], self.sdk, COMPILER)
        return checked.verdict, checked.rule

    def symbols(self, entry: int) -> dict[str, object]:
        found = self.specializations[entry]
        if self.sdk == "1.22":
            assert isinstance(found["symbols"], dict)
            return found["symbols"]
        return found


def good_command(rng: random.Random) -> Command:
    cores, count = rng.choice([8, 16]), rng.choice([1, 2, 4, 8])
    optional = ["-mxfp6-matmul", "-multicast-weights", "-sub-functions", "-ols=2", "-compile-threads=4"]
    argv = [
        *("-m={dir}/m.onnx", "-aic-hw", "-aic-hw-version=ai100", "-aic-binary-dir={dir}/qpc", "-convert-to-fp16"),
        *("-retained-state", f"-aic-num-cores={cores}", f"-mos={rng.choice([1, 2, 4, 8])}"),
        *rng.sample(optional, rng.randint(0, len(optional))),
        *("-network-specialization-config={dir}/s.json", "-custom-IO-list-file={dir}/io.yaml"),
        "-mdp-load-partition-config={dir}/mdp.json",
    ]
    rng.shuffle(argv)
    sdk = rng.choice(["1.21", "1.22"])
    flat = [{"batch_size": "1", "seq_len": str(n), "ctx_len": "4096"} for n in rng.sample(range(1, 512), 3)]
    named = [{"name": f"Graph_{i}", "symbols": symbols} for i, symbols in enumerate(flat)]
    precision = rng.choice(["mxint8", "float16", "int8"])
    names = [f"past_{kind}.{layer}{end}" for kind in ("key", "value") for layer in (0, 1) for end in ("", STATE)]
    return Command(
        sdk,
        argv,
        list(named if sdk == "1.22" else flat),
        [{"IOName": name, "Precision": precision} for name in names],
        [{"deviceId": i, "numCores": cores} for i in range(count)],
    )


STATE = "_RetainedState"


def at(argv: list[str], rng: random.Random, with_value: bool | None = None) -> int:
    """Some argument; with a value, without one, or either."""
    return rng.choice([i for i, a in enumerate(argv) if with_value is None or ("=" in a) == with_value])


def drop_dash(command: Command, rng: random.Random) -> None:
    i = at(command.argv, rng)
    command.argv[i] = command.argv[i][1:]


def add_dash(command: Command, rng: random.Random) -> None:
    i = at(command.argv, rng)
    command.argv[i] = "-" + command.argv[i]


def blank(command: Command, rng: random.Random) -> None:
    i = at(command.argv, rng, with_value=True)
    command.argv[i] = command.argv[i].replace("=", rng.choice([" =", "= ", " = "]), 1)


def duplicate(command: Command, rng: random.Random) -> None:
    command.argv.insert(rng.randint(0, len(command.argv)), rng.choice(command.argv))


def split_value(command: Command, rng: random.Random) -> None:
    i = at(command.argv, rng, with_value=True)
    command.argv[i : i + 1] = command.argv[i].split("=", 1)


def drop_value(command: Command, rng: random.Random) -> None:
    i = at(command.argv, rng, with_value=True)
    command.argv[i] = command.argv[i].partition("=")[0] + rng.choice(["", "="])


def set_flag(command: Command, rng: random.Random) -> None:
    command.argv[at(command.argv, rng, with_value=False)] += rng.choice(["=true", "=True", "=1", "="])


def misspell(command: Command, rng: random.Random) -> None:
    i = rng.choice([i for i, a in enumerate(command.argv) if not a.startswith("-m=")])
    name, equals, value = command.argv[i].partition("=")
    command.argv[i] = rng.choice([name + "s", name.replace("-", "_").replace("_", "-", 1) + "_", name.upper()])
    command.argv[i] += equals + value


def leave_out(command: Command, rng: random.Random) -> None:
    needed = ("-m=", "-aic-hw", "-aic-binary-dir", "-convert-to-fp16")
    command.argv.remove(rng.choice([a for a in command.argv if a.startswith(needed)]))


def integer_for_string(command: Command, rng: random.Random) -> None:
    symbols = command.symbols(rng.randrange(3))
    name = rng.choice(list(symbols))
    symbols[name] = int(str(symbols[name]))


def rename_key(command: Command, rng: random.Random) -> None:
    place = rng.choice(["specializations", "partitions", "item", "device", "symbol"])
    holders = {
        "item": rng.choice(command.items),
        "device": rng.choice(command.devices),
        "symbol": command.symbols(rng.randrange(3)),
    }
    if place in holders:
        holder = holders[place]
        key = rng.choice(list(holder))
        holder[key + "_"] = holder.pop(key)
    else:
        command.renamed[place] = place.capitalize()


def repeat_entry(command: Command, rng: random.Random) -> None:
    command.specializations.append(rng.choice(command.specializations))


def other_form(command: Command, rng: random.Random) -> None:
    command.sdk = "1.22" if command.sdk == "1.21" else "1.21"


def one_side_of_a_pair(command: Command, rng: random.Random) -> None:
    rng.choice(command.items)["Precision"] = "float"


def string_for_integer(command: Command, rng: random.Random) -> None:
    device = rng.choice(command.devices)
    key = rng.choice(list(device))
    device[key] = str(device[key])


def physical_device(command: Command, rng: random.Random) -> None:
    rng.choice(command.devices)["deviceId"] = rng.randint(16, 63)


Slip = Callable[[Command, random.Random], None]
SLIPS: tuple[Slip, ...] = (
    *(drop_dash, add_dash, blank, duplicate, split_value, drop_value, set_flag, misspell, leave_out),
    *(integer_for_string, rename_key, repeat_entry, other_form, one_side_of_a_pair, string_for_integer),
    physical_device,
)


@pytest.mark.parametrize("seed", range(200))
def test_slips_are_refused(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    command = good_command(rng)
    assert command.verdict(tmp_path) == ("accept", "")
    slip = SLIPS[seed % len(SLIPS)]
    slip(command, rng)
    assert command.verdict(tmp_path)[0] == "refuse", (slip.__name__, command)
