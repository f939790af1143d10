"""What the linear layers of a program are fed with: the program runs some text, and their inputs are kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from QEfficient.devices import Batch, Row
from QEfficient.devices.cpu.compression import Compression
from QEfficient.devices.cpu.experts import find_experts
from QEfficient.devices.cpu.linear import find_linears
from QEfficient.devices.cpu.opening import MODEL_FILE, ModelFile
from QEfficient.devices.cpu.options import OWN_TEXT, CpuOptions
from QEfficient.devices.cpu.packed import BLOCK, allocate_caches, feeds
from QEfficient.devices.weight_file import WeightFile
from QEfficient.errors import OptionError
from QEfficient.program import ExportedProgram

SEQUENCES, LENGTH = 8, 128
"""Texts, and tokens of each: what a model writes for its own calibration, or what is read of a file."""
OPTIONS = CpuOptions("bf16", head_format="bf16", expert_format="int8", compute_in="bf16", kv_cache="bf16")
"""Of the program that is watched: near enough to the original, at half of its size. Experts have a kernel only where
they are compressed."""


class Calibration:
    """Activations `[tokens, in]`, in files below a folder."""

    def __init__(self, folder: Path, model: ir.Model) -> None:
        linears = find_linears(model)
        watched = {str(linear.activations.name): linear for linear in linears}
        self._of_weight = {str(linear.weight.name): str(linear.activations.name) for linear in linears}
        self._widths = {name: linear.shape[1] for name, linear in watched.items()}
        self._files = {name: folder / f"{number}.f32" for number, name in enumerate(watched)}
        self.values = [linear.activations for linear in watched.values()]

    def activations(self, weight: str) -> np.ndarray:
        """What the layer with this weight was fed with. Layers that share it are taken for one."""
        name = self._of_weight[weight]
        return np.memmap(self._files[name], np.float32, "r").reshape(-1, self._widths[name])

    def open(self, stack: ExitStack) -> dict[str, BinaryIO]:
        return {name: stack.enter_context(open(path, "wb")) for name, path in self._files.items()}


def calibrate(program: ExportedProgram, model: ir.Model, text: str, folder: Path) -> Calibration:
    """Run `text` ("self", or the path of a text file) through the lowered `model`, which is used up."""
    calibration = Calibration(folder, model)
    model.graph.outputs.extend(calibration.values)
    with WeightFile(folder) as file:
        Compression(model, file, OPTIONS).run(find_linears(model), find_experts(model))
    ir.save(model, folder / MODEL_FILE)
    request = ModelFile(folder, OPTIONS).compiled().create_infer_request()
    allocate_caches(request, SEQUENCES * -(-LENGTH // BLOCK))
    with ExitStack() as stack:
        run = _Run(request, calibration.open(stack))
        if text == OWN_TEXT:
            _write_text(run, program)
        else:
            run.read(_read_text(program, Path(text)))
    return calibration


class _Run:
    """Feeds texts side by side; writes down what every watched layer sees."""

    def __init__(self, request: Any, files: dict[str, BinaryIO]) -> None:
        self._request, self._files = request, files

    def __call__(self, tokens: Sequence[Sequence[int]], start: int) -> np.ndarray:
        size = -(-LENGTH // BLOCK)
        blocks = [tuple(range(slot * size, (slot + 1) * size)) for slot in range(len(tokens))]
        rows = [Row(slot, ids, start, len(ids), blocks[slot]) for slot, ids in enumerate(tokens)]
        self._request.infer(feeds(Batch(tuple(rows))), share_inputs=True)
        for name, file in self._files.items():
            file.write(np.ascontiguousarray(self._request.get_tensor(name).data, np.float32).data)
        logits: np.ndarray = self._request.get_output_tensor(0).data
        return logits.reshape(-1, logits.shape[-1])

    def read(self, texts: Sequence[Sequence[int]]) -> None:
        for ids in texts:
            self([ids], 0)


def _write_text(run: _Run, program: ExportedProgram) -> None:
    """Texts that the model itself finds likely: the distribution that it will be used on, without a dataset."""
    random = np.random.default_rng(0)
    vocabulary, first = program.model.vocab_size, program.model.bos_token_id
    ids = random.integers(0, vocabulary, SEQUENCES) if first is None else np.full(SEQUENCES, first)
    for position in range(LENGTH):
        logits = run([[int(token)] for token in ids], position)
        ids = (logits + random.gumbel(size=logits.shape)).argmax(-1)


def _read_text(program: ExportedProgram, path: Path) -> list[list[int]]:
    tokenizer = program.folder / "tokenizer" / "tokenizer.json"
    if not tokenizer.is_file():
        raise OptionError(f"{program.folder} holds no tokenizer to read {path} with; use calibration='{OWN_TEXT}'.")
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tokenizer)).encode(path.read_text(encoding="utf-8")).ids[: SEQUENCES * LENGTH]
    if len(ids) < LENGTH:
        raise OptionError(f"{path} has {len(ids)} tokens; calibration wants at least {LENGTH}.")
    return [ids[start : start + LENGTH] for start in range(0, len(ids), LENGTH)]
