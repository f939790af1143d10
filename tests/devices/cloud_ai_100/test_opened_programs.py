"""Contract and geometry of a program, from the description that its compiler wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from qaic_simulator.container import write_container
from qaic_simulator.network_descriptor import Binding, NetworkDescriptor, Shape, encode_descriptor
from QEfficient.devices.cloud_ai_100.opened import open_program
from QEfficient.errors import DeviceError, OptionError
from QEfficient.generation.script_options import SAMPLER, Wishes, check_wishes
from QEfficient.program import CompiledProgram
from QEfficient.specs import CompileSpec

KIND = {"input_ids": 7, "position_ids": 7, "batch_index": 7, "num_logits_to_keep": 7, "comp_ctx_lengths": 7}
STATES = {"past_key.0": (2, 4, 64, 16), "past_value.0": (2, 4, 64, 16)}
Sizes = dict[str, tuple[int, ...]]


def step(rows: int, length: int, **others: tuple[int, ...]) -> Sizes:
    """The inputs of one shape."""
    return {"input_ids": (rows, length), "position_ids": (rows, length), **others}


def program(
    folder: Path, entries: list[Sizes], states: Sizes, logits: str = "logits", following: str = "_RetainedState"
) -> Path:
    """A container with these shapes."""
    given = [{**entry, **states} for entry in entries]
    kept = {f"{name}{following}": dims for name, dims in states.items()}
    taken = [{logits: (entry["input_ids"][0], 1, 300), **kept} for entry in entries]
    shapes = tuple(
        tuple(Shape(KIND.get(name, 1), dims) for name, dims in (*inputs.items(), *outputs.items()))
        for inputs, outputs in zip(given, taken, strict=True)
    )
    bindings = [Binding(name, shape) for name, shape in zip((*given[0], *taken[0]), shapes[0], strict=True)]
    inputs, outputs = tuple(bindings[: len(given[0])]), tuple(bindings[len(given[0]) :])
    allowed = shapes if len(shapes) > 1 else ()
    description = encode_descriptor(NetworkDescriptor("n", inputs, outputs, 16, 1, allowed))
    images = {"network.elf": b"elf", "networkdesc.bin": description, "constantsdesc.bin": b"c"}
    folder.mkdir(exist_ok=True)
    (folder / "programqpc.bin").write_bytes(write_container({**images, "constants.bin": bytes(100)}))
    return folder


def steered(rows: int, length: int, kept: int, read: int) -> Sizes:
    return step(rows, length, num_logits_to_keep=(kept, 1), comp_ctx_lengths=(read,))


SLOTS = {"past_key.0": (6, 4, 64, 16), "past_value.0": (6, 4, 64, 16)}
SHAPES: dict[str, tuple[list[Sizes], Sizes, CompileSpec]] = {
    "rows": ([step(2, 8), step(2, 1)], STATES, CompileSpec(2, 8, 64)),
    "one token at a time": ([step(2, 1)], STATES, CompileSpec(2, 1, 64)),
    "slots": (
        [step(1, 8, batch_index=(1, 1)), step(4, 1, batch_index=(4, 1))],
        SLOTS,
        CompileSpec(1, 8, 64, 4, 6),
    ),
    "tokens ahead, and several lengths": (
        [steered(2, 8, 1, 32), steered(2, 8, 1, 48), steered(2, 4, 4, 64)],
        STATES,
        CompileSpec(
            2, 8, 64, num_speculative_tokens=(3,), comp_ctx_lengths_prefill=(32, 48), comp_ctx_lengths_decode=(64,)
        ),
    ),
    "prompts only": ([step(2, 8)], STATES, CompileSpec(2, 8, 64, prefill_only=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_geometry(tmp_path: Path, name: str) -> None:
    entries, states, wanted = SHAPES[name]
    compiled = open_program(program(tmp_path / "qpc", entries, states))
    assert compiled.spec == wanted
    graph = compiled.program.graphs["lm"].spec
    assert [t.name for t in graph.all_inputs] == [*entries[0], *states]
    assert [t.name for t in graph.all_outputs] == ["logits", *(f"{name}_RetainedState" for name in states)]
    assert [(s.kind, s.layer, s.window) for s in graph.states] == [("key", 0, None), ("value", 0, None)]
    assert (compiled.program.model.vocab_size, graph.inputs[0].dtype) == (300, "int64")


@pytest.mark.parametrize("around", ["", "qpc", "qpcs"])
def test_the_folder_or_the_one_around(tmp_path: Path, around: str) -> None:
    program(tmp_path / around if around else tmp_path, [step(2, 8), step(2, 1)], STATES)
    assert open_program(str(tmp_path)).spec == CompileSpec(2, 8, 64)


def test_windows_and_other_states(tmp_path: Path) -> None:
    states = {
        "past_key.0": (2, 4, 16, 16),
        "past_value.0_abc": (2, 4, 16, 16),
        "past_key.1": (2, 4, 64, 16),
        "conv_state.2": (2, 99, 4),
        "compressed_kv.3": (2, 1, 64, 8),
    }
    compiled = open_program(program(tmp_path, [step(2, 8), step(2, 1)], states))
    found = [(s.kind, s.layer, s.window) for s in compiled.program.graphs["lm"].spec.states]
    assert found == [
        ("key", 0, 16),
        ("value", 0, 16),
        ("key", 1, None),
        ("conv", 2, None),
        ("key", 3, None),
    ]
    assert compiled.spec.ctx_len == 64


@pytest.mark.parametrize("following", ["_InternalRetainedState", "_RetainedState"])
def test_names_of_states_inside_functions(tmp_path: Path, following: str) -> None:
    """Some compilers name what the function of a layer returns."""
    folder = program(tmp_path, [step(2, 8), step(2, 1)], STATES, following=following)
    states = open_program(folder).program.graphs["lm"].spec.states
    assert [s.output.name for s in states] == ["past_key.0_RetainedState", "past_value.0_RetainedState"]


def test_less_context(tmp_path: Path) -> None:
    folder = program(tmp_path, [step(2, 8), step(2, 1)], STATES)
    assert open_program(folder, ctx_len=40).spec.ctx_len == 40
    with pytest.raises(OptionError, match="ctx_len 65 was asked for, but the program was compiled for 64"):
        open_program(folder, ctx_len=65)


def test_a_program_that_says_nothing_of_its_context(tmp_path: Path) -> None:
    folder = program(tmp_path, [step(2, 8), step(2, 1)], {"recurrent_state.0": (2, 4, 8, 8)})
    with pytest.raises(OptionError, match="Give ctx_len"):
        open_program(folder)
    assert open_program(folder, ctx_len=512).spec.ctx_len == 512


def test_programs_for_something_else(tmp_path: Path) -> None:
    folder = program(tmp_path, [step(2, 8, batch_index=(2, 1)), step(4, 1, batch_index=(4, 1))], SLOTS)
    with pytest.raises(DeviceError, match="'Prefill' calls with input_ids .1, 8., but the program takes"):
        open_program(folder)
    folder = program(tmp_path, [step(2, 8)], STATES)
    raw = (folder / "programqpc.bin").read_bytes()
    (folder / "programqpc.bin").write_bytes(raw.replace(b"input_ids", b"input_idz"))
    with pytest.raises(DeviceError, match="no language model: it takes input_idz, position_ids"):
        open_program(folder)


# What a script says of it


def with_sampler(folder: Path, *without: str) -> CompiledProgram:
    buffers: Sizes = {n: (2, 300) for n in sorted(SAMPLER) if "buffer" in n}
    inputs: Sizes = {n: (2, 1) for n in sorted(SAMPLER) if n not in without and "buffer" not in n}
    return open_program(
        program(folder, [step(2, 8, **inputs), step(2, 1, **inputs)], {**STATES, **buffers}, "next_tokens")
    )


def test_a_sampler_on_the_card(tmp_path: Path) -> None:
    compiled = with_sampler(tmp_path)
    assert compiled.program.model.vocab_size == 300
    check_wishes(Wishes(sampler=True), compiled)
    with pytest.raises(ValueError, match="say so with include_sampler=True"):
        check_wishes(Wishes(), compiled)
    with pytest.raises(ValueError, match="no input 'token_bitmasks'"):
        check_wishes(Wishes(sampler=True, guided=True), compiled)
    with pytest.raises(ValueError, match="a part of a sampler only: it lacks top_ks"):
        check_wishes(Wishes(sampler=True), with_sampler(tmp_path, "top_ks"))


def test_lengths_that_attention_reads(tmp_path: Path) -> None:
    entries, states, _ = SHAPES["tokens ahead, and several lengths"]
    compiled = open_program(program(tmp_path, entries, states))
    check_wishes(Wishes(is_tlm=True, comp_ctx_lengths_prefill=(48,), comp_ctx_lengths_decode=(64,)), compiled)
    with pytest.raises(ValueError, match=r"comp_ctx_lengths_prefill \[40\] .* compiled for \[32, 48, 64\]"):
        check_wishes(Wishes(comp_ctx_lengths_prefill=(40,)), compiled)
