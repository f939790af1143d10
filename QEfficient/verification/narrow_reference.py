"""The reference device in the precision that a device computes in, whose tokens are those to be met.

The model is exported once more in that precision, as a plain program of the same geometry, and where the device keeps
weights of its own, with these. Beside it there is nothing left that could differ but the order of
sums, and what is rounded in between.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from QEfficient.devices import Device
from QEfficient.devices.reference import ReferenceDevice
from QEfficient.errors import DeviceError, QEfficientError, first_line
from QEfficient.program import CompiledProgram, ExportedProgram, load_compiled
from QEfficient.specs import CompileSpec
from QEfficient.transformers.latent import FUSED, ONLINE
from QEfficient.transformers.loading import ModelSource
from QEfficient.transformers.models.causal_lm import QEFFAutoModelForCausalLM
from QEfficient.verification.eager import Expected, all_logits
from QEfficient.verification.forced import greedy, logits_at
from QEfficient.verification.truth import Truth

WIDE = "float32"
"""What the other truths are computed in."""
SAME_WEIGHTS = " with the same stored weights"
SHAPE = ("batch_size", "prefill_seq_len", "ctx_len", "full_batch_size", "kv_cache_batch_size")


@dataclass(frozen=True)
class Original:
    """What a program was made from."""

    source: ModelSource
    model: Any
    """Hugging Face's, in float32."""


def reference_in(dtype: str) -> str:
    return f"program on {ReferenceDevice.name} in {dtype}"


@contextmanager
def narrow_reference(
    device: Device,
    spec: CompileSpec,
    original: Original,
    expected: Sequence[Expected],
    threads: int = 0,
    compiled: CompiledProgram | None = None,
) -> Iterator[Truth | str | None]:
    """What the reference device makes of the prompts of `expected` in the device's precision, in the shapes of `spec`;
    a text says why it makes nothing of them; None where that precision is float32. `threads`: 0 for all there are.
    `compiled`: the program whose weights it is to have, if these may not be the exported ones."""
    if device.computes_in == WIDE:
        yield None
        return
    with TemporaryDirectory(prefix="qefficient-") as folder, ExitStack() as stack:
        try:
            narrow = _compiled(device.computes_in, spec, original.source, Path(folder), _attention(compiled))
            stored = _stored(device, compiled, narrow, Path(folder) / "stored") if compiled is not None else None
            narrow = narrow if stored is None else replace(narrow, program=stored)
            alone = replace(narrow.spec, device_options={"num_threads": threads})
            session = stack.enter_context(ReferenceDevice().load(replace(narrow, spec=alone)))
            found = greedy(session, expected)
        except QEfficientError as error:
            yield first_line(error).replace(f"{folder}/", "")
            return
        problem = _no_numbers(found, original.model, device.computes_in)
        weights = "" if stored is None else SAME_WEIGHTS
        yield problem or Truth(reference_in(device.computes_in) + weights, found, partial(logits_at, session))


def _attention(compiled: CompiledProgram | None) -> dict[str, Any] | None:
    """What the model has to be exported with so that it has the same weights: attention without keys has others."""
    done = compiled.program.report.get("transforms", {}).get("model", ()) if compiled is not None else ()
    absorbed = {"cache_compressed": True, "absorption": True, "online": ONLINE in done}
    return {"mla_absorption": absorbed} if {ONLINE, FUSED}.intersection(done) else None


def _compiled(
    dtype: str, spec: CompileSpec, source: ModelSource, folder: Path, config: dict[str, Any] | None
) -> CompiledProgram:
    model = QEFFAutoModelForCausalLM(replace(source, dtype=dtype), spec.continuous_batching, config)
    model.export(folder / "exported")
    shape: dict[str, Any] = {name: getattr(spec, name) for name in SHAPE}
    return load_compiled(model.compile(compile_dir=folder / "compiled", device=ReferenceDevice.name, **shape))


def _stored(device: Device, compiled: CompiledProgram, narrow: CompiledProgram, folder: Path) -> ExportedProgram | None:
    """The narrow program with the weights that the compiled one holds; None where these are the exported ones. What the
    device would make of narrow weights is not the same: some have come to the other side of a border."""
    wide = device.stored_program(compiled, _made(folder / "wide"))
    if wide is None:
        return None
    asked = replace(narrow.spec, device_options=compiled.spec.device_options)
    own = device.stored_program(replace(compiled, program=narrow.program, spec=asked), _made(folder / "narrow"))
    assert own is not None, "the device makes weights of its own"
    _fill(own, wide, without=ir.load(narrow.program.onnx_path()).graph.initializers.keys())
    return own


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _fill(program: ExportedProgram, source: ExportedProgram, without: Collection[str]) -> None:
    """Write the tensors of another program over those of the same name, in the file that they lie in."""
    values, others = (ir.load(p.onnx_path()).graph.initializers for p in (program, source))
    for name in values.keys() - without:
        tensor, other = values[name].const_value, others[name].const_value if name in others else None
        assert isinstance(tensor, ir.ExternalTensor), "devices write what they make into files"
        if other is None or other.shape != tensor.shape:
            raise DeviceError(f"the program holds no weights like '{name}' of the same shape")
        place = np.memmap(tensor.path, tensor.dtype.numpy(), "r+", tensor.offset or 0, tuple(tensor.shape.numpy()))
        place[...] = other.numpy()
        place.flush()


def _no_numbers(found: Sequence[Expected], model: Any, dtype: str) -> str:
    """What is to be said of logits that are no numbers; whether transformers has better ones."""
    bad = next((e for e in found if np.isnan(e.logits).any()), None)
    if bad is None:
        return ""
    try:
        own = all_logits(copy.deepcopy(model).to(getattr(torch, dtype)), bad.fed)
    except RuntimeError as error:
        return f"its logits are no numbers in {dtype}, and transformers gives none ({first_line(error)})"
    others = "as in transformers itself" if np.isnan(own).any() else "which transformers' are"
    return f"its logits are no numbers in {dtype}, {others}"
