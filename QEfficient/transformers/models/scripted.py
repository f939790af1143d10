"""What scripts of Qualcomm's library read of a causal language model and call beside the four verbs."""

from __future__ import annotations

import functools
import logging
from abc import ABC
from collections.abc import Mapping

from QEfficient.generation.opened import OpenedProgram
from QEfficient.program import CompiledProgram, ModelFacts
from QEfficient.specs import CompileSpec, ExportSpec
from QEfficient.transformers.loading import ModelSource
from QEfficient.transformers.models import stages
from QEfficient.transformers.models.auto_model import AutoModel
from QEfficient.transformers.models.card_options import CardConfig, Shapes, shaped
from QEfficient.transformers.projections import ProjectionFiles
from QEfficient.transformers.signature import causal_signature
from QEfficient.transformers.transform import retain

logger = logging.getLogger(__name__)


class ScriptedModel(AutoModel[CompiledProgram, OpenedProgram], ABC):
    """A causal language model, as far as it needs no verb."""

    def __init__(
        self, source: ModelSource, facts: ModelFacts, card: CardConfig, projections: ProjectionFiles | None
    ) -> None:
        super().__init__(source, facts)
        self._card, self._projections = card, projections
        self.continuous_batching = False
        self._said: set[str] = set()

    @property
    def num_layers(self) -> int:
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def is_tlm(self) -> bool:
        return self._card.speculative_target

    @property
    def ccl_enabled(self) -> bool:
        return self._card.compute_context

    @property
    def comp_ctx_lengths_prefill(self) -> list[int] | None:
        """How many slots attention may read in prefill, of the compiled program; None where it reads all."""
        return list(self._compiled.spec.comp_ctx_lengths_prefill) or None if self._compiled else None

    @property
    def comp_ctx_lengths_decode(self) -> list[int] | None:
        """The same of decoding."""
        return list(self._compiled.spec.comp_ctx_lengths_decode) or None if self._compiled else None

    def check_and_get_num_speculative_tokens(
        self, num_speculative_tokens: int | list[int] | None, prefill_seq_len: int
    ) -> int | list[int] | None:
        """How many tokens `compile` would let be tried ahead; refuses what it would refuse."""
        spec = CompileSpec(1, prefill_seq_len, prefill_seq_len)
        found = self._trying(num_speculative_tokens, spec).num_speculative_tokens
        return list(found) if len(found) > 1 else next(iter(found), None)

    def build_prefill_specialization(
        self,
        prefill_seq_len: int = 32,
        ctx_len: int = 128,
        batch_size: int = 1,
        kv_cache_batch_size: int | None = None,
        full_batch_size: int | None = None,
    ) -> dict[str, int]:
        """The symbols of a run of prefill, as `compile` would have them."""
        slots = full_batch_size, self._slots(kv_cache_batch_size, batch_size)
        ahead = (0,) if self.is_tlm else ()  # of one token logits are wanted, however many are tried when decoding
        spec = CompileSpec(
            batch_size, prefill_seq_len, ctx_len, *slots, num_speculative_tokens=ahead, prefill_only=True
        )
        stages.check_batching(self.continuous_batching, spec)
        (entry,) = spec.specializations(self._program_windows())
        return dict(entry.symbols)

    def build_decode_specialization(
        self,
        prefill_seq_len: int = 32,
        ctx_len: int = 128,
        batch_size: int = 1,
        kv_cache_batch_size: int | None = None,
        full_batch_size: int | None = None,
        num_speculative_tokens: int | None = None,
    ) -> dict[str, int] | None:
        """The same of a decoding run; None where it has the shape of prefill."""
        slots = full_batch_size, self._slots(kv_cache_batch_size, batch_size)
        spec = CompileSpec(batch_size, prefill_seq_len, ctx_len, *slots)
        stages.check_batching(self.continuous_batching, spec)
        entries = self._trying(num_speculative_tokens, spec).specializations(self._program_windows())
        decoding = (entry for entry in entries if entry.name == "Decode")
        return next((dict(entry.symbols) for entry in decoding), None)

    def _trying(self, num_speculative_tokens: int | list[int] | None, spec: CompileSpec) -> CompileSpec:
        """`spec` with so many tokens ahead, and nothing else that the model was loaded for."""
        target = CardConfig(self.is_tlm, projections=self._card.projections)
        return shaped(spec, Shapes(self._ahead(num_speculative_tokens)), target)

    def _ahead(self, num_speculative_tokens: int | list[int] | None) -> int | list[int] | None:
        """How many tokens can be tried ahead: as is said, else as many as the program guesses, if it does."""
        if num_speculative_tokens is None and self._projections is not None:
            return self._projections.spec.heads
        return num_speculative_tokens

    def _slots(self, kv_cache_batch_size: int | None, batch_size: int) -> int | None:
        """How many slots are wanted; without continuous batching there are as many as rows."""
        if self.continuous_batching:
            return kv_cache_batch_size
        if kv_cache_batch_size not in (None, batch_size):
            self._say_once(
                f"kv_cache_batch_size={kv_cache_batch_size} has no effect: the model was loaded without continuous"
                f" batching, so there are as many slots as batch_size says, {batch_size}."
            )
        return None

    @functools.cached_property
    def _windows(self) -> Mapping[str, int]:
        """Symbol → slots of every buffer that rolls, unless asked to keep the whole context. It is observed, layer by
        layer; no config says it for every model."""
        retained = retain(self._source.skeleton()[0])
        spec = ExportSpec(dtype=self._source.dtype)
        return causal_signature(retained.plans, spec, retained.vocab_size, self._source.dtype, retained.context).windows

    def _program_windows(self) -> Mapping[str, int]:
        return self._windows if self._program is None else self._program.graphs["lm"].spec.windows

    def _keeps_all(self, retain_full_kv: bool | None) -> bool:
        """Whether a program is another one if every layer has `ctx_len` slots: then, if that was asked for."""
        if not retain_full_kv or self._windows:
            return bool(retain_full_kv)
        self._say_once(
            f"retain_full_kv=True has no effect: no layer of {self.model_name} has a buffer that rolls, so all of them"
            " keep the whole context anyway."
        )
        return False

    def _say_once(self, sentence: str) -> None:
        if sentence and sentence not in self._said:
            self._said.add(sentence)
            logger.warning("%s", sentence)
