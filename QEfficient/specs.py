"""What is asked: records, validated when they are made. "auto" never survives construction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from QEfficient.errors import OptionError, PromptError, did_you_mean

DTYPES = ("float32", "float16", "bfloat16")


def check_option_names(given: Mapping[str, Any], record: type, where: str) -> None:
    """Refuse keys that are no fields of `record`, with a suggestion."""
    known = [f.name for f in fields(record)]
    for name in given:
        if name not in known:
            raise OptionError(f"{where} does not know the option '{name}'.{did_you_mean(name, known)}")


@dataclass(frozen=True)
class SamplerSpec:
    """A graph that chooses the next tokens itself."""

    max_top_k_ids: int = 512
    """Among so many of the likeliest tokens; as many random numbers come in."""
    return_pdfs: bool = False
    """Also gives every token's chance."""
    guided: bool = False
    """Is told which tokens may be said."""

    def __post_init__(self) -> None:
        _check_positive("max_top_k_ids", self.max_top_k_ids)


BLOCKING_MODES = tuple(
    f"{b}{h}{q}{kv}" for kv in ("kv", "") for q in ("q", "") for h in ("h", "") for b in ("b", "") if b + h + q + kv
)


@dataclass(frozen=True)
class BlockingSpec:
    """Attention that is computed in blocks, each of which fits near the compute units."""

    mode: str = "hqkv"
    """Along what: b(atch), h(eads), q(ueries), k(eys and) v(alues). Empty: everything fits, nothing is cut."""
    num_kv_blocks: int | None = None
    num_q_blocks: int | None = None
    head_block_size: int | None = None
    """Heads of queries that are computed together."""
    num_batch_blocks: int | None = None

    def __post_init__(self) -> None:
        if self.mode and self.mode not in BLOCKING_MODES:
            raise OptionError(
                f"blocking_mode is {self.mode!r}; it can have b, h, q and kv, in this order."
                f"{did_you_mean(str(self.mode), BLOCKING_MODES)}"
            )
        for name, axis in _BLOCK_AXES.items():
            count = getattr(self, name)
            if count is not None:
                _check_positive(name, count)
                if axis not in self.axes:
                    raise OptionError(f"{name} goes with a blocking_mode that has '{axis}', but it is '{self.mode}'.")

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the mode."""
        letters = self.mode.removesuffix("kv")
        return (*letters, "kv") if letters != self.mode else tuple(letters)

    @property
    def is_automatic(self) -> bool:
        """Whether sizes are still to be chosen."""
        return bool(self.mode) and all(getattr(self, name) is None for name in _BLOCK_AXES)


_BLOCK_AXES = {"num_kv_blocks": "kv", "num_q_blocks": "q", "head_block_size": "h", "num_batch_blocks": "b"}


PROJECTED = "turbo"
"""What Qualcomm's library calls a target with projections."""


@dataclass(frozen=True)
class ProjectionSpec:
    """Projections behind the last layer, each of which guesses a token further ahead than the output embedding says."""

    heads: int
    layers: int
    """Of each."""


@dataclass(frozen=True)
class LatentSpec:
    """States of latent attention by the names of what they hold: a small vector of each token, and its rotary part."""

    absorption: bool = False
    """Attention on these vectors themselves; otherwise on the keys and values that are made from them in each run."""
    fused: bool = True
    """What makes keys is multiplied into the projection of queries before, and not into each query."""


@dataclass(frozen=True)
class ExportSpec:
    """Everything that changes the exported graph, besides the model itself."""

    dtype: str = "float32"
    continuous_batching: bool = False
    subfunctions: bool = False
    """Emit each decoder layer as an ONNX function, identical layers sharing one."""
    retain_full_kv: bool = False
    """Give sliding and chunked layers `ctx_len` slots; otherwise their buffers roll."""
    kv_cache_prefix: str | None = None
    clip_fp16: bool = False
    """Clip float constants to the range of float16."""
    split_tensors: bool = False
    """Split external data into several files (see `graph.passes`)."""
    several_logits: bool = False
    """Logits of as many last tokens as `num_logits_to_keep` is long: for the target of speculative decoding."""
    compute_context: bool = False
    """Attention reads as many slots as `comp_ctx_lengths` is long, at most `ctx_len`."""
    projections: ProjectionSpec | None = None
    """Each of these logits comes with those of the tokens behind: for a target that guesses by itself."""
    sampler: SamplerSpec | None = None
    kv_head_copies: int = 1
    """How often the state holds each head of keys and values: so that several devices can share its heads evenly."""
    blocking: BlockingSpec | None = None
    """None: attention over all keys at once."""
    latent: LatentSpec | None = None

    def __post_init__(self) -> None:
        if self.blocking is not None and self.blocking.is_automatic:
            raise OptionError(
                f"blocking_mode '{self.blocking.mode}' needs sizes, which only a geometry tells: call compile() rather"
                f" than export(), or give {', '.join(_BLOCK_AXES)}."
            )
        if self.blocking is not None and not self.blocking.mode:
            object.__setattr__(self, "blocking", None)
        if self.dtype not in DTYPES:
            raise OptionError(
                f"dtype '{self.dtype}' is not one of {', '.join(DTYPES)}.{did_you_mean(self.dtype, DTYPES)}"
            )
        if self.kv_cache_prefix is not None and not self.kv_cache_prefix.isalnum():
            raise OptionError(f"kv_cache_prefix '{self.kv_cache_prefix}' may hold letters and digits only.")


def _check_positive(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} must be a positive whole number, not {value!r}.")


def check_compute_contexts(name: str, lengths: Sequence[int], ctx_len: int) -> None:
    """Refuse numbers of slots that there are not."""
    for length in lengths:
        _check_positive(f"each of {name}", length)
        if length > ctx_len:
            raise OptionError(f"{name} has {length:,}, which is more than ctx_len {ctx_len:,}.")


@dataclass(frozen=True)
class Specialization:
    """One assignment of numbers to the symbolic dimensions of a graph."""

    name: str
    symbols: Mapping[str, int]


@dataclass(frozen=True)
class CompileSpec:
    """The geometry that a program is compiled for, and what the device is told beyond it."""

    batch_size: int = 1
    prefill_seq_len: int = 32
    ctx_len: int = 128
    full_batch_size: int | None = None
    """With continuous batching: how many sequences decode together."""
    kv_cache_batch_size: int | None = None
    """With continuous batching: how many cache slots there are; default `full_batch_size`, which a program that only
    does prefill needs no other number than this for."""
    device_options: Mapping[str, Any] = field(default_factory=dict)
    """Options that only some device understands (`num_cores`, `mxfp6_matmul`, …), checked by that device."""
    num_speculative_tokens: tuple[int, ...] = ()
    """How many tokens may be tried ahead in one run: a decoding shape for each number."""
    comp_ctx_lengths_prefill: tuple[int, ...] = ()
    comp_ctx_lengths_decode: tuple[int, ...] = ()
    """How many slots attention may read: a shape for each number, of which a run takes the smallest that suffices."""
    prefill_only: bool | None = None
    """True: only the shapes of prefill; False: only those of decoding."""
    verbatim: tuple[Specialization, ...] = ()
    """Shapes that take the place of those that follow from the geometry, which says what sessions can do with them."""

    def __post_init__(self) -> None:
        shapes = (Specialization(**shape) if isinstance(shape, Mapping) else shape for shape in self.verbatim)
        object.__setattr__(self, "verbatim", tuple(shapes))  # as records hold them
        for name in ("batch_size", "prefill_seq_len", "ctx_len", "full_batch_size", "kv_cache_batch_size"):
            value = getattr(self, name)
            if value is None and name in ("full_batch_size", "kv_cache_batch_size"):
                continue
            _check_positive(name, value)
        if self.prefill_seq_len > self.ctx_len:
            raise OptionError(
                f"prefill_seq_len {self.prefill_seq_len:,} is larger than ctx_len {self.ctx_len:,}."
                " Lower the one or raise the other."
            )
        if self.kv_cache_batch_size and not self.full_batch_size and self.prefill_only is not True:
            raise OptionError(
                f"kv_cache_batch_size {self.kv_cache_batch_size} needs continuous batching: give full_batch_size too,"
                " how many sequences decode together, or prefill_only=True for a program in which none does."
            )
        if self.full_batch_size and self.kv_cache_batch_size and self.kv_cache_batch_size < self.full_batch_size:
            raise OptionError(
                f"kv_cache_batch_size {self.kv_cache_batch_size} is smaller than"
                f" full_batch_size {self.full_batch_size}."
            )
        self._check_speculation()
        self._check_compute_contexts()

    def _check_speculation(self) -> None:
        for count in self.num_speculative_tokens:
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise OptionError(f"num_speculative_tokens must be whole numbers from 0 on, not {count!r}.")
        object.__setattr__(self, "num_speculative_tokens", tuple(sorted(set(self.num_speculative_tokens))))
        longest = max(self.num_speculative_tokens, default=0) + 1
        if self.prefill_seq_len < longest:
            raise OptionError(
                f"prefill_seq_len {self.prefill_seq_len} is too short to try {longest - 1} tokens ahead:"
                f" it must be at least {longest}."
            )

    def _check_compute_contexts(self) -> None:
        for name in ("comp_ctx_lengths_prefill", "comp_ctx_lengths_decode"):
            check_compute_contexts(name, getattr(self, name), self.ctx_len)
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        if self.comp_ctx_lengths_decode and len(self.num_speculative_tokens) > 1:
            raise NotImplementedError(
                "several num_speculative_tokens were asked for together with comp_ctx_lengths_decode, of which each run"
                " can have one only. Give one number of tokens, or leave the lengths out."
            )

    @property
    def continuous_batching(self) -> bool:
        return self.full_batch_size is not None or self.kv_cache_batch_size is not None

    @property
    def batching_asked(self) -> str:
        """The option that asks for continuous batching, and its number: for messages."""
        name = "full_batch_size" if self.full_batch_size else "kv_cache_batch_size"
        return f"{name} {getattr(self, name)}"

    @property
    def slots(self) -> int:
        """How many sequences have a place in the cache."""
        return self.kv_cache_batch_size or self.full_batch_size or self.batch_size

    @property
    def decode_rows(self) -> int:
        return self.full_batch_size or self.batch_size

    @property
    def prefill_rows(self) -> int:
        """Rows of one prefill call: one with continuous batching, unless prefill and decode share one shape."""
        return self.decode_rows if not self.continuous_batching or self.prefill_seq_len == 1 else 1

    @property
    def decode_lengths(self) -> tuple[int, ...]:
        """How many tokens of each sequence a decoding run takes: a shape for each."""
        return tuple(count + 1 for count in self.num_speculative_tokens) or (1,)

    def specializations(self, windows: Mapping[str, int] | None = None) -> tuple[Specialization, ...]:
        """Those of prefill and of decoding; one where both have the same shape. `windows` sizes the rolling buffers."""
        if self.verbatim:
            return self.verbatim
        rolling = {symbol: min(size, self.ctx_len) for symbol, size in (windows or {}).items()}
        shared = self.prefill_seq_len == 1 and self.decode_lengths == (1,)
        entries: list[tuple[str, dict[str, int]]] = []
        if shared or self.prefill_only is not False:
            name = "Decode" if self.prefill_only is False else "Prefill"
            symbols = {**self._symbols(self.prefill_rows, self.prefill_seq_len, rolling), **self._only_prefill()}
            entries += [(name, read) for read in _reading(symbols, self.comp_ctx_lengths_prefill)]
        if not shared and self.prefill_only is not True:
            for length in self.decode_lengths:
                symbols = self._symbols(self.decode_rows, length, rolling)
                if self.num_speculative_tokens:
                    symbols["num_logits_to_keep"] = length
                entries += [("Decode", read) for read in _reading(symbols, self.comp_ctx_lengths_decode)]
        return _numbered(entries)

    def _symbols(self, rows: int, length: int, rolling: Mapping[str, int]) -> dict[str, int]:
        symbols = {"batch_size": rows, "seq_len": length, "ctx_len": self.ctx_len, **rolling}
        return {**symbols, "full_batch_size": self.slots} if self.continuous_batching else symbols

    def _only_prefill(self) -> dict[str, int]:
        symbols = {"full_batch_exec_size": self.prefill_rows} if self.continuous_batching else {}
        return {**symbols, "num_logits_to_keep": 1} if self.num_speculative_tokens else symbols


def _reading(symbols: Mapping[str, int], lengths: Sequence[int]) -> list[dict[str, int]]:
    """One shape for each number of slots that attention may read."""
    return [{**symbols, "comp_ctx_lengths": length} for length in lengths] or [dict(symbols)]


def _numbered(entries: Sequence[tuple[str, Mapping[str, int]]]) -> tuple[Specialization, ...]:
    """Names that occur more than once get numbers."""
    counts = Counter(name for name, _ in entries)
    seen: Counter[str] = Counter()
    result = []
    for name, symbols in entries:
        result.append(Specialization(f"{name}_{seen[name]}" if counts[name] > 1 else name, symbols))
        seen[name] += 1
    return tuple(result)


@dataclass(frozen=True)
class EncodeSpec:
    """The shapes that an encoder is compiled for, and what the device is told beyond them."""

    batch_size: int = 1
    seq_lens: tuple[int, ...] = (32,)
    """Every length that a call may have; inputs are padded to the smallest that holds them."""
    device_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_positive("batch_size", self.batch_size)
        if not self.seq_lens:
            raise OptionError("seq_len must be a positive whole number or several of them; the list is empty.")
        for length in self.seq_lens:
            _check_positive("seq_len", length)
        if len(set(self.seq_lens)) != len(self.seq_lens):
            raise OptionError(f"seq_len has a length twice: {', '.join(map(str, self.seq_lens))}.")

    @property
    def longest(self) -> int:
        return max(self.seq_lens)

    def padded_length(self, length: int) -> int:
        """The smallest compiled length that holds `length` tokens."""
        fitting = [compiled for compiled in self.seq_lens if compiled >= length]
        if not fitting:
            raise PromptError(
                f"the prompt has {length:,} tokens, but the program was compiled for seq_len {self.longest:,}."
                " Compile again with a larger seq_len."
            )
        return min(fitting)

    def specializations(self) -> tuple[Specialization, ...]:
        """One entry for each length, in the order in which they were given."""
        several = len(self.seq_lens) > 1
        return tuple(
            Specialization(
                f"Embedding_{i}" if several else "Embedding", {"batch_size": self.batch_size, "seq_len": length}
            )
            for i, length in enumerate(self.seq_lens)
        )


LARGEST_LOGPROBS = 100
LARGEST_N = 128
LARGEST_NUMBER = 1e15
"""Divided by the lowest temperature it is still a number of single precision."""

LogitBias = Mapping[int, float] | tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen and when a request ends. The default is greedy; docs/sampling.md has the order."""

    max_new_tokens: int | None = None
    """None: as many as the context holds."""
    temperature: float = 0.0
    """0: the likeliest token, exactly; what narrows the choice has no effect then."""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Of every token of the prompt and of the answer, as in transformers."""
    presence_penalty: float = 0.0
    """Of every token of the answer, as is the next one."""
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    """Ends the request, besides the model's own end-of-sequence ids."""
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_new_tokens: int = 0
    """Before so many no token that would end the request is chosen."""
    max_length: int | None = None
    """Most tokens of prompt and answer together; `max_new_tokens` goes before it."""
    typical_p: float = 1.0
    logit_bias: LogitBias = ()
    """Token → what is added to its logit. Kept as sorted pairs; ids outside the vocabulary have no effect."""
    logprobs: int | None = None
    """Log-probabilities of the chosen tokens, and of so many of the likeliest."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens."""
    n: int = 1
    """How many answers; each has its own randomness."""

    def __post_init__(self) -> None:
        self._freeze()
        for name in ("max_new_tokens", "max_length", "seed", "logprobs", "prompt_logprobs"):
            _check_whole(name, getattr(self, name), optional=True)
        for name in ("top_k", "min_new_tokens", "n"):
            _check_whole(name, getattr(self, name))
        for name in _REAL:
            _check_finite(name, getattr(self, name))
        for token in (*self.stop_token_ids, *dict(self.logit_bias)):
            _check_whole("a token id of stop_token_ids or logit_bias", token)
        for token, bias in dict(self.logit_bias).items():
            _check_finite(f"the logit_bias of token {token}", bias)
        for text in self.stop:
            if not isinstance(text, str):
                raise OptionError(f"stop must be a text or several of them, but {text!r} is among them.")
        self._check_ranges()

    def _freeze(self) -> None:
        """Lists become tuples, and a mapping sorted pairs: records are compared and hashed."""
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        try:
            pairs = tuple(sorted(dict(self.logit_bias or ()).items()))
        except (TypeError, ValueError):
            raise OptionError(f"logit_bias must give numbers by token id, not {self.logit_bias!r}.") from None
        object.__setattr__(self, "logit_bias", pairs)

    def _check_ranges(self) -> None:
        checks = (
            (self.max_new_tokens is None or self.max_new_tokens >= 1, "max_new_tokens must be at least 1"),
            (self.max_length is None or self.max_length >= 1, "max_length must be at least 1"),
            (self.min_new_tokens >= 0, "min_new_tokens must not be negative"),
            (self.temperature >= 0, "temperature must not be negative"),
            (self.top_k >= 0, "top_k must not be negative (0 switches it off)"),
            (0 <= self.top_p <= 1, "top_p must lie in [0, 1]"),
            (0 <= self.min_p <= 1, "min_p must lie in [0, 1]"),
            (0 < self.typical_p <= 1, "typical_p must lie in (0, 1]"),
            (0.01 <= self.repetition_penalty <= 100, "repetition_penalty must lie in [0.01, 100]"),
            (1 <= self.n <= LARGEST_N, f"n must lie in [1, {LARGEST_N}]"),
            (all(token >= 0 for token in self.stop_token_ids), "stop_token_ids must not be negative"),
            (all(token >= 0 for token in dict(self.logit_bias)), "token ids of logit_bias must not be negative"),
        )
        for fine, sentence in checks:
            if not fine:
                raise OptionError(f"{sentence}.")
        for name in ("logprobs", "prompt_logprobs"):
            if not 0 <= (getattr(self, name) or 0) <= LARGEST_LOGPROBS:
                raise OptionError(f"{name} must lie in [0, {LARGEST_LOGPROBS}], not {getattr(self, name)}.")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise OptionError(
                f"min_new_tokens {self.min_new_tokens:,} is larger than max_new_tokens {self.max_new_tokens:,}."
            )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


_REAL = (
    "temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    try:
        return tuple(value if value is not None else ())
    except TypeError:
        raise OptionError(f"{name} must be a list, not {value!r}.") from None


def _check_whole(name: str, value: Any, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionError(f"{name} must be a whole number, not {value!r}.")


def _check_finite(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not abs(float(value)) <= LARGEST_NUMBER:
        raise OptionError(f"{name} must be a finite number, not {value!r}.")
