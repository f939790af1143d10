"""Changes of a command and of its side files, each of which breaks a rule."""

from __future__ import annotations

from random import Random
from typing import Any

from mutants import Mutant, Mutation

from qaic_simulator.command_line.options import OPTIONS

SPECIALIZATIONS, CUSTOM_IO, PARTITIONS, NODES = "specializations.json", "custom_io.yaml", "mdp.json", "nodes.yaml"
NEEDED = ("-m=", "-aic-hw", "-aic-hw-version=", "-aic-binary-dir=", "-convert-to-fp16")


def repeat(mutant: Mutant, chance: Random) -> None:
    mutant.argv.insert(chance.randrange(len(mutant.argv)), chance.choice(mutant.argv))


def separate(mutant: Mutant, chance: Random) -> None:
    place = mutant.place(chance, lambda argument: "=" in argument)
    mutant.argv[place : place + 1] = mutant.argv[place].split("=", 1)


def misspell(mutant: Mutant, chance: Random) -> None:
    place = chance.randrange(len(mutant.argv))
    name, equals, value = mutant.argv[place][1:].partition("=")
    at = chance.randrange(len(name))
    wrong = chance.choice([name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name.upper(), name + "s"])
    assert wrong not in OPTIONS
    mutant.argv[place] = f"-{wrong}{equals}{value}"


def underscore(mutant: Mutant, chance: Random) -> None:
    place = mutant.place(chance, lambda argument: "-" in argument[1:].partition("=")[0])
    name, equals, value = mutant.argv[place].partition("=")
    mutant.argv[place] = f"-{name[1:].replace('-', '_')}{equals}{value}"


def leave_out(mutant: Mutant, chance: Random) -> None:
    needed = chance.choice(NEEDED)
    mutant.argv = [a for a in mutant.argv if not (a.startswith(needed) if needed[-1] == "=" else a == needed)]


def change_hardware(mutant: Mutant, chance: Random) -> None:
    wrong = chance.choice(["ai300", "AI100", "1.0", "ai-100", "ai100,ai200"])
    mutant.replace("-aic-hw-version", f"-aic-hw-version={wrong}")


def give_flag_a_value(mutant: Mutant, chance: Random) -> None:
    place = mutant.place(chance, lambda argument: "=" not in argument)
    mutant.argv[place] += chance.choice(["=true", "=True", "=1", "=False", "=yes"])


def double_dash(mutant: Mutant, chance: Random) -> None:
    mutant.argv[chance.randrange(len(mutant.argv))] = f"-{chance.choice(mutant.argv)}"


def add_blanks(mutant: Mutant, chance: Random) -> None:
    place = mutant.place(chance, lambda argument: "=" in argument)
    mutant.argv[place] = mutant.argv[place].replace("=", chance.choice([" =", "= ", " = "]), 1)


def empty_value(mutant: Mutant, chance: Random) -> None:
    place = mutant.place(chance, lambda argument: "=" in argument)
    mutant.argv[place] = mutant.argv[place].partition("=")[0] + chance.choice(["=", ""])


def change_cores(mutant: Mutant, chance: Random) -> None:
    """Out of range, of another type, or not what the partitions say."""
    mutant.replace("-aic-num-cores", f"-aic-num-cores={chance.choice([0, 17, -1, 'all', '16.0', 8, 2])}")


def stray(mutant: Mutant, chance: Random) -> None:
    mutant.argv.insert(chance.randrange(len(mutant.argv)), chance.choice(["retained-state", "-", "model.onnx", ""]))


def contradict(mutant: Mutant, chance: Random) -> None:
    """Options that exclude others, or lack what they need."""
    if chance.random() < 0.2:
        mutant.replace("-aic-enable-depth-first", "-aic-depth-first-mem=16")
        return
    ways = (
        ["-host-preproc", "-aic-preproc"],
        ["-onnx-define-symbol=batch_size,1"],
        ["-dump-profile={dir}/profile.yaml"],
        ["-convert-to-quantize", "-load-profile={dir}/custom_io.yaml"],
    )
    mutant.argv += chance.choice(ways)


def exceed(mutant: Mutant, chance: Random) -> None:
    """Values beyond the range of their option."""
    ways = ("mos=3", "ols=5", "mos=32", "stats-level=101", "allocator-dealloc-delay=11", "size-split-granularity=511")
    ways += ("vtcm-working-set-limit-ratio=2", "compile-threads=0", "mdts-mos=17", "aic-pmu-events=1,2,3,4,5,6,7,8,9")
    mutant.argv.append(f"-{chance.choice(ways)}")


def run(mutant: Mutant, chance: Random) -> None:
    mutant.argv.append(chance.choice(["-num-iter=3", "-device-id=0", "-write-output-dir={dir}/out"]))


def lose_file(mutant: Mutant, chance: Random) -> None:
    place = mutant.place(chance, lambda argument: argument.partition("=")[2].endswith((".json", ".yaml", ".onnx")))
    mutant.argv[place] += ".bak"


def occupy(mutant: Mutant, chance: Random) -> None:
    mutant.occupied = True


# The specialization file.


def write_numbers(mutant: Mutant, chance: Random) -> None:
    def change(entries: list[dict[str, Any]]) -> None:
        entry = chance.choice(entries)
        symbol = chance.choice(list(entry))
        entry[symbol] = chance.choice([int(entry[symbol]), float(entry[symbol]), True, None, [entry[symbol]]])

    mutant.edit_symbols(change)


def write_other_texts(mutant: Mutant, chance: Random) -> None:
    def change(entries: list[dict[str, Any]]) -> None:
        entry = chance.choice(entries)
        entry[chance.choice(list(entry))] = chance.choice(["0", "-1", "1.0", "one", "", " 8", "0x8"])

    mutant.edit_symbols(change)


def unbind(mutant: Mutant, chance: Random) -> None:
    symbols = sorted({d.dim_param for v in mutant.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param})
    mutant.edit_symbols(lambda entries: chance.choice(entries).pop(chance.choice(symbols)) and None)


def bind_unknown(mutant: Mutant, chance: Random) -> None:
    symbol = chance.choice(["seqlen", "batch", "sequence_length", "context_len", "Batch_size"])
    mutant.edit_symbols(lambda entries: chance.choice(entries).update({symbol: "8"}))


def equal_entries(mutant: Mutant, chance: Random) -> None:
    """Either all symbols are equal, or all that a living input has."""

    def change(entries: list[dict[str, Any]]) -> None:
        one, other = chance.sample(entries, 2)
        other.clear()
        other.update(one)
        if chance.random() < 0.5:
            other["comp_ctx_lengths"] = "32"

    mutant.edit_symbols(change)


def other_form(mutant: Mutant, chance: Random) -> None:
    """The named form under 1.21, the flat one under 1.22."""

    def change(content: Any) -> None:
        entries = mutant.symbols(content)
        named = [{"name": f"Graph_{number}", "symbols": entry} for number, entry in enumerate(entries)]
        content["specializations"] = named if mutant.sdk == "1.21" else entries

    mutant.edit_json(SPECIALIZATIONS, change)


def spoil_entries(mutant: Mutant, chance: Random) -> None:
    def change(content: Any) -> None:
        way = chance.choice(["none", "key", "more", "many", "object"])
        if way == "key":
            content["specialisations"] = content.pop("specializations")
        elif way == "more":
            content["version"] = "1"
        elif way == "object":
            content["specializations"] = content["specializations"][0]
        else:
            content["specializations"] = [] if way == "none" else content["specializations"] * 9

    mutant.edit_json(SPECIALIZATIONS, change)


def cut_json(mutant: Mutant, chance: Random) -> None:
    name = chance.choice([SPECIALIZATIONS, PARTITIONS])
    mutant.files[name] = mutant.files[name].rstrip()[: -chance.randint(1, 20)]


# The precisions of inputs and outputs.


def _entry(mutant: Mutant, chance: Random) -> tuple[str, str]:
    """The line of some name in the file, and the name."""
    line = chance.choice([line for line in mutant.files[CUSTOM_IO].splitlines() if "IOName" in line])
    return line, line.partition(": ")[2]


def change_precision(mutant: Mutant, chance: Random) -> None:
    """Of one side, to what nobody knows, or to what the other side is not."""
    line, name = _entry(mutant, chance)
    wrong = chance.choice(["float32", "fp16", "Float16", "mxint8", "int8", "float", "bfloat16"])
    old = f"{line}\n   Precision: float16\n"
    assert old in mutant.files[CUSTOM_IO]
    mutant.files[CUSTOM_IO] = mutant.files[CUSTOM_IO].replace(old, f"{line}\n   Precision: {wrong}\n")


def forget_one_side(mutant: Mutant, chance: Random) -> None:
    line, name = _entry(mutant, chance)
    mutant.files[CUSTOM_IO] = mutant.files[CUSTOM_IO].replace(f"{line}\n   Precision: float16\n", "")


def misname_state(mutant: Mutant, chance: Random) -> None:
    line, name = _entry(mutant, chance)
    mutant.swap_line(CUSTOM_IO, line, line.replace(name, chance.choice(["past_key.99", name.upper(), f"{name}.0"])))


def list_more(mutant: Mutant, chance: Random) -> None:
    """A name twice, an unknown one, or a precision that the logits cannot have."""
    name = chance.choice([_entry(mutant, chance)[1], "logit", "Logits"])
    wrong = chance.choice([(name, "float16"), ("logits", "mxint8"), ("logits", "bfloat16"), ("logits", "float64")])
    mutant.files[CUSTOM_IO] += f" - IOName: {wrong[0]}\n   Precision: {wrong[1]}\n"


def narrow_blocks(mutant: Mutant, chance: Random) -> None:
    """States whose heads are no multiple of 32 wide, in mxint8."""
    mutant.files[CUSTOM_IO] = mutant.files[CUSTOM_IO].replace("float16", "mxint8")


def spoil_custom_io(mutant: Mutant, chance: Random) -> None:
    text = mutant.files[CUSTOM_IO]
    ways = ("{}", text.replace("IOName", "Name", 1), text.replace("Precision", "precision", 1), text + " - [\n")
    ways += (text.replace("Precision: float16", "Precision:", 1), text + "   Shape: 1x2\n")
    mutant.files[CUSTOM_IO] = chance.choice(ways)


# The partitions.


def share_devices(mutant: Mutant, chance: Random) -> None:
    def change(content: Any) -> None:
        first, second = content["partitions"]
        taken = chance.choice(first["devices"])["deviceId"]
        chance.choice(second["devices"])["deviceId"] = taken

    mutant.edit_json(PARTITIONS, change)


def renumber_devices(mutant: Mutant, chance: Random) -> None:
    def change(content: Any) -> None:
        added = chance.choice([1, 4, 17])
        for partition in content["partitions"]:
            for device in partition["devices"]:
                device["deviceId"] += added
        content["connections"][0]["devices"] = [number + added for number in content["connections"][0]["devices"]]

    mutant.edit_json(PARTITIONS, change)


def change_device(mutant: Mutant, chance: Random) -> None:
    def change(content: Any) -> None:
        device = chance.choice(chance.choice(content["partitions"])["devices"])
        device.update(
            chance.choice([{"numCores": 0}, {"numCores": 17}, {"numCores": "16"}, {"deviceId": "0"}, {"a": 1}])
        )

    mutant.edit_json(PARTITIONS, change)


def change_partition(mutant: Mutant, chance: Random) -> None:
    def change(content: Any) -> None:
        partition = chance.choice(content["partitions"])
        way = chance.choice(["nodeList", "name", "nodes", "third", "devices"])
        if way == "third":
            partition["devices"].append({"deviceId": 4, "numCores": 16})
        elif way == "name":
            content["partitions"][0]["name"] = content["partitions"][1]["name"]
        elif way == "nodes":
            partition["nodes"] = partition.pop("nodeList")
        else:
            partition[way] = []

    mutant.edit_json(PARTITIONS, change)


def change_connection(mutant: Mutant, chance: Random) -> None:
    wrong: list[dict[str, Any]] = [
        {"type": "host"},
        {"devices": [0, 9]},
        {"devices": [0]},
        {"devices": [0, 0, 1]},
        {"a": 1},
    ]
    mutant.edit_json(PARTITIONS, lambda content: content["connections"][0].update(chance.choice(wrong)))


def reorder_nodes(mutant: Mutant, chance: Random) -> None:
    def change(content: Any) -> None:
        lists = [partition["nodeList"] for partition in content["partitions"]]
        way = chance.choice(["reverse", "swap", "both"])
        if way == "reverse":
            chance.choice(lists).reverse()
        elif way == "swap":
            lists[0][:], lists[1][:] = list(lists[1]), list(lists[0])
        else:
            lists[1].append(chance.choice(lists[0]))

    mutant.edit_json(PARTITIONS, change)


def misname_node(mutant: Mutant, chance: Random) -> None:
    def change(content: Any) -> None:
        partition, more = chance.choice(content["partitions"]), chance.choice(["_", "/0", "x"])
        partition["nodeList"] = [name + more for name in partition["nodeList"]]

    mutant.edit_json(PARTITIONS, change)


# Nodes with a precision of their own.


def spoil_nodes(mutant: Mutant, chance: Random) -> None:
    text = mutant.files[NODES]
    first = text.splitlines()[1].strip("- ")
    ways = (text + "BF16NodeInstanceNames: [a]\n", text.replace("FP32Node", "Fp32Node"), text + "  - no_such_node\n")
    ways += (text + "  - input_ids\n", f"FP32NodeInstanceNames: {first}\n", f"- {first}\n", text + "  - [a]\n")
    ways += (text + f"FP16NodeInstanceNames: [{first}]\n", "FP32NodeInstanceNames: []\n", text + ": [\n")
    mutant.files[NODES] = chance.choice(ways)


COMMAND_MUTATIONS: tuple[Mutation, ...] = (
    repeat,
    separate,
    misspell,
    underscore,
    leave_out,
    change_hardware,
    give_flag_a_value,
    double_dash,
    add_blanks,
    empty_value,
    change_cores,
    stray,
    contradict,
    exceed,
    run,
    lose_file,
    occupy,
    write_numbers,
    write_other_texts,
    unbind,
    bind_unknown,
    equal_entries,
    other_form,
    spoil_entries,
    cut_json,
    change_precision,
    forget_one_side,
    misname_state,
    list_more,
    narrow_blocks,
    spoil_custom_io,
    share_devices,
    renumber_devices,
    change_device,
    change_partition,
    change_connection,
    reorder_nodes,
    misname_node,
    spoil_nodes,
)
