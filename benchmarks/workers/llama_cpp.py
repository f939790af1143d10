"""llama.cpp, through the C interface that llama-cpp-python wraps: one batch with a token of every sequence a step."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workers.protocol import Runner, serve

BATCH = 2048
"""Tokens of one call: llama.cpp's own default, which it cuts into pieces of 512."""


class LlamaCpp(Runner):
    def load_library(self) -> None:
        import llama_cpp
        import numpy

        self._api, self._numpy = llama_cpp, numpy

    def open(self, folder: Path, threads: int, room: Mapping[str, int], options: Mapping[str, Any]) -> dict[str, Any]:
        api = self._api
        api.llama_backend_init()
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(str(folder / "model.gguf").encode(), parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not open {folder / 'model.gguf'}")
        self._threads, self._cache = threads, options.get("cache", "f16")
        self._batch = api.llama_batch_init(BATCH, 0, 1)
        self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        return {
            "version": api.__version__,
            "vocabulary": self._vocabulary,
            "kv_element_bytes": {"f16": 2, "q8_0": 34 / 32}[self._cache],
            "settings": api.llama_print_system_info().decode(),
        }

    def begin(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        api = self._api
        parameters = api.llama_context_default_params()
        # Each sequence has its own part of the cache (the default, not unified): best for prompts without a common part
        length = -(-(len(prompts[0]) + tokens) // 256) * 256
        parameters.n_ctx, parameters.n_seq_max = length * len(prompts), len(prompts)
        parameters.n_batch = BATCH
        parameters.n_threads = parameters.n_threads_batch = self._threads
        if self._cache == "q8_0":
            parameters.type_k = parameters.type_v = api.GGML_TYPE_Q8_0
        self._context = api.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context of {parameters.n_ctx} tokens")
        self._prompts, self._made = prompts, [[] for _ in prompts]

    def prefill(self) -> None:
        for sequence, prompt in enumerate(self._prompts):
            for start in range(0, len(prompt), BATCH):
                piece = prompt[start : start + BATCH]
                last = start + len(piece) == len(prompt)
                self._run([(token, start + n, sequence, False) for n, token in enumerate(piece[:-1])]
                          + [(piece[-1], start + len(piece) - 1, sequence, last)])  # fmt: skip
            self._made[sequence].append(self._greedy(self._batch.n_tokens - 1))

    def step(self) -> None:
        length = len(self._prompts[0]) + len(self._made[0]) - 1
        self._run([(made[-1], length, sequence, True) for sequence, made in enumerate(self._made)])
        for sequence, made in enumerate(self._made):
            made.append(self._greedy(sequence))

    def end(self) -> list[list[int]]:
        self._api.llama_free(self._context)
        return self._made

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for n, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[n], batch.pos[n], batch.logits[n] = token, position, wanted
            batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode ended with {status}")

    def _greedy(self, row: int) -> int:
        logits = self._api.llama_get_logits_ith(self._context, row)
        address = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        return int(self._numpy.ctypeslib.as_array(address, (self._vocabulary,)).argmax())


if __name__ == "__main__":
    serve(LlamaCpp())
