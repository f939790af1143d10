"""Attention in blocks: each body against the operator's eager form, which computes all at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from QEfficient.operators.attention_variants import Blocks, Parts, Variant
from QEfficient.operators.cached_attention import AttentionRule, Retained, cached_attention
from QEfficient.operators.functions import CLOUD_DOMAIN, DOMAIN, OPSET, build_function, has_body

HEADS, KV_HEADS, SIZE, VALUE_SIZE, SLOTS = 6, 3, 8, 5, 13
BLOCKS = {
    "keys": Blocks(keys=4),
    "queries": Blocks(queries=3),
    "heads": Blocks(heads_of_block=4),
    "rows": Blocks(batch=2),
    "all": Blocks(batch=3, queries=2, keys=5, heads_of_block=2),
    "more keys than slots": Blocks(keys=20),
}
RULES = {
    "plain": AttentionRule(0.4),
    "window": AttentionRule(0.4, window=4),
    "chunk": AttentionRule(0.4, chunk=5),
    "cap": AttentionRule(0.4, softcap=2.0),
    "window and cap": AttentionRule(0.4, window=6, softcap=1.5),
}


@dataclass(frozen=True)
class Case:
    """One call, and how the state stands before it."""

    rows: int = 2
    steps: int = 4
    slots: bool = False
    sinks: bool = False
    reads: int | None = None
    seed: int = 0

    def inputs(self) -> dict[str, torch.Tensor]:
        torch.manual_seed(self.seed)
        held = self.rows + 2 if self.slots else self.rows
        state = {
            "past_key": torch.randn(held, KV_HEADS, SLOTS, SIZE),
            "past_value": torch.randn(held, KV_HEADS, SLOTS, VALUE_SIZE),
        }
        most = (self.reads or SLOTS) - self.steps
        starts = torch.arange(self.rows) * 3 % (most + 1)
        positions = starts[:, None] + torch.arange(self.steps)
        positions[-1, 1:] = -1  # padding
        for row in range(self.rows):  # nothing was ever written behind the tokens
            for past in state.values():
                past[row + 2 if self.slots else row, :, int(positions[row].max()) + 1 :] = torch.nan
        new = {
            "q": torch.randn(self.rows, HEADS, self.steps, SIZE) * 2,
            "k": torch.randn(self.rows, KV_HEADS, self.steps, SIZE),
            "v": torch.randn(self.rows, KV_HEADS, self.steps, VALUE_SIZE),
        }
        given = {**new, **state, "position_ids": positions}
        given |= {"batch_index": torch.arange(self.rows)[:, None] + 2} if self.slots else {}
        given |= {"sinks": torch.randn(HEADS)} if self.sinks else {}
        return given | ({"reads": torch.zeros(self.reads, dtype=torch.int64)} if self.reads else {})

    def variant(self, rule: AttentionRule) -> Variant:
        flags = {"windowed": rule.window > 0, "chunked": rule.chunk > 0, "capped": rule.softcap > 0}
        own = {"slots": self.slots, "sinks": self.sinks, "bounded": self.reads is not None}
        return Variant(**flags, **own, parts=rule.blocks.parts(HEADS, KV_HEADS))


def expected(given: dict[str, torch.Tensor], rule: AttentionRule) -> list[np.ndarray]:
    optional = (given.get("batch_index"), given.get("reads"))
    state = Retained(given["past_key"], given["past_value"], given["position_ids"], *optional)
    outputs = cached_attention(given["q"], given["k"], given["v"], state, rule, given.get("sinks"))
    return [output.numpy() for output in outputs]


def body_of(variant: Variant, given: dict[str, torch.Tensor], rule: AttentionRule) -> onnx.ModelProto:
    """A graph of one node, and the functions that it needs."""
    attributes = {"scale": rule.scale, "softcap": rule.softcap, "window": rule.window, "chunk": rule.chunk}
    names = ["output", "new_key", "new_value"]
    node = helper.make_node(variant.name, list(given), names, domain=DOMAIN, **attributes)
    kinds = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16, torch.int64: TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(n, kinds[t.dtype], t.shape) for n, t in given.items()]
    outputs = [helper.make_tensor_value_info(n, kinds[given["q"].dtype], None) for n in names]
    functions, pending = {}, [(DOMAIN, variant.name)]
    while pending:
        key = pending.pop()
        functions[key] = build_function(*key)
        pending += [(n.domain, n.op_type) for n in functions[key].node if has_body(n.domain, n.op_type)]
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", OPSET), (CLOUD_DOMAIN, 1), (DOMAIN, 1))]
    graph = helper.make_graph([node], "graph", inputs, outputs)
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions.values()), ir_version=10)


def computed(model: onnx.ModelProto, given: dict[str, torch.Tensor]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
    return results


def check(case: Case, rule: AttentionRule, tolerance: float = 1e-5) -> None:
    given = case.inputs()
    wanted = expected(given, rule)
    found = computed(body_of(case.variant(rule), given, rule), given)
    seen = given["position_ids"].numpy() >= 0
    output, whole = (np.moveaxis(x[0], 1, 2)[seen] for x in (found, wanted))
    np.testing.assert_allclose(output, whole, atol=tolerance, rtol=0)
    assert np.isfinite(found[0]).all()
    for new, state in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_array_equal(new, state)


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
def test_every_rule(rule: AttentionRule, blocks: Blocks, sinks: bool) -> None:
    check(Case(sinks=sinks), replace(rule, blocks=blocks))


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize(
    "case",
    [
        Case(slots=True),
        Case(slots=True, rows=1, steps=7),
        Case(rows=4, steps=1),
        Case(reads=9),
        Case(slots=True, reads=6, sinks=True),
        Case(rows=1, steps=1, reads=3),
    ],
    ids=["slots", "one row", "decoding", "read in part", "slots read in part", "few"],
)
def test_every_shape(case: Case, blocks: Blocks) -> None:
    check(case, replace(RULES["window"], blocks=blocks))


def test_keys_of_one_size_are_parted_by_head_groups() -> None:
    assert Blocks(heads_of_block=1).parts(6, 3) == Parts(heads=3)
    assert Blocks(heads_of_block=4).parts(6, 3) == Parts(heads=2)
    assert Blocks(heads_of_block=8).parts(6, 3) == Parts()


@pytest.mark.parametrize(
    "variant",
    [
        Variant(),
        Variant(slots=True, windowed=True, bounded=True, parts=Parts(keys=12)),
        Variant(rolling=True, sinks=True),
        Variant(chunked=True, capped=True, parts=Parts(2, 3, 4, 5)),
    ],
)
def test_names_say_everything(variant: Variant) -> None:
    assert Variant.named(variant.name) == variant
    assert has_body(DOMAIN, variant.name)


@pytest.mark.parametrize(
    "name", ["CachedAttentionBlocked", "CachedAttentionBlockedKV1", "CachedAttentionKV2", "Cached"]
)
def test_other_names_are_nobodys(name: str) -> None:
    assert not has_body(DOMAIN, name)


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
def test_large_scores_in_float16(sinks: bool) -> None:
    """Scores of hundreds, values of thousands: a sum of weighted values that is not normalized would overflow."""
    case, rule = Case(steps=1, sinks=sinks), AttentionRule(1.0, window=5, blocks=Blocks(keys=4))
    given: dict[str, Any] = {name: t.half() if t.is_floating_point() else t for name, t in case.inputs().items()}
    given |= {"q": given["q"] * 30, "v": given["v"] * 8000, "past_value": given["past_value"] * 8000}
    wide = {name: t.float() if t.is_floating_point() else t for name, t in given.items()}
    found, wanted = computed(body_of(case.variant(rule), given, rule), given)[0], expected(wide, rule)[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max(), rtol=0)
