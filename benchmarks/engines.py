"""Who is measured: a worker, the file that it opens, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from benchmarks.cases import LONGEST, MOST_SEQUENCES, MOST_TOKENS, Case


@dataclass(frozen=True)
class Artifact:
    """What a program of `benchmarks.conversion` makes of the checkpoint."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    own: bool = False
    """Whether it is made in this environment, by our code; else in the peers'."""
    source: Artifact | None = None
    """Made first, its folder the last argument."""


@dataclass(frozen=True)
class Engine:
    name: str
    worker: str
    artifact: Artifact | None
    """None: it opens the checkpoint itself."""
    bits: int
    options: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False
    """Whether it runs in this environment."""
    way: str = ""
    """One of several in which a worker can run the same."""
    shares: str = ""
    """The engine in whose process it runs, so that both are measured on one and the same memory."""
    most_context: int = LONGEST
    most_sequences: int = MOST_SEQUENCES
    least_context: int = 0

    @property
    def process(self) -> str:
        return self.shares or self.name

    def runs(self, case: Case) -> bool:
        fits = case.context <= self.most_context and case.sequences <= self.most_sequences
        return fits and case.context >= self.least_context


def _ours(name: str, weights: str, bits: int, way: str = "") -> Engine:
    artifact = Artifact(f"own-{weights}", "own_model", (weights, *GEOMETRY), own=True)
    return Engine(name, "own", artifact, bits, own=True, way=way, shares=f"ours-{weights}")


GEOMETRY = (str(MOST_SEQUENCES), str(MOST_TOKENS), str(LONGEST))


F16 = Artifact("gguf-f16", "gguf_file")
Q8_0 = Artifact("gguf-q8_0", "gguf_file", ("q8_0",), source=F16)
Q4_0 = Artifact("gguf-q4_0", "gguf_file", ("q4_0",), source=F16)
OV4_HEAD8 = Artifact("ov-int4-head8", "openvino_model", ("int4-head8",))
# Prompts in one piece are fastest for it; its own default of 256 tokens costs it a seventh of its speed
PIECES = {"tokens_a_step": 8192}

ENGINES = (
    _ours("ours-int4", "int4", 4),
    _ours("ours-int4-engine", "int4", 4, "engine"),
    _ours("ours-int8", "int8", 8),
    _ours("ours-int8-engine", "int8", 8, "engine"),
    Engine("llama.cpp-q4_0", "llama_cpp", Q4_0, 4),
    Engine("llama.cpp-q8_0", "llama_cpp", Q8_0, 8),
    Engine("llama.cpp-f16", "llama_cpp", F16, 16),
    Engine("openvino-genai-int4", "openvino_genai", Artifact("ov-int4", "openvino_model", ("int4",)), 4, PIECES),
    Engine("openvino-genai-int4-head8", "openvino_genai", OV4_HEAD8, 4, PIECES),
    Engine("openvino-genai-int8", "openvino_genai", Artifact("ov-int8", "openvino_model", ("int8",)), 8, PIECES),
    Engine("onnxruntime-genai-int4", "onnxruntime_genai", Artifact("genai-int4", "genai_model"), 4),
    # Minutes a sample beyond this, and nobody doubts the outcome
    Engine("transformers-bf16", "transformers_eager", None, 16, {"dtype": "bfloat16"}, True, 2048, 16),
    Engine("transformers-f32", "transformers_eager", None, 32, {"dtype": "float32"}, True, 2048, 16),
)
# On request only: what our device computes without compressed weights; and llama.cpp with its cache in 8 bits, as ours
# has it, which takes several times as long over long prompts
OTHERS = (
    Engine("llama.cpp-q4_0-kv8", "llama_cpp", Q4_0, 4, {"cache": "q8_0"}, least_context=2048),
    _ours("ours-bf16", "bf16", 16),
    _ours("ours-bf16-engine", "bf16", 16, "engine"),
    _ours("ours-f32", "f32", 32),
)
QUICK = ("ours-int4", "ours-int8", "llama.cpp-q4_0", "llama.cpp-q8_0", "openvino-genai-int4", "openvino-genai-int8")


def named_engines(patterns: list[str]) -> tuple[Engine, ...]:
    """The engines whose names match one of these patterns (`ours-*`), in the order in which they run."""
    chosen = [e for e in (*ENGINES, *OTHERS) if any(fnmatch(e.name, pattern) for pattern in patterns)]
    useless = [pattern for pattern in patterns if not any(fnmatch(e.name, pattern) for e in chosen)]
    if useless:
        known = ", ".join(engine.name for engine in (*ENGINES, *OTHERS))
        raise ValueError(f"no engine is called {', '.join(useless)}; there are {known}")
    # What nobody asked for by name stays out: `ours-*` means those of the full run
    rare = {e.name for e in OTHERS} - set(patterns)
    return tuple(engine for engine in chosen if engine.name not in rare)
