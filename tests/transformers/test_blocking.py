"""Blocks of attention as they are asked for, and as they are chosen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.errors import OptionError, UnsupportedModelError
from QEfficient.operators.attention_variants import Blocks
from QEfficient.specs import BlockingSpec, CompileSpec, ExportSpec
from QEfficient.transformers.models import blocking
from QEfficient.transformers.models.blocking import AttentionSizes, chosen
from QEfficient.transformers.models.card_options import read_qaic_config
from QEfficient.transformers.retained_state import blocks_of
from QEfficient.verification.tiny_models import tiny_model

ON = {"enable_blocking": True}
LONG = AttentionSizes(heads=32, kv_heads=8, head_size=128, queries=128, keys=4096, devices=4)


def asked(**config: Any) -> BlockingSpec | None:
    return read_qaic_config({**ON, **config}).blocking


def test_what_is_asked_for() -> None:
    assert asked(blocking_mode="qkv", num_kv_blocks=4) == BlockingSpec("qkv", num_kv_blocks=4)
    assert asked() == BlockingSpec("hqkv")
    assert asked(num_batch_blocks=None, skip_kv=True) == BlockingSpec("hqkv")
    assert read_qaic_config({"blocking_mode": "kv", "num_kv_blocks": 4}).blocking is None
    spec = BlockingSpec("bhqkv", num_kv_blocks=4, num_q_blocks=3, head_block_size=2, num_batch_blocks=5)
    assert blocks_of(spec) == Blocks(batch=5, queries=3, keys=4, heads_of_block=2)
    assert blocks_of(BlockingSpec("q", num_q_blocks=3)) == Blocks(queries=3)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"blocking_mode": "kvq"}, "Did you mean 'q?kv'"),
        ({"blocking_mode": ""}, "leave enable_blocking out"),
        ({"blocking_mode": "kv", "num_q_blocks": 2}, "num_q_blocks goes with a blocking_mode that has 'q'"),
        ({"num_batch_blocks": 2}, "has 'b', but it is 'hqkv'"),
        ({"num_kv_blocks": 0}, "num_kv_blocks must be a positive whole number"),
        ({"num_kv_block": 2}, "Did you mean 'num_kv_blocks'"),
    ],
)
def test_what_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        asked(**config)


def test_sizes_stand_before_an_export() -> None:
    with pytest.raises(OptionError, match=r"call compile\(\) rather"):
        ExportSpec(blocking=BlockingSpec("kv"))
    assert ExportSpec(blocking=BlockingSpec("")) == ExportSpec()


def test_a_model_without_such_attention() -> None:
    wrapped = QEFFAutoModelForCausalLM(tiny_model("mpt"), qaic_config={**ON, "num_kv_blocks": 2})
    with pytest.raises(UnsupportedModelError, match="leave enable_blocking out"):
        wrapped.export()


def test_nothing_is_cut_where_everything_fits() -> None:
    small = AttentionSizes(heads=4, kv_heads=2, head_size=16, queries=32, keys=128)
    assert chosen(BlockingSpec("hqkv"), small).mode == ""


def test_what_fits_exactly_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LONG.footprint((1, 1), LONG.heads)
    monkeypatch.setattr(blocking, "BUDGET", whole)
    assert chosen(BlockingSpec("kv"), LONG).mode == ""
    monkeypatch.setattr(blocking, "BUDGET", LONG.footprint((1, 6), LONG.heads))
    assert chosen(BlockingSpec("kv"), LONG) == BlockingSpec("kv", num_kv_blocks=6)
    monkeypatch.setattr(blocking, "BUDGET", LONG.footprint((1, 6), LONG.heads) - 1)
    assert chosen(BlockingSpec("kv"), LONG) == BlockingSpec("kv", num_kv_blocks=8)


@pytest.mark.parametrize("mode", ["hqkv", "qkv", "kv", "hkv"])
@pytest.mark.parametrize("devices", [1, 4])
def test_the_fewest_blocks_that_fit(mode: str, devices: int) -> None:
    sizes = replace(LONG, devices=devices, queries=512, keys=8192)
    found = chosen(BlockingSpec(mode), sizes)
    heads = sizes.heads if found.head_block_size is None else max(found.head_block_size, 4)
    pair = (found.num_q_blocks or 1, found.num_kv_blocks or 1)
    assert sizes.footprint(pair, heads) <= blocking.BUDGET
    assert set(found.axes) <= set(BlockingSpec(mode).axes)
    assert ("h" in found.axes) == ("h" in mode) and found.head_block_size in (None, devices)
    fewer = [(q, kv) for q in range(1, 9) for kv in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48) if q * kv < math.prod(pair)]
    tried = [p for p in fewer if p[0] == 1 or "q" in mode]
    assert tried and all(sizes.footprint(p, heads) > blocking.BUDGET for p in tried if p[0] in (1, 2, 3, 4, 6, 8))


def test_of_equally_many_blocks_the_most_even() -> None:
    sizes = AttentionSizes(heads=8, kv_heads=8, head_size=64, queries=4096, keys=4096)
    found = chosen(BlockingSpec("qkv"), sizes)
    same = [(1, 128), (2, 64), (4, 32), (8, 16), (16, 8), (32, 4)]
    total = (found.num_q_blocks or 1) * (found.num_kv_blocks or 1)
    fitting = [p for p in same if math.prod(p) == total and sizes.footprint(p, sizes.heads) <= blocking.BUDGET]
    ratios = {p: abs(math.log(p[0] / p[1])) for p in [*fitting, (found.num_q_blocks or 1, found.num_kv_blocks or 1)]}
    assert ratios[found.num_q_blocks or 1, found.num_kv_blocks or 1] == min(ratios.values())


def test_where_nothing_fits() -> None:
    with pytest.raises(OptionError, match="none fits into 6,291,456 bytes"):
        chosen(BlockingSpec("q"), LONG)


def seen_specs(wrapped: QEFFAutoModelForCausalLM, monkeypatch: pytest.MonkeyPatch, store: Path) -> list[ExportSpec]:
    """What is asked of its exports from now on: nobody made them before."""
    monkeypatch.setenv("QEFF_HOME", str(store))
    seen: list[ExportSpec] = []
    prepare = wrapped._prepare
    monkeypatch.setattr(wrapped, "_prepare", lambda spec, check: seen.append(spec) or prepare(spec, check))
    return seen


def test_compile_chooses_by_its_geometry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"), qaic_config={**ON, "blocking_mode": "kv"})
    seen = seen_specs(wrapped, monkeypatch, tmp_path)
    sizes = AttentionSizes.of(wrapped.config, CompileSpec(prefill_seq_len=8, ctx_len=64), devices=1)
    monkeypatch.setattr(blocking, "BUDGET", sizes.footprint((1, 3), sizes.heads))
    wrapped.compile(device="reference", prefill_seq_len=8, ctx_len=64)
    assert [spec.blocking for spec in seen] == [BlockingSpec("kv", num_kv_blocks=3)]
    wrapped.compile(device="reference", prefill_seq_len=8, ctx_len=16)
    assert [spec.blocking for spec in seen[1:]] == [None]


GEOMETRY: dict[str, Any] = {"device": "reference", "prefill_seq_len": 8, "ctx_len": 16}
KV: dict[str, Any] = {**ON, "blocking_mode": "kv", "num_kv_blocks": 2}


def test_compile_can_be_told_so_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is the program of a model that was opened with it, and exported anew where another one was there."""
    model = tiny_model("llama")
    wrapped = QEFFAutoModelForCausalLM(model)
    seen = seen_specs(wrapped, monkeypatch, tmp_path)
    wrapped.compile(**GEOMETRY)
    plain = wrapped.export_hash
    wrapped.compile(**GEOMETRY, qaic_config=KV)
    assert [spec.blocking for spec in seen] == [None, BlockingSpec("kv", num_kv_blocks=2)]
    opened = QEFFAutoModelForCausalLM(model, qaic_config=KV)
    opened.compile(**GEOMETRY, qaic_config=KV)
    assert opened.export_hash == wrapped.export_hash != plain
    wrapped.compile(**GEOMETRY)
    assert wrapped.export_hash == opened.export_hash  # as the last export


def test_other_things_that_compile_can_be_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each for one program, and the next one is without."""
    wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"))
    seen = seen_specs(wrapped, monkeypatch, tmp_path)
    wrapped.compile(**GEOMETRY, num_devices=4, qaic_config={"replicate_kv_heads": True})
    wrapped.compile(**GEOMETRY, qaic_config={"ccl_enabled": True})
    assert wrapped.compiled is not None and wrapped.compiled.spec.comp_ctx_lengths_decode == (1024,)
    wrapped.compile(**GEOMETRY)
    assert wrapped.compiled.spec.ctx_len == 16
    assert [(spec.kv_head_copies, spec.compute_context) for spec in seen] == [(2, False), (1, True), (1, False)]


@pytest.mark.parametrize(
    ("opened", "told", "words"),
    [
        (KV, {**KV, "num_kv_blocks": 3}, "the model was opened with blocking=BlockingSpec.*num_kv_blocks=2"),
        (
            {"ccl_enabled": True},
            {"ccl_enabled": False},
            "compute_context=False, but .* opened with compute_context=True",
        ),
        ({}, {"include_sampler": True}, "must be known when the model is opened. Give it to from_pretrained"),
        ({}, {"speculative_model_type": "target"}, "must be known when the model is opened"),
        (
            {"include_sampler": True},
            {"include_sampler": True, "max_top_k_ids": 4},
            "max_top_k_ids=4, .*max_top_k_ids=512",
        ),
        ({}, {"enable_blockin": True}, "Did you mean 'enable_blocking'"),
    ],
)
def test_what_comes_too_late_at_compile(
    monkeypatch: pytest.MonkeyPatch, opened: dict[str, Any], told: dict[str, Any], words: str
) -> None:
    wrapped = QEFFAutoModelForCausalLM(tiny_model("llama"), qaic_config=opened)
    monkeypatch.setattr(wrapped, "_prepare", None)  # nothing is exported
    with pytest.raises(OptionError, match=words):
        wrapped.compile(qaic_config=told)


def test_an_exported_graph_is_as_it_is() -> None:
    with pytest.raises(OptionError, match="shapes the graph, but onnx_path names that already"):
        QEFFAutoModelForCausalLM(tiny_model("llama")).compile("some.onnx", qaic_config=ON)
