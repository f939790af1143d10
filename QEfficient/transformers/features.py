"""Tokens and their mask in, hidden states out: a model used as an encoder, its state unused, and pooling behind it."""

from __future__ import annotations

import copy
import inspect
import secrets
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from transformers.modeling_outputs import CausalLMOutput

from QEfficient.errors import OptionError, UnsupportedModelError, did_you_mean, first_line
from QEfficient.program import GraphSpec, TensorSpec
from QEfficient.transformers import rotary
from QEfficient.transformers.observe import accepts
from QEfficient.transformers.retained_module import RetainedModule
from QEfficient.transformers.signature import dtype_name
from QEfficient.transformers.transform import EXPERTS, retain

Pooling = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(last hidden states `[b, s, n]`, attention mask `[b, s]`) → `[b, n]`"""

ROWS = ("batch_size", "seq_len")
EXAMPLE = (2, 8)
PADDING_TOLERANCE = 0.01
INPUTS = (TensorSpec("input_ids", "int64", ROWS), TensorSpec("attention_mask", "int64", ROWS))


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    kept = mask[:, :, None].to(hidden.dtype)
    return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask[:, :, None] > 0, hidden, torch.finfo(hidden.dtype).min).amax(1)


def _first(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


POOLINGS: Mapping[str, Pooling] = {"mean": _mean, "avg": _mean, "max": _max, "cls": _first}


def find_pooling(asked: str | Pooling | None) -> Pooling | None:
    """The function behind a name; a function is its own."""
    if asked is None or callable(asked):
        return asked
    if asked not in POOLINGS:
        hint = did_you_mean(str(asked), POOLINGS)
        raise OptionError(f"pooling {asked!r} is neither a function nor one of {', '.join(POOLINGS)}.{hint}")
    return POOLINGS[asked]


def pooling_identity(asked: str | Pooling | None) -> Any:
    """What tells two poolings apart, as plain data. A function counts by its code and by every value that it refers to;
    where that has no plain form (an object, a tensor), no two are taken for the same."""
    if isinstance(asked, str):
        return POOLINGS[asked].__name__
    return None if asked is None else _identity(asked, ())


def _identity(value: Any, seen: tuple[Any, ...]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return [_identity(item, seen) for item in value]
    library = str(getattr(value, "__module__", "")).partition(".")[0] in ("torch", "builtins")
    if isinstance(value, types.ModuleType) or (library and hasattr(value, "__name__")):
        return str(getattr(value, "__qualname__", value.__name__))
    if isinstance(value, types.CodeType):
        return [value.co_code.hex(), list(value.co_names), [_identity(constant, seen) for constant in value.co_consts]]
    if isinstance(value, types.FunctionType) and value not in seen:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        names = [value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__]
        refers = (value.__code__, value.__defaults__, list((value.__kwdefaults__ or {}).items()), cells, names)
        return [_identity(part, (*seen, value)) for part in refers]
    return "the function itself" if value in seen else secrets.token_hex(8)


def _names(code: types.CodeType) -> list[str]:
    """Names that a piece of code looks up, and the functions inside it."""
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


class FeatureModule(torch.nn.Module):
    """A model's last hidden states, pooled if asked."""

    def __init__(self, model: Any, pooling: Pooling | None = None) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.steps: Mapping[str, Any] = {}
        """Bodies of recurrent nodes, filled while the module is traced."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(input_ids, attention_mask)
        return hidden if self.pooling is None else self.pooling(hidden, attention_mask)

    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """`[b, s, n]`"""
        stateless = {"use_cache": False} if accepts(self.model, "use_cache") else {}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **stateless)
        return _last_hidden(self.model, output)

    def signature(self, mode: FakeTensorMode) -> GraphSpec:
        """The graph's contract; the width is observed on fake tensors."""
        output = self._observe(mode)
        rows: tuple[str, ...] = ROWS if self.pooling is None else ROWS[:1]
        if tuple(output.shape[:-1]) != EXAMPLE[: len(rows)]:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} makes {list(output.shape)} of 2 rows with 8 tokens;"
                f" {'one vector for each token' if self.pooling is None else 'one vector for each row'} was expected."
            )
        return GraphSpec(INPUTS, (TensorSpec("output", dtype_name(output.dtype), (*rows, int(output.shape[-1]))),))

    def _observe(self, mode: FakeTensorMode) -> torch.Tensor:
        try:
            with mode, torch.no_grad():
                return self._example_output(*(torch.ones(EXAMPLE, dtype=torch.int64) for _ in INPUTS))
        except UnsupportedModelError:
            raise
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            reason = f"what it computes depends on the content of its input in a way that no graph holds ({error})."
            raise UnsupportedModelError(f"{type(self.model).__name__} cannot be traced: {reason}") from error
        except Exception as error:  # whatever the model, or the user's pooling, raises
            raise UnsupportedModelError(
                f"{type(self.model).__name__} could not be run on tokens and their mask alone: {first_line(error)}"
            ) from error

    def _example_output(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self(input_ids, attention_mask)
        return output


class RetainedFeatures(FeatureModule):
    """The same of a causal model that loops over its tokens, which cannot be traced: the retained module has such loops
    as nodes, and starts here from nothing each time."""

    def __init__(self, model: Any, pooling: Pooling | None = None) -> None:
        """`model` is changed in place."""
        try:
            retained = retain(_Headless(model), rolling=False)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(str(error).replace(_Headless.__name__, type(model).__name__)) from error
        if not isinstance(retained, RetainedModule):
            reason = retained.reason.replace(_Headless.__name__, type(model).__name__)
            raise UnsupportedModelError(f"the state of {type(model).__name__} cannot be traced: {reason}")
        super().__init__(retained, pooling)
        self.steps = retained.steps

    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        positions = torch.where(attention_mask > 0, attention_mask.cumsum(1) - 1, -1)
        rows, length = input_ids.shape
        shapes = [(rows, *(length if size is None else size for size in plan.shape)) for plan in self.model.plans]
        states = [torch.zeros(shape, dtype=plan.dtype) for shape, plan in zip(shapes, self.model.plans, strict=True)]
        seen: list[torch.Tensor] = []
        headless = self.model.model
        note = headless.register_forward_hook(lambda _, __, output: seen.append(output.logits))
        self.model(input_ids, positions, None, {}, states)
        note.remove()
        return seen[-1]

    def _example_output(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        dtype = next(self.model.parameters()).dtype
        hidden = torch.ones((*EXAMPLE, self.model.vocab_size), dtype=dtype)
        return hidden if self.pooling is None else self.pooling(hidden, attention_mask)


class _Headless(torch.nn.Module):
    """A model without a head in the place of a language model: its hidden states stand where logits would."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

        def forward(*inputs: Any, **arguments: Any) -> CausalLMOutput:
            return CausalLMOutput(logits=_last_hidden(model, model(*inputs, **arguments)))

        forward.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]
        self.forward = forward  # on the object: it takes what this very model takes


def _last_hidden(model: Any, output: Any) -> torch.Tensor:
    hidden = getattr(output, "last_hidden_state", None)
    if not isinstance(hidden, torch.Tensor):
        raise UnsupportedModelError(f"{type(model).__name__} gives no last hidden state for each token.")
    return hidden


def encoder_of(model: Any) -> Any:
    """The part of `model` that makes hidden states of tokens: without a head, and of an encoder-decoder the encoder."""
    part = model.base_model
    if accepts(part, "decoder_input_ids"):
        part = part.get_encoder()
    if not accepts(part, "input_ids") or not accepts(part, "attention_mask"):
        raise UnsupportedModelError(
            f"{type(part).__name__} does not take input_ids with an attention_mask, so it cannot encode padded text."
        )
    return part


def check_padding(model: Any) -> None:
    """Refuse a model that lets padding past its attention mask (it convolves over tokens, hashes or pools them): a row
    would get another answer among longer ones than alone. Found by trying, with weights made up."""
    probe = FeatureModule(_made_up(model))
    row, pad = torch.arange(3, 8)[None], getattr(model.config, "pad_token_id", None) or 0
    padded, mask = (torch.nn.functional.pad(t, (0, 4), value=v) for t, v in ((row, pad), (torch.ones_like(row), 0)))
    with torch.no_grad():
        alone, among = probe.hidden(row, torch.ones_like(row)), probe.hidden(padded, mask)[:, : row.shape[1]]
    change = float((alone - among).abs().max() / alone.abs().mean())
    if change > PADDING_TOLERANCE:
        raise UnsupportedModelError(
            f"{type(model).__name__} lets padding past its attention mask: what it answered to a short text changed by"
            f" {change:.0%} when the text was padded."
        )


def _made_up(model: Any) -> Any:
    """A copy of a model whose parameters take no memory: each is a vector of random numbers, seen as a matrix in which
    every row is the one before, shifted by one."""
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        numbers = torch.randn(sum(parameter.shape) + 1, generator=generator)
        values = numbers * 2 / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 1 + numbers * 0.1
        shifted = values.to(parameter.dtype).as_strided(parameter.shape, (1,) * parameter.dim())
        memo[id(parameter)] = torch.nn.Parameter(shifted, requires_grad=False)
    return copy.deepcopy(model, memo)


def plain_seams(model: torch.nn.Module) -> None:
    """Point every config at transformers' own eager attention and at experts that can be traced; in place."""
    rotary.install(model)
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    for config in configs.values():
        config.return_dict = True
        if hasattr(config, "_attn_implementation_internal"):
            config._attn_implementation_internal = "eager"
        if hasattr(config, "_experts_implementation_internal"):
            config._experts_implementation_internal = EXPERTS


def tensor_aliases(whole: torch.nn.Module, part: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """Name of a parameter or buffer in `whole` → its names in `part`, which shares them; tied ones have several."""
    groups: dict[int, list[str]] = {}
    for name, tensor in _tensors(part).items():
        groups.setdefault(id(tensor), []).append(name)
    return {name: tuple(groups[id(tensor)]) for name, tensor in _tensors(whole).items() if id(tensor) in groups}


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
