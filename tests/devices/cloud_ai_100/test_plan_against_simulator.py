"""What a plan says before anything is made, against what the stand-ins of compiler and card say of what was made.

Models differ in kind, not in size: the vocabulary is widened so that weights outweigh the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import pytest
import torch
import transformers

from qaic_simulator.command_line.arguments import Arguments
from qaic_simulator.container import read_container
from qaic_simulator.graph import memory
from qaic_simulator.graph.binding import Program, bind_program
from qaic_simulator.graph.file import with_small_data
from qaic_simulator.profiles import profile_of
from qaic_simulator.rules import Refusal
from qaic_simulator.runtime import cards
from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.cloud.plan import planned_size
from QEfficient.devices.cloud_ai_100.graph.position_tables import MOST_NUMBERS
from QEfficient.devices.cloud_ai_100.graph.prepared import for_half
from QEfficient.devices.cloud_ai_100.graph.table_lookups import PREFIX
from QEfficient.devices.cloud_ai_100.plan import memory as plan_memory
from QEfficient.devices.cloud_ai_100.plan.estimate import (
    GIB,
    Card,
    Estimate,
    ModelSize,
    Precision,
    Setup,
    Workload,
    estimate,
)
from QEfficient.errors import QEfficientError
from QEfficient.generation.cloud_infer import QAICInferenceSession
from QEfficient.program import ExportedProgram, load_exported
from QEfficient.specs import CompileSpec, LatentSpec
from QEfficient.transformers.observed_sizes import Asked
from QEfficient.transformers.observed_tables import FEW
from QEfficient.transformers.sizes import read_model
from QEfficient.verification.tiny_models import tiny_config

VOCABULARY = 16_384
MEGABYTE = 2**20


@dataclass(frozen=True)
class Geometry:
    """One way to compile a model."""

    ctx_len: int
    chunk: int
    batch_size: int = 1
    full_batch_size: int | None = None
    mxfp6: bool = False
    mxint8: bool = False
    devices: int = 1

    @property
    def workload(self) -> Workload:
        return Workload(self.ctx_len, self.chunk, self.batch_size, self.full_batch_size, self.chunk)

    @property
    def spec(self) -> CompileSpec:
        return CompileSpec(self.batch_size, self.chunk, self.ctx_len, self.full_batch_size)

    @property
    def setup(self) -> Setup:
        return Setup(Precision(self.mxfp6, self.mxint8), self.devices)

    @property
    def options(self) -> dict[str, Any]:
        """Those of `compile`."""
        sizes = {"ctx_len": self.ctx_len, "prefill_seq_len": self.chunk, "batch_size": self.batch_size}
        device = {"num_devices": self.devices, "mxfp6_matmul": self.mxfp6, "mxint8_kv_cache": self.mxint8}
        return {**sizes, "full_batch_size": self.full_batch_size, **device}


ALONE, ROWS = Geometry(2048, 32), Geometry(1024, 16, 3, mxfp6=True, devices=2)
LONG = Geometry(8192, 32, mxfp6=True, devices=2)
SLOTS = Geometry(4096, 32, full_batch_size=4, mxfp6=True)
PACKED = Geometry(4096, 32, full_batch_size=4, mxfp6=True, mxint8=True, devices=4)


@dataclass(frozen=True)
class Case:
    """A kind of model, and how it is compiled."""

    model_type: str
    geometry: Geometry
    changes: tuple[tuple[str, Any], ...] = ()
    latent: LatentSpec | None = None

    @property
    def name(self) -> str:
        absorbed = [] if self.latent is None else ["fused" if self.latent.fused else "online"]
        return "-".join([self.model_type, *(name for name, _ in self.changes), *absorbed])

    def config(self) -> Any:
        config = tiny_config(self.model_type)
        for name, value in {"vocab_size": VOCABULARY, **dict(self.changes)}.items():
            setattr(config, name, value)
        return config


WIDE_HEADS = (("head_dim", 32),)
ONE_HEAD = (("num_key_value_heads", 1), ("vocab_size", 2048))
"""Tables of rotary angles, of two kinds of layers, are a good part of it then."""
FUSED, ONLINE = LatentSpec(absorption=True), LatentSpec(absorption=True, fused=False)
CASES = [
    Case("llama", PACKED, WIDE_HEADS),
    Case("llama", ALONE, (("tie_word_embeddings", True),)),
    Case("gpt2", SLOTS),
    Case("mixtral", SLOTS),
    Case("qwen3_moe", PACKED, WIDE_HEADS),
    Case("deepseek_v3", ROWS),
    Case("deepseek_v3", replace(SLOTS, ctx_len=2048), (), FUSED),
    Case("gemma2", SLOTS),
    Case("gpt_oss", ALONE),
    Case("qwen3_next", SLOTS),
    Case("falcon", ROWS),
    Case("mpt", ALONE),
    Case("mamba", ROWS),
    Case("phi3", ROWS),
    Case("olmo2", SLOTS),
    Case("gemma3_text", LONG, ONE_HEAD),
]
QUICK = ("llama-head_dim", "mixtral", "mamba2", "gemma3_text-num_key_value_heads-vocab_size")


@dataclass
class World:
    """A model, what a plan knows of it, and its exports."""

    model: Any
    size: ModelSize
    exported_bytes: int
    folder: Path
    latent: LatentSpec | None = None

    def wrapped(self, geometry: Geometry) -> QEFFAutoModelForCausalLM:
        latent = self.latent
        asked = latent and {"cache_compressed": True, "absorption": True, "online": not latent.fused}
        config = {"mla_absorption": asked} if asked else None
        return QEFFAutoModelForCausalLM(
            self.model, continuous_batching=geometry.full_batch_size is not None, qaic_config=config
        )

    def program(self, geometry: Geometry) -> ExportedProgram:
        return load_exported(Path(self.wrapped(geometry).export()).parent)

    def estimate(self, geometry: Geometry) -> Estimate:
        return estimate(self.size, geometry.workload, geometry.setup)


def world_of(case: Case, folder: Path) -> World:
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(case.config()).eval()
    model.save_pretrained(folder / "model")
    sizes = read_model(str(folder / "model"), {}, Asked(case.latent))
    return World(model, planned_size(sizes), 4 * sizes.weights.graph, folder, case.latent)


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, new_sdk: str) -> World:
    return world_of(request.param, tmp_path)


def marked(case: Case) -> Any:
    return pytest.param(case, case, id=case.name, marks=[] if case.name in QUICK else [pytest.mark.slow])


@pytest.mark.parametrize(("world", "case"), map(marked, CASES), indirect=["world"])
def test_a_plan_is_within_ten_percent_of_what_is_made(world: World, case: Case, tmp_path: Path) -> None:
    """Weights, cache and all of it as the compiler counts them; the DRAM that the card gives; the size of the file."""
    geometry = case.geometry
    found = world.estimate(geometry)
    wrapped = world.wrapped(geometry)
    path = Path(wrapped.export())
    program = Path(wrapped.compile(device="cloud_ai_100", compile_dir=tmp_path / "made", **geometry.options))
    images = read_container((program / "programqpc.bin").read_bytes())
    settings = json.loads(images["sim.json"])
    graph = Counted.of(world, geometry)
    assert found.weights + found.tables == pytest.approx(graph.weights / geometry.devices, rel=0.1)
    assert found.tables == 2 * graph.tables / geometry.devices
    assert found.cache == pytest.approx(graph.states / geometry.devices, rel=0.1, abs=world.size.state.replays * 1e6)
    assert found.needed == pytest.approx(settings["bytes_per_device"], rel=0.1)
    assert taken_by(program, geometry.devices) == pytest.approx(ceil(found.needed / MEGABYTE), rel=0.1, abs=1)
    exported = world.exported_bytes
    assert path.with_suffix(".onnx.data").stat().st_size == pytest.approx(exported, rel=0.1)
    tables = 4 * world.size.table_numbers(geometry.ctx_len)
    assert len(images["constants.bin"]) == pytest.approx(exported + tables, rel=0.1)


def taken_by(program: Path, devices: int) -> int:
    """MB of each device that a loaded program holds, as `qaic-util` has them."""
    before = [use.free_dram_mb for use in cards.look()]
    session = QAICInferenceSession(program, list(range(devices)), activate=False)
    taken = [had - use.free_dram_mb for had, use in zip(before, cards.look(), strict=True)]
    del session
    assert len(set(taken[:devices])) == 1 and not any(taken[devices:])
    return taken[0]


@dataclass
class Counted:
    """A graph as the stand-in compiler gets it, with the tables that are put into it."""

    programs: list[Program]
    precisions: dict[str, str]
    geometry: Geometry

    @classmethod
    def of(cls, world: World, geometry: Geometry) -> Counted:
        exported = world.program(geometry)
        graph = exported.graphs["lm"].spec
        entries = geometry.spec.specializations(graph.windows)
        with TemporaryDirectory(dir=world.folder) as scratch:
            path = for_half(exported.onnx_path(), Path(scratch), entries)
            model = with_small_data(onnx.load(path, load_external_data=False), path.parent)
        kept = [state for state in graph.states if not state.tensor.dtype.startswith("int")]
        precisions = {}
        for state in kept:
            packs = geometry.mxint8 and state.kind in ("key", "value")
            precisions.update(dict.fromkeys((state.input.name, state.output.name), "mxint8" if packs else "float16"))
        return cls([bind_program(model, e.symbols, profile_of("1.22")) for e in entries], precisions, geometry)

    @property
    def weights(self) -> float:
        return sum(memory.weight_bytes(self.programs[0], self.geometry.mxfp6).values())

    @property
    def tables(self) -> int:
        """Numbers in tables of positions."""
        constants = self.programs[0].bound.model.graph.initializer
        rows = (
            c.dims for c in constants if c.name.startswith(PREFIX) and c.dims and c.dims[0] == self.geometry.ctx_len
        )
        return sum(map(prod, rows))

    @property
    def states(self) -> float:
        program = self.programs[0]
        names = [name for name in self.precisions if name.endswith("_RetainedState")]
        return sum(
            prod(program.shape(name)) * memory.STATE_BYTES.get(self.precisions[name], memory.HALF_BYTES)
            for name in names
        )

    def fits_window(self, window: float, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Whether no operator reads more."""
        with monkeypatch.context() as patch:
            patch.setattr(memory, "WINDOW", window)
            try:
                for program in self.programs:
                    memory.check_operators(program, self.geometry.mxfp6, self.geometry.devices)
            except Refusal:
                return False
        return True

    def is_refused(self) -> bool:
        """By the checks of memory alone."""
        flags = {"retained-state": ("1",)} | ({"mxfp6-matmul": ("1",)} if self.geometry.mxfp6 else {})
        shares = [memory.Share("", self.geometry.devices)]
        try:
            memory.check_memory(self.programs, Arguments("", flags), self.precisions, shares)
            for program in self.programs:
                memory.check_operators(program, self.geometry.mxfp6, self.geometry.devices)
        except Refusal:
            return True
        return False


LIMITS = [
    Case("llama", ALONE, WIDE_HEADS),
    Case("mixtral", ALONE),
    Case("gemma3_text", LONG, ONE_HEAD),
]
SHAPES = [
    Geometry(512, 128, full_batch_size=2, devices=2),
    Geometry(262_144, 1024, mxfp6=True),
    Geometry(65_536, 32, full_batch_size=16, mxfp6=True, devices=4),
    Geometry(16_384, 512, 8, devices=8),
    Geometry(1_048_576, 4, full_batch_size=64, devices=16),
]


@pytest.mark.parametrize(
    ("world", "case"),
    [pytest.param(c, c, id=c.name, marks=[pytest.mark.slow] if c.name not in QUICK else []) for c in LIMITS],
    indirect=["world"],
)
def test_what_a_plan_says_fits_is_not_refused(world: World, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the smallest card and with the smallest window of a core with which the plan says that it fits."""
    for geometry in SHAPES:
        counted = Counted.of(world, geometry)
        assert counted.tables == world.size.table_numbers(geometry.ctx_len)
        for limits in on_the_edge(world, geometry, monkeypatch):
            assert limits.fits, geometry
            assert not counted.is_refused(), f"{geometry}: {limits.needed:,} of {limits.usable:,}"


MANY = [
    Geometry(16_384, 128, full_batch_size=50),
    Geometry(16_384, 128, 4),
    Geometry(4096, 2048, full_batch_size=3),
    Geometry(16_384, 1, full_batch_size=50, devices=4),
]


@pytest.mark.parametrize(
    ("world", "case"),
    [
        pytest.param(c, c, id=c.name, marks=[] if c.name in QUICK else [pytest.mark.slow])
        for c in (
            Case("gemma3_text", LONG, ONE_HEAD),
            Case("gpt_neo", ALONE),
            Case("mamba2", ALONE),
            Case("deepseek_v3", ALONE, (), ONLINE),
        )
    ],
    indirect=["world"],
)
def test_the_largest_operator_is_that_of_the_graph(world: World, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether attention is one node or many, or there are recurrent layers alone. Prompts have one row where there are
    slots."""
    for geometry in MANY:
        counted = Counted.of(world, geometry)
        planned = plan_memory.operand_bytes(world.size, geometry.workload, geometry.setup)
        assert counted.fits_window(planned, monkeypatch), geometry
        assert not counted.fits_window(planned / 1.06, monkeypatch), geometry


def test_a_run_without_weights_knows_how_large_a_table_can_be() -> None:
    assert FEW == MOST_NUMBERS


def on_the_edge(world: World, geometry: Geometry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Estimate]:
    """Estimates for cards that have exactly what the plan wants: of memory, and of addresses for one operator."""
    window = ceil(plan_memory.operand_bytes(world.size, geometry.workload, geometry.setup))
    wanted = world.estimate(geometry).wanted
    for module in (plan_memory, memory):
        monkeypatch.setattr(module, "WINDOW", window)
    monkeypatch.setattr(memory, "CAPACITY", {"ultra": wanted / GIB})
    card = Card(4, 16, wanted + 2 * GIB, 1e12)
    yield estimate(world.size, geometry.workload, Setup(geometry.setup.precision, geometry.devices, card))


def test_limits_that_the_plan_does_not_reach_are_refused(
    tmp_path: Path, new_sdk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edges above are near the compiler's: it refuses with a fifth of memory less, and with a third of a window."""
    world = world_of(Case("llama", ALONE), tmp_path)
    geometry = SHAPES[1]
    counted = Counted.of(world, geometry)
    (edge,) = on_the_edge(world, geometry, monkeypatch)
    for module, name, value in (
        (memory, "CAPACITY", {"ultra": 0.8 * edge.wanted / GIB}),
        (memory, "WINDOW", plan_memory.WINDOW // 3),
    ):
        assert not counted.is_refused()
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert counted.is_refused()


def test_mxint8_that_the_plan_refuses_is_refused(tmp_path: Path, new_sdk: str) -> None:
    world = world_of(Case("phi3", ALONE), tmp_path)
    geometry = Geometry(64, 8, mxint8=True)
    assert world.estimate(geometry).refusals
    wrapped = world.wrapped(geometry)
    with pytest.raises(QEfficientError, match="blocks of 32"):
        wrapped.compile(device="cloud_ai_100", compile_dir=tmp_path / "made", **geometry.options)
