"""onnxruntime-genai: one generator for a batch of sequences of one length."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workers.protocol import Runner, serve


class OnnxRuntimeGenai(Runner):
    def load_library(self) -> None:
        import numpy
        import onnxruntime_genai

        self._numpy, self._api = numpy, onnxruntime_genai

    def open(self, folder: Path, threads: int, room: Mapping[str, int], options: Mapping[str, Any]) -> dict[str, Any]:
        config = self._api.Config(str(folder))
        settings = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": settings}}}))
        self._model = self._api.Model(config)
        record = json.loads((folder / "genai_config.json").read_text())
        return {
            "version": self._api.__version__,
            "vocabulary": record["model"]["vocab_size"],
            "kv_element_bytes": 4,
            "settings": settings,
        }

    def begin(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        self._prompts = self._numpy.array(prompts, self._numpy.int32)
        self._length = self._prompts.shape[1]
        parameters = self._api.GeneratorParams(self._model)
        total = self._length + tokens
        # Nothing ends before its length: the end-of-sequence tokens are ruled out up to there
        parameters.set_search_options(
            max_length=total, min_length=total, batch_size=len(prompts), do_sample=False, past_present_share_buffer=True
        )
        self._generator = self._api.Generator(self._model, parameters)

    def prefill(self) -> None:
        self._generator.append_tokens(self._prompts)
        self._generator.generate_next_token()

    def step(self) -> None:
        self._generator.generate_next_token()

    def end(self) -> list[list[int]]:
        rows = range(len(self._prompts))
        made = [[int(token) for token in self._generator.get_sequence(row)[self._length :]] for row in rows]
        del self._generator
        return made


if __name__ == "__main__":
    serve(OnnxRuntimeGenai())
