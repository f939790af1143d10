"""Where weights come from, one tensor at a time.

transformers converts checkpoints while it loads them (renamed keys, stacked experts, merged projections). The same
conversions run here on lazy tensors: what is only renamed is copied from file to file in blocks, what is converted is
read one group at a time. This is the only module that meets transformers' loading code.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import core_model_loading
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig

from QEfficient.errors import WeightsError

BLOCK = 16 * 2**20
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class LazyTensor:
    """A tensor that is read when somebody computes with it, or block by block when it is only copied."""

    dtype: torch.dtype
    shape: torch.Size

    def read(self) -> torch.Tensor:
        raise NotImplementedError

    def blocks(self) -> Iterator[torch.Tensor]:
        """The values in order, flat, in pieces of bounded size."""
        raise NotImplementedError

    def copy_into(self, descriptor: int, offset: int) -> bool:
        """Copy the raw bytes to a place in a file without reading them here; False if that cannot be done."""
        return False

    def __getitem__(self, index: Any) -> Any:
        return self if index is Ellipsis else self.read()[index]

    def to(self, *args: Any, **kwargs: Any) -> LazyTensor:
        return self  # the writer casts; a device means nothing here

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.read(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def real(value: Any) -> Any:
            if isinstance(value, LazyTensor):
                return value.read()
            if isinstance(value, (list, tuple)):
                return type(value)(real(v) for v in value)
            return value

        return function(*real(args), **{k: real(v) for k, v in (kwargs or {}).items()})


class FileTensor(LazyTensor):
    """A tensor of a safetensors file, read with plain reads: a mapping would count as this process's memory."""

    def __init__(self, path: Path, entry: Mapping[str, Any], data_start: int) -> None:
        self.path = path
        self.dtype = _SAFETENSORS_DTYPES[entry["dtype"]]
        self.shape = torch.Size(entry["shape"])
        begin, end = entry["data_offsets"]
        self.offset, self.size = data_start + begin, end - begin

    def read(self) -> torch.Tensor:
        pieces = bytearray(self.size)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            if file.readinto(pieces) != self.size:
                raise WeightsError(f"{self.path} is truncated. Fetch the checkpoint again.")
        flat = torch.frombuffer(pieces, dtype=self.dtype) if self.size else torch.empty(0, dtype=self.dtype)
        return flat.reshape(self.shape)

    def copy_into(self, descriptor: int, offset: int) -> bool:
        done = 0
        with open(self.path, "rb", buffering=0) as file:
            while done < self.size:
                try:
                    place = (self.offset + done, offset + done)
                    count = os.copy_file_range(file.fileno(), descriptor, self.size - done, *place)
                except (OSError, AttributeError):  # not between these file systems, or not on this platform
                    return False
                if count == 0:
                    raise WeightsError(f"{self.path} is truncated. Fetch the checkpoint again.")
                done += count
        return True

    def blocks(self) -> Iterator[torch.Tensor]:
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            left = self.size
            while left:
                piece = bytearray(min(left, BLOCK))
                if file.readinto(piece) != len(piece):
                    raise WeightsError(f"{self.path} is truncated. Fetch the checkpoint again.")
                left -= len(piece)
                yield torch.frombuffer(piece, dtype=self.dtype)


class MemoryTensor(LazyTensor):
    """A tensor that is in memory already (a live model, a mapped pickle)."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()
        self.dtype, self.shape = tensor.dtype, tensor.shape

    def read(self) -> torch.Tensor:
        return self.tensor

    def blocks(self) -> Iterator[torch.Tensor]:
        flat = self.tensor.contiguous().reshape(-1)
        step = max(1, BLOCK // flat.element_size())
        yield from (flat[start : start + step] for start in range(0, flat.numel(), step))


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file by name, none of them read."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise WeightsError(f"{path} is truncated: its header alone should have {length:,} bytes.")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if start + end > size:
        raise WeightsError(f"{path} is truncated: {size:,} bytes, {start + end:,} expected. Fetch it again.")
    return {name: FileTensor(path, entry, start) for name, entry in header.items()}


def open_pickle(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a PyTorch file, mapped; only plain tensors are unpickled."""
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {name: MemoryTensor(tensor) for name, tensor in loaded.items()}


Sink = Callable[[str, LazyTensor | torch.Tensor], None]


class LiveWeights:
    """The weights of a model object."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def identity(self) -> dict[str, Any]:
        """A digest of the bytes: two models with one config are told apart."""
        import hashlib

        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            for block in MemoryTensor(tensor).blocks():
                digest.update(block.contiguous().view(torch.uint8).numpy().tobytes())
        return {"kind": "object", "sha256": digest.hexdigest()}

    def stream(self, skeleton: Any, sink: Sink) -> None:
        for name, tensor in self.model.state_dict().items():
            sink(name, MemoryTensor(tensor))


class CheckpointWeights:
    """The weights of checkpoint files, through transformers' own conversions."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def identity(self) -> dict[str, Any]:
        """What tells this checkpoint from any other, without reading it whole (see `file_identity`)."""
        return {"kind": "files", "files": [file_identity(path) for path in self.files]}

    def _open(self) -> dict[str, LazyTensor]:
        tensors: dict[str, LazyTensor] = {}
        for path in self.files:
            tensors.update(open_safetensors(path) if path.suffix == ".safetensors" else open_pickle(path))
        return tensors

    def stream(self, skeleton: Any, sink: Sink) -> None:
        """Hand every parameter of `skeleton` to `sink`, converted as transformers would."""
        mapping = get_model_conversion_mapping(skeleton)
        config = LoadStateDictConfig(dtype=None, weight_mapping=mapping)
        with _intercepted(sink):
            info, _ = _result(_convert(skeleton, self._open(), config))
        problems = [str(e) for e in (*info.conversion_errors.values(), *info.error_msgs)]
        if problems:
            raise WeightsError(f"the checkpoint cannot be converted: {problems[0]}")


def _convert(*args: Any) -> Any:
    """transformers' conversion; older versions insist on being told how to spread the weights over devices."""
    convert = core_model_loading.convert_and_load_state_dict_in_model
    spread = {"tp_plan": None} if "tp_plan" in inspect.signature(convert).parameters else {}
    return convert(*args, **spread)


def _result(value: Any) -> tuple[Any, Any]:
    return value if isinstance(value, tuple) else (value, None)


def file_identity(path: Path) -> dict[str, Any]:
    """Name in the hub's store if there is one (a content hash), else size, time and a digest of sampled bytes."""
    import hashlib

    real = path.resolve()
    stat = real.stat()
    if real.parent.name == "blobs":
        return {"name": path.name, "blob": real.name}
    digest = hashlib.sha256()
    with open(real, "rb") as file:
        for position in range(0, stat.st_size, max(1, stat.st_size // 64)):
            file.seek(position)
            digest.update(file.read(65536))
    return {"name": path.name, "size": stat.st_size, "modified": stat.st_mtime_ns, "sample": digest.hexdigest()}


@contextmanager
def _intercepted(sink: Sink) -> Iterator[None]:
    """Let transformers convert, but give each finished parameter to `sink` in place of the module, one at a time."""

    def spawn(thread_pool: Any, tensor: Any, device: Any = None, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        return lambda: tensor[...]

    def set_parameter(model: Any, target_name: str, value: Any, loading_info: Any, *args: Any) -> None:
        expected = model.get_parameter_or_buffer(target_name).shape
        if tuple(value.shape) != tuple(expected):
            raise WeightsError(
                f"'{target_name}' has shape {list(value.shape)} in the checkpoint, the config says {list(expected)}."
            )
        loading_info.missing_keys.discard(target_name)
        sink(target_name, value)

    replaced = {"spawn_materialize": spawn, "set_param_for_module": set_parameter, "tqdm": lambda items, **_: items}
    kept = {name: getattr(core_model_loading, name) for name in replaced if hasattr(core_model_loading, name)}
    for name in kept:
        setattr(core_model_loading, name, replaced[name])
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(core_model_loading, name, value)
