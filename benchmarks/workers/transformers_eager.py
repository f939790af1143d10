"""transformers without any compilation: its forward, its cache, a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workers.protocol import Runner, serve


class TransformersEager(Runner):
    def load_library(self) -> None:
        import torch
        import transformers

        transformers.AutoModelForCausalLM  # noqa: B018  (imported when it is asked for)
        self._torch, self._api = torch, transformers
        torch.set_grad_enabled(False)

    def open(self, folder: Path, threads: int, room: Mapping[str, int], options: Mapping[str, Any]) -> dict[str, Any]:
        self._torch.set_num_threads(threads)
        dtype = getattr(self._torch, options["dtype"])
        self._model = self._api.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        return {
            "version": f"{self._api.__version__} (torch {self._torch.__version__})",
            "vocabulary": self._model.config.vocab_size,
            "kv_element_bytes": dtype.itemsize,
            "settings": {"attention": self._model.config._attn_implementation},
        }

    def begin(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        self._next = self._torch.tensor(prompts)
        self._cache = self._api.DynamicCache(config=self._model.config)
        self._made: list[Any] = []

    def prefill(self) -> None:
        self.step()

    def step(self) -> None:
        output = self._model(input_ids=self._next, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._next = output.logits[:, -1].argmax(-1, keepdim=True)
        self._made.append(self._next)

    def end(self) -> list[list[int]]:
        self._cache = None
        made: list[list[int]] = self._torch.cat(self._made, 1).tolist()
        return made


if __name__ == "__main__":
    serve(TransformersEager())
