"""Ours: the bare loop over a session, with blocks dealt out once; or, in the way `engine`, through the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workers.protocol import Runner, serve

BYTES = {"f32": 4, "bf16": 2, "f16": 2, "u8": 1 + 8 / 64}
"""Of an element of keys and values; 8 bits with a scale and a zero point for each head of 64."""


class Own(Runner):
    def __init__(self) -> None:
        self._way: _Loop | _Engine | None = None
        self._chosen: type[_Loop | _Engine] = _Loop

    def load_library(self) -> None:
        import numpy  # noqa: F401
        import openvino  # noqa: F401

        import QEfficient.devices.cpu.packed
        import QEfficient.generation.engine
        import QEfficient.program  # noqa: F401

    def open(self, folder: Path, threads: int, room: Mapping[str, int], options: Mapping[str, Any]) -> dict[str, Any]:
        import QEfficient
        from QEfficient.devices import get_device
        from QEfficient.program import load_compiled

        compiled = load_compiled(folder / "compiled")
        self._session = get_device("cpu").load(compiled)
        chosen = compiled.report["options"]
        return {
            "version": getattr(QEfficient, "__version__", "?"),
            "vocabulary": compiled.program.model.vocab_size,
            "kv_element_bytes": BYTES[chosen["kv_cache"]],
            "settings": chosen,
        }

    def choose(self, way: str) -> None:
        self._chosen = {"": _Loop, "engine": _Engine}[way]

    def begin(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        self._way = self._chosen(self._session, prompts, tokens)

    def prefill(self) -> None:
        assert self._way is not None
        self._way.prefill()

    def step(self) -> None:
        assert self._way is not None
        self._way.step()

    def end(self) -> list[list[int]]:
        assert self._way is not None
        made, self._way = self._way.end(), None
        return made


class _Loop:
    """Rows straight into the session: what the engine is measured against."""

    def __init__(self, session: Any, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        from QEfficient.devices import Batch, Row

        self._session, self._row, self._batch = session, Row, Batch
        paging = session.limits.paging
        each = -(-(len(prompts[0]) + tokens) // paging.block_size)
        self._blocks = [tuple(range(n * each, (n + 1) * each)) for n in range(len(prompts))]
        self._prompts, self._made = prompts, [[] for _ in prompts]

    def prefill(self) -> None:
        chunk = min(self._session.limits.chunk, self._session.limits.tokens)
        for slot, prompt in enumerate(self._prompts):
            for start in range(0, len(prompt), chunk):
                piece = prompt[start : start + chunk]
                last = start + len(piece) == len(prompt)
                rows = (self._row(slot, piece, start, int(last), self._blocks[slot]),)
                logits = self._session.run(self._batch(rows))
            self._made[slot].append(int(logits[0].argmax()))

    def step(self) -> None:
        position = len(self._prompts[0]) + len(self._made[0]) - 1
        rows = [self._row(slot, made[-1:], position, 1, self._blocks[slot]) for slot, made in enumerate(self._made)]
        for made, token in zip(self._made, self._session.run(self._batch(tuple(rows))).argmax(-1), strict=True):
            made.append(int(token))

    def end(self) -> list[list[int]]:
        return self._made


class _Engine:
    """Requests into the engine, which schedules them."""

    def __init__(self, session: Any, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        from QEfficient.generation.engine import Engine
        from QEfficient.generation.request import Request
        from QEfficient.specs import SamplingParams

        # As long as they are measured none may end, although some are ahead when the last prompt is through
        params = SamplingParams(max_new_tokens=tokens + len(prompts) + 1, ignore_eos=True)
        self._engine = Engine(session)
        self._requests = [Request(tuple(prompt), params) for prompt in prompts]

    def prefill(self) -> None:
        for request in self._requests:
            self._engine.submit(request)
        while not all(request.generated for request in self._requests):
            self._engine.step()

    def step(self) -> None:
        self._engine.step()

    def end(self) -> list[list[int]]:
        least = min(len(request.generated) for request in self._requests)
        made = [request.generated[:least] for request in self._requests]
        for request in self._requests:
            self._engine.cancel(request)
        return made


if __name__ == "__main__":
    serve(Own())
