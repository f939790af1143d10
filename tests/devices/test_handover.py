"""Which two programs can be one session, seen from their records alone: nothing is compiled or opened."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from QEfficient.devices.handover import EXPORT_RECORD, check_alike
from QEfficient.errors import OptionError
from QEfficient.program import (
    MARKED_PRESENCE,
    NEXT_TOKENS,
    CompiledProgram,
    ExportedProgram,
    Graph,
    GraphSpec,
    ModelFacts,
    StateSpec,
    TensorSpec,
)
from QEfficient.specs import CompileSpec

SPEC = CompileSpec(2, 8, 64)
FACTS = ModelFacts("Model", "Architecture", "kind", "causal-lm", 100)
LOGITS = TensorSpec("logits", "float32", ("batch_size", 1, 100))
GUESSING = TensorSpec("logits", "float32", ("batch_size", 1, 3, 100))
FILE = {"name": "model.safetensors", "size": 9, "modified": 1, "sample": "abc"}
WHOLE = {"kind": "files", "files": [FILE]}


def state(name: str = "past_key.0", dtype: str = "float32", width: int = 32, **more: Any) -> StateSpec:
    shape = ("batch_size", 2, "ctx_len", width)
    return StateSpec(TensorSpec(name, dtype, shape), **{"kind": "key", "layer": 0, **more})


STATES = (state(), state("past_key.1", layer=1))
TOKENS = TensorSpec(NEXT_TOKENS, "int64", ("batch_size", 1, 1))
MARKS = state(MARKED_PRESENCE, "bool", kind="marks", layer=2)


def program(
    states: Sequence[StateSpec] = STATES,
    spec: CompileSpec = SPEC,
    facts: ModelFacts = FACTS,
    logits: TensorSpec = LOGITS,
    device: str = "cloud_ai_100",
    folder: Path = Path("/nowhere"),
    fingerprint: str = "one",
    command: Sequence[str] = (),
) -> CompiledProgram:
    graphs = {"lm": Graph("lm.onnx", GraphSpec((), (logits,), tuple(states)))}
    exported = ExportedProgram(folder, graphs, facts, "float32", fingerprint)
    return CompiledProgram(folder, device, spec, exported, "", {"command": list(command)})


def packed(**options: Any) -> CompileSpec:
    return replace(SPEC, device_options=options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": replace(SPEC, batch_size=3)}, "compiled for slots 3, that for decoding for 2"),
        ({"spec": replace(SPEC, ctx_len=32)}, "compiled for ctx_len 32, that for decoding for 64"),
        ({"logits": GUESSING}, "compiled for guesses 2, that for decoding for 0"),
        ({"logits": TOKENS, "states": (*STATES, MARKS)}, "chooses tokens itself, that for decoding ends in logits"),
        ({"states": STATES[:1]}, "keeps the states of 1 layers, that for decoding of 2"),
        (
            {"states": (state(dtype="float16"), STATES[1])},
            r"\(key, float16 .*, not past_key.0 \(key, float32 ",
        ),
        ({"states": (state(width=64), STATES[1])}, r"ctx_len, 64\]\), not .*ctx_len, 32\]\)"),
        ({"states": (state("past_key.0_x"), STATES[1])}, r"past_key.0_x .*, not past_key.0 "),
        ({"states": (state(window=16), STATES[1])}, "rolls over 16 positions"),
        ({"states": (*STATES, state("past_value.1", layer=1))}, "past_value.1 .*, not nothing"),
        (
            {"fingerprint": "two", "facts": replace(FACTS, name="Other")},
            "another model .* name is Other, not Model",
        ),
        ({"fingerprint": "two", "facts": replace(FACTS, model_type="x")}, "its model_type is x, not kind"),
        ({"fingerprint": "two", "facts": replace(FACTS, vocab_size=99)}, "its vocab_size is 99, not 100"),
        ({"device": "cpu"}, "for device 'cpu' hand nothing over to 'cloud_ai_100'"),
        ({"spec": packed(mxint8_kv_cache=True)}, "keeps past_key.0 in mxint8, that for decoding as plain numbers"),
    ],
)
def test_programs_of_which_one_cannot_go_on(changes: dict[str, Any], message: str) -> None:
    check_alike(program(), program())
    with pytest.raises(OptionError, match=f"{message}.* Compile both "):
        check_alike(program(), program(**changes))
    with pytest.raises(OptionError):
        check_alike(program(**changes), program())


def test_what_does_not_matter() -> None:
    """Each phase has shapes, cores and weights in a precision of its own; a container says nothing of its model."""
    other = CompileSpec(2, 1, 64, device_options={"num_cores": 4, "mxfp6_matmul": True}, prefill_only=False)
    check_alike(program(spec=other, fingerprint="two"), program())
    check_alike(program(), program(facts=replace(FACTS, name="/a/folder", vocab_size=0), fingerprint=""))
    both = packed(mxint8_kv_cache=True)
    check_alike(program(spec=both), program(spec=both))


@pytest.mark.parametrize(
    ("weights", "same"),
    [
        ({"kind": "files", "files": [{**FILE, "modified": 2}]}, True),
        ({"kind": "files", "files": [{"name": FILE["name"], "blob": "abc"}]}, True),
        ({"kind": "files", "files": [{**FILE, "sample": "abd"}]}, False),
        ({"kind": "files", "files": [FILE, {**FILE, "name": "more.safetensors"}]}, False),
        ({"kind": "object", "sha256": "abc"}, True),
        (None, True),
    ],
)
def test_weights_are_compared_as_far_as_they_are_known(tmp_path: Path, weights: Any, same: bool) -> None:
    for name, content in (("decode", WHOLE), ("prefill", weights)):
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / EXPORT_RECORD).write_text(json.dumps({"weights": content}))
    pair = program(folder=tmp_path / "decode"), program(folder=tmp_path / "prefill", fingerprint="two")
    if same:
        check_alike(*pair)
        return
    with pytest.raises(OptionError, match="in .*/prefill has other weights than that for decoding in .*/decode"):
        check_alike(*pair)


def test_models_that_were_objects(tmp_path: Path) -> None:
    for name in ("decode", "prefill"):
        (tmp_path / name).mkdir()
        (tmp_path / name / EXPORT_RECORD).write_text(json.dumps({"weights": {"kind": "object", "sha256": name}}))
    with pytest.raises(OptionError, match="has other weights"):
        check_alike(program(folder=tmp_path / "decode"), program(folder=tmp_path / "prefill", fingerprint="two"))


@pytest.mark.parametrize("precision", ["mxint8", "int8"])
def test_precisions_in_a_user_s_own_file(tmp_path: Path, precision: str) -> None:
    """The file that the compiler was told of says more than the options, wherever it lies now."""
    words = f" - IOName: past_key.0\n   Precision: {precision}\n\n - IOName: past_key.1\n   Precision: float16\n"
    (tmp_path / "mine.yaml").write_text(words)
    for command in (f"-custom-IO-list-file={tmp_path}/mine.yaml", "-custom-IO-list-file=/elsewhere/mine.yaml"):
        own = program(folder=tmp_path, command=["compiler", command], spec=packed(mxint8_kv_cache=True))
        message = f"keeps past_key.0 in {precision}, that for decoding as plain numbers"
        with pytest.raises(OptionError, match=message):
            check_alike(program(), own)
        check_alike(own, own)
