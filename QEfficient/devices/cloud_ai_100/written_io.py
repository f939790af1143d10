"""Writes what goes into a program and comes out of it, for Qualcomm's tools: first of a prompt, then of decoding.

<folder>/prefill/<tensor>.raw, <folder>/decode/<tensor>.raw
<folder>/aic_batch_io.json      which file is which tensor: a list for each of the two runs
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from QEfficient.devices.cloud_ai_100.inference_session import QAICInferenceSession

FILE = "aic_batch_io.json"
PREFILL, DECODE = "prefill", "decode"


def opener(folder: str | Path | None, debug: bool) -> Callable[..., QAICInferenceSession]:
    """What opens a session that writes into `folder`, if there is one, and has the runtime log with `debug`."""
    if folder is not None:
        return partial(WritingInferenceSession, folder, debug=debug)
    return partial(QAICInferenceSession, enable_debug_logs=debug)


class WritingInferenceSession(QAICInferenceSession):
    """The first run of all is one of a prompt; the first of one token a row behind it is one of decoding."""

    def __init__(self, folder: str | Path, qpc_path: str | Path, device_ids: Sequence[int] | None, debug: bool) -> None:
        super().__init__(qpc_path, device_ids, enable_debug_logs=debug)
        self._folder = Path(folder)
        self._written: list[list[dict[str, Any]]] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = super().run(inputs)
        one_token = inputs["input_ids"].shape[1] == 1
        if not self._written or (one_token and len(self._written) == 1):
            self._write(PREFILL if not self._written else DECODE, inputs, outputs)
        return outputs

    def _write(self, step: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        (self._folder / step).mkdir(parents=True, exist_ok=True)
        given = ((name, inputs[name]) for name in self.input_names if name in inputs)
        found = ((name, outputs[name]) for name in self.output_names if name in outputs)
        self._written.append([*self._entries(step, "in", given), *self._entries(step, "out", found)])
        (self._folder / FILE).write_text(json.dumps({"IO-files": self._written}, indent=4), encoding="utf-8")

    def _entries(
        self, step: str, direction: str, tensors: Iterable[tuple[str, np.ndarray]]
    ) -> Iterator[dict[str, Any]]:
        for name, array in tensors:
            path = f"{step}/{name.replace('/', '_')}.raw"
            (self._folder / path).write_bytes(array.tobytes())
            yield {
                "path": path,
                "io-direction": direction,
                "elem-size": array.itemsize,
                "map-to": name,
                "dims": list(array.shape),
            }
