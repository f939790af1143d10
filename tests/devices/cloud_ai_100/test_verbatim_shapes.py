"""`compile(specializations=[…])`: the list is compiled as it stands, and what it says is what sessions go by."""

from __future__ import annotations

import json
from typing import Any

import pytest

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.errors import OptionError
from QEfficient.program import load_compiled
from QEfficient.specs import CompileSpec
from QEfficient.transformers.models.verbatim_shapes import verbatim_spec
from QEfficient.verification.tiny_models import prompts, tiny_model

FLAT = {"seq_len": 8, "ctx_len": 64}
SLOT = {"ctx_len": "64", "full_batch_size": "4"}


def tokens(wrapped: QEFFAutoModelForCausalLM) -> list[list[int]]:
    info = wrapped.generate(input_ids=prompts(wrapped.model), generation_len=6, ignore_eos=True)
    return [list(found) for found in info.generated_ids]


def entries(**asked: Any) -> list[dict[str, Any]]:
    """What would be written anyway."""
    shapes = CompileSpec(prefill_seq_len=8, ctx_len=64, **asked).specializations()
    return [{"name": shape.name, "symbols": {k: str(v) for k, v in shape.symbols.items()}} for shape in shapes]


@pytest.mark.parametrize("device", ["reference", "cloud_ai_100", "cpu"])
def test_the_tokens_of_the_usual_shapes(new_sdk: str, device: str) -> None:
    wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"), continuous_batching=True)
    wrapped.compile(device="reference", prefill_seq_len=8, ctx_len=64, full_batch_size=4)
    expected = tokens(wrapped)
    chunks = [{"batch_size": 1, "seq_len": length, **SLOT} for length in (8, 3)]
    together = {"name": "All", "symbols": {"batch_size": "4", "seq_len": "1", **SLOT}}
    folder = wrapped.compile(device=device, specializations=[*chunks, together])
    assert tokens(wrapped) == expected
    spec = load_compiled(folder).spec
    assert [shape.name for shape in spec.specializations()] == ["Prefill_0", "Prefill_1", "All"]
    assert (spec.prefill_seq_len, spec.ctx_len, spec.decode_rows, spec.slots) == (8, 64, 4, 4)


@pytest.mark.parametrize(
    "asked",
    [
        {"batch_size": 3},
        {"full_batch_size": 4, "kv_cache_batch_size": 6},
        {"full_batch_size": 4, "num_speculative_tokens": (0, 3)},
        {"comp_ctx_lengths_prefill": (32,), "comp_ctx_lengths_decode": (16, 64)},
        {"full_batch_size": 4, "kv_cache_batch_size": 6, "prefill_only": True},
    ],
    ids=str,
)
def test_the_geometry_of_a_list_is_that_which_would_have_given_it(asked: dict[str, Any]) -> None:
    usual, read = CompileSpec(prefill_seq_len=8, ctx_len=64, **asked), verbatim_spec(entries(**asked), {})
    for name in ("prefill_seq_len", "ctx_len", "slots", "num_speculative_tokens", "prefill_only", "prefill_rows",
                 "continuous_batching", "comp_ctx_lengths_prefill", "comp_ctx_lengths_decode"):  # fmt: skip
        assert getattr(read, name) == getattr(usual, name), name
    assert read.specializations() == usual.specializations()
    assert usual.prefill_only or read.decode_rows == usual.decode_rows


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "the list of specializations is empty"),
        ({"batch_size": 1}, "must be a list of mappings from symbols to sizes, not"),
        ([[1, 8]], "must be a list of mappings"),
        ([{**FLAT, "batch_size": "two"}], "'Prefill' has batch_size = 'two', which is no positive whole number"),
        ([{**FLAT, "batch_size": 0}], "batch_size = '0', which is no positive"),
        ([{**FLAT, "batch_size": 1.0}], "batch_size = '1.0', which is no positive"),
        ([FLAT], "'Prefill' has no size for 'batch_size'. Add it"),
        ([{**FLAT, "batch_size": 1}, {**FLAT, "batch_size": 2}], "batch_size = 1 and 2, but all shapes .* share its"),
        ([{**FLAT, "batch_size": 1}, {"batch_size": 1, "seq_len": 1, "ctx_len": 32}], "ctx_len = 32 and 64, but all"),
        ([{**FLAT, "batch_size": 1, "seq_len": 65}], "prefill_seq_len 65 is larger than ctx_len 64"),
        ([{"batch_size": 1, "seq_len": 1, **SLOT}], "full_batch_size 1 needs continuous batching: load the model"),
        (
            [{**FLAT, "batch_size": 1, "image": 9}],
            "has the symbol 'image', but the graph's are batch_size, ctx_len, se",
        ),
        ([{"name": "A", "symbols": FLAT, "more": 1}], "specialization 0 must have a name and a mapping of symbols"),
    ],
)
def test_lists_that_cannot_be_compiled(new_sdk: str, given: Any, said: str) -> None:
    wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"))
    with pytest.raises(OptionError, match=said):
        wrapped.compile(device="cloud_ai_100", specializations=given)


def test_a_window_has_the_model_s_size(new_sdk: str) -> None:
    wrapped = QEFFAutoModelForCausalLM(tiny_model("gemma2"))
    usual = wrapped.compile(device="cloud_ai_100", prefill_seq_len=8, ctx_len=64).parent
    listed = json.loads((usual / "specializations.json").read_text())["specializations"]
    (window,) = set(listed[0]["symbols"]) - {"batch_size", "seq_len", "ctx_len"}
    same = wrapped.compile(device="cloud_ai_100", specializations=listed).parent
    assert (same / "specializations.json").read_bytes() == (usual / "specializations.json").read_bytes()
    size = int(listed[1]["symbols"][window])
    listed[1]["symbols"][window] = str(size + 1)
    with pytest.raises(
        OptionError, match=rf"'Decode' has {window} = {size + 1}, but the model's window asks for {size}"
    ):
        wrapped.compile(device="cloud_ai_100", specializations=listed)
