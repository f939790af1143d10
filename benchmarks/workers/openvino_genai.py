"""openvino-genai's continuous batching: requests are added as token ids, then it is stepped until they are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workers.protocol import Runner, serve

BLOCK = 32
"""Tokens of a block of its cache on CPUs."""
AHEAD = 64
"""Tokens by which sequences may be ahead when the last prompt is through: who is through goes on meanwhile."""


class OpenVinoGenai(Runner):
    def load_library(self) -> None:
        import openvino
        import openvino_genai

        self._openvino, self._api = openvino, openvino_genai

    def open(self, folder: Path, threads: int, room: Mapping[str, int], options: Mapping[str, Any]) -> dict[str, Any]:
        import json

        scheduler = self._api.SchedulerConfig()
        # For each sequence what it runs ahead of the others, and a block that its end does not fill
        scheduler.num_kv_blocks = -(-room["tokens"] // BLOCK) + room["sequences"] * (AHEAD // BLOCK + 2)
        scheduler.max_num_seqs = room["sequences"]
        scheduler.max_num_batched_tokens = options["tokens_a_step"]
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": threads}
        self._pipeline = self._api.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
        self._requests = 0
        return {
            "version": f"{self._api.__version__} (openvino {self._openvino.__version__})",
            "vocabulary": json.loads((folder / "config.json").read_text())["vocab_size"],
            "kv_element_bytes": 1 + 8 / 64,  # u8, its default on CPUs, with a scale and a zero point for each head
            "settings": scheduler.to_string(),
        }

    def begin(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        import numpy

        self._config = self._api.GenerationConfig()
        self._config.max_new_tokens = tokens + AHEAD
        self._config.ignore_eos = True
        self._config.do_sample = False
        self._ids = [self._openvino.Tensor(numpy.array([prompt], numpy.int64)) for prompt in prompts]
        self._made: list[list[int]] = [[] for _ in prompts]

    def prefill(self) -> None:
        self._handles = []
        for ids in self._ids:
            self._handles.append(self._pipeline.add_request(self._requests, ids, self._config))
            self._requests += 1
        while not all(self._made):
            self.step()

    def step(self) -> None:
        self._pipeline.step()
        for handle, made in zip(self._handles, self._made, strict=True):
            while handle.can_read():
                for output in handle.read().values():
                    made.extend(output.generated_ids)

    def end(self) -> list[list[int]]:
        made = [one[: min(map(len, self._made))] for one in self._made]
        for handle in self._handles:
            handle.stop()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return made


if __name__ == "__main__":
    serve(OpenVinoGenai())
