"""`QEFFAutoModel`: any encoder or decoder → the last hidden states of a text's tokens, or one vector for the text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from QEfficient.artifacts import ArtifactStore
from QEfficient.devices import EncoderSession, get_device
from QEfficient.errors import ExportError, OptionError, PromptError, UnsupportedModelError, did_you_mean
from QEfficient.generation.text import TokensOnly
from QEfficient.graph.exporter import Source
from QEfficient.graph.tracing import trace_stateless
from QEfficient.program import (
    CompiledEncoder,
    ExportedProgram,
    ModelFacts,
)
from QEfficient.specs import EncodeSpec, ExportSpec
from QEfficient.transformers.features import (
    FeatureModule,
    Pooling,
    RetainedFeatures,
    check_padding,
    encoder_of,
    find_pooling,
    plain_seams,
    pooling_identity,
    tensor_aliases,
)
from QEfficient.transformers.layers import layers_of
from QEfficient.transformers.loading import ModelSource, open_source
from QEfficient.transformers.models import stages
from QEfficient.transformers.models.auto_model import AutoModel
from QEfficient.transformers.models.compile_keywords import own_options
from QEfficient.transformers.models.inputs import Prompts, by_position, is_tokenizer, read_prompts

logger = logging.getLogger(__name__)

TASK = "features"
DEFAULT_LENGTH, MANY_LENGTHS = 32, 15
BY_POSITION = ("device_ids", "runtime_ai100", "write_io", "dtype")
IGNORED_IN_GENERATE = (*BY_POSITION, "device_id")
"""Options of Qualcomm's library that have no meaning here."""


class QEFFAutoModel(AutoModel[CompiledEncoder, EncoderSession]):
    """An encoder, or a decoder used as one, from its checkpoint to hidden states.

    Of an encoder-decoder it is the encoder; of a model with a head, the model below the head. The model that you pass
    in is never changed: it is copied without its weights.
    """

    def __init__(self, model: Any, pooling: str | Pooling | None = None, **options: Any) -> None:
        self._pooling = find_pooling(pooling)
        self._pooling_identity = pooling_identity(pooling)
        source = open_source(model, transformers.AutoModel, options)
        super().__init__(source, _facts(source))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, pooling: str | Pooling | None = None, **options: Any
    ) -> QEFFAutoModel:
        """Open a hub name, a local folder, `demo`, or a model object. Weights stay where they are until `export`.

        `pooling` makes one vector of a text: mean (also called avg), max, cls, or a function of the last hidden states
        `[b, s, n]` and the attention mask `[b, s]` that PyTorch can trace. `config` is a config object of transformers
        in place of the checkpoint's own, and other options are fields of it.
        """
        return cls(pretrained_model_name_or_path, pooling, **options)

    def _identity(self) -> dict[str, Any]:
        return {"qeff_auto_class": type(self).__name__, "pooling": self._pooling_identity}

    # the verbs

    def export(self, export_dir: str | Path | None = None, use_onnx_subfunctions: bool = False) -> str:
        """Write the ONNX program, or find it; returns the path of the ONNX file."""
        spec = ExportSpec(self._source.dtype, subfunctions=use_onnx_subfunctions, clip_fp16=True, split_tensors=True)
        request = stages.ExportRequest(self._source, spec, self._facts, self._prepare, self._identity(), export_dir)
        self._program = stages.export(request, ArtifactStore(), self.progress)
        self._forget_compiled()
        return str(self._program.onnx_path())

    def _prepare(self) -> Source:
        """The model as it is; a decoder that cannot be traced so, as the retained module runs it."""
        decoder = _is_decoder(self._source.config)
        if decoder and self._encoder()[1]._is_stateful:
            return self._traced(RetainedFeatures)
        try:
            return self._traced(FeatureModule)
        except (ExportError, UnsupportedModelError) as error:
            if not decoder:
                raise
            logger.info("%s keeps its state while it encodes: %s", self._facts.name, error)
            return self._traced(RetainedFeatures)

    def _encoder(self) -> tuple[Any, Any, Any]:
        """A skeleton, the part of it that encodes, and the mode of its fake parameters."""
        skeleton, mode = self._source.skeleton()
        plain_seams(skeleton)
        return skeleton, encoder_of(skeleton), mode

    def _traced(self, kind: type[FeatureModule]) -> Source:
        skeleton, part, mode = self._encoder()
        logger.info("%s: the hidden states are those of its %s.", self._facts.name, type(part).__name__)
        if not _is_decoder(self._source.config):
            check_padding(part)
        module = kind(part, self._pooling)
        graph = module.signature(mode)
        steps = module.steps  # filled by tracing, after which the module has another copy, as it was before
        self.progress("trace")
        traced = trace_stateless(module, graph, self._facts.max_positions)
        return Source(
            module=module,
            graph=graph,
            stem=self._facts.name,
            stream=lambda sink: self._source.weights.stream(skeleton, sink),
            aliases=tensor_aliases(skeleton, module),
            steps=steps,
            notes={"part": type(part).__name__},
            layers=layers_of(module),
            trace=lambda *_: traced,
            transforms=(plain_seams.__name__, kind.__name__),
        )

    def compile(
        self,
        onnx_path: str | Path | None = None,
        compile_dir: str | Path | None = None,
        *,
        seq_len: int | Sequence[int] = DEFAULT_LENGTH,
        batch_size: int = 1,
        device: str | None = None,
        use_onnx_subfunctions: bool = False,
        **options: Any,
    ) -> Path:
        """Compile for `device` (default: environment `QEFF_DEVICE`, else the best one here); exports first if needed.

        Inputs are padded to the smallest `seq_len` that holds them.
        """
        chosen = get_device(device, TASK)
        options.pop("offload_pt_weights", None)  # they were never loaded
        lengths = (seq_len,) if isinstance(seq_len, int) else tuple(seq_len)
        spec = EncodeSpec(batch_size, lengths, own_options(chosen, options, self.compile))
        if len(lengths) >= MANY_LENGTHS:
            logger.warning("%d sequence lengths are compiled; each takes time and room on the device.", len(lengths))
        program = self._program_or(onnx_path, lambda: self.export(use_onnx_subfunctions=use_onnx_subfunctions))
        _check_program(program, spec)
        self._forget_compiled()
        self.progress("compile")
        compiled = stages.compile_encoder(program, spec, chosen, ArtifactStore(), compile_dir)
        self._compiled, self._device = compiled, chosen
        return self._output()

    def generate(
        self,
        *inputs: Any,
        tokenizer: Any = None,
        prompts: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        **options: Any,
    ) -> dict[str, np.ndarray]:
        """`{"output": …}` in float32: `[texts, longest, width]`, or `[texts, width]` with pooling. If needed compiles
        first, for a length that holds the texts.

        Takes texts or token ids as `QEFFAutoModelForCausalLM.generate` does. A row has its hidden states where its
        tokens stand in the input, and zeros where the attention mask is 0 or a shorter text has ended.
        """
        named = {"tokenizer": tokenizer, "prompts": prompts, "input_ids": input_ids, "attention_mask": attention_mask}
        named |= {name: options.pop(name, None) for name in ("prompt", "inputs")}
        _check_generate_options(options)
        of_prompts = 2 if any(map(is_tokenizer, inputs[:2])) else 1
        inputs, _ = by_position(inputs, of_prompts, {name: options.get(name) for name in BY_POSITION})
        given, own_tokenizer = read_prompts(inputs, named)
        values = (*inputs, named["inputs"], named)
        _refuse_pairs(values)
        rows = self._tokenize(given, own_tokenizer)
        self._ensure_loaded(max(map(len, rows)))
        assert self._session is not None
        size = self._session.spec.batch_size
        calls = [rows[first : first + size] for first in range(0, len(rows), size)]
        features = [row for call in calls for row in _encode(self._session, call)]
        pooled = features[0].ndim == 1
        return {"output": np.stack(features) if pooled else _arranged(features, _given_mask(values))}

    def _tokenize(self, given: Prompts, tokenizer: Any) -> list[list[int]]:
        """The ids of each text, which are taken as they are if ids were given."""
        if given.texts is not None:
            tokenizer = tokenizer or self._own_tokenizer()
            rows = [list(tokenizer(text)["input_ids"]) for text in given.texts]
        else:
            rows = [list(ids) for ids in given.ids or ()]
        for number, row in enumerate(rows, 1):
            if not row:
                raise PromptError(f"prompt {number} of {len(rows)} is empty: it has no token.")
        if not rows:
            raise PromptError("there are no prompts: the list is empty.")
        return rows

    def _own_tokenizer(self) -> Any:
        if self._program is not None and self._program.has_tokenizer:
            return transformers.AutoTokenizer.from_pretrained(self._program.folder / "tokenizer")
        return self._source.tokenizer() or TokensOnly()

    def _ensure_loaded(self, longest: int) -> None:
        if self._compiled is None:
            rounded = -(-longest // DEFAULT_LENGTH) * DEFAULT_LENGTH
            most = self._facts.max_positions or rounded
            self.compile(seq_len=max(longest, min(rounded, most)))
        if self._session is None:
            assert self._device is not None and self._compiled is not None
            self._session = self._device.load_encoder(self._compiled)


def _check_program(program: ExportedProgram, spec: EncodeSpec) -> None:
    most = program.model.max_positions
    if program.model.task != TASK:
        raise OptionError(f"{program.folder} holds a program of the kind '{program.model.task}', not '{TASK}'.")
    if most and spec.longest > most:
        raise OptionError(f"seq_len {spec.longest:,} was asked for, but the model has {most:,} positions.")


def _check_generate_options(options: Mapping[str, Any]) -> None:
    known = ("tokenizer", "prompts", "input_ids", "attention_mask", *IGNORED_IN_GENERATE)
    for name in options.keys() - set(known):
        raise OptionError(f"generate does not know the option '{name}'.{did_you_mean(name, known)}")


def _field(values: Sequence[Any], name: str) -> list[list[int]] | None:
    """What the one mapping among `values` has under `name`, as nested lists."""
    for value in values:
        rows = value.get(name) if isinstance(value, Mapping) else None
        if rows is not None:
            rows = rows.tolist() if hasattr(rows, "tolist") else list(rows)
            return rows if rows and isinstance(rows[0], Sequence) else [rows]
    return None


def _refuse_pairs(values: Sequence[Any]) -> None:
    """Pairs of texts are told apart by token types, which the graph does not take."""
    if any(any(row) for row in _field(values, "token_type_ids") or ()):
        raise OptionError("token_type_ids other than 0 (pairs of texts) are not supported: give one text for each row.")


def _given_mask(values: Sequence[Any]) -> np.ndarray | None:
    """The attention mask `[rows, length]` that came with token ids; None without one, or if rows differ in length."""
    rows = _field(values, "attention_mask")
    return np.array(rows, dtype=bool) if rows and len({len(row) for row in rows}) == 1 else None


def _arranged(features: Sequence[np.ndarray], mask: np.ndarray | None) -> np.ndarray:
    """Hidden states of rows of different lengths in one array, each where `mask` has its tokens (default: first)."""
    if mask is None:
        lengths = np.array([len(row) for row in features])
        mask = np.arange(lengths.max()) < lengths[:, None]
    output = np.zeros((*mask.shape, features[0].shape[-1]), np.float32)
    for line, seen, row in zip(output, mask, features, strict=True):
        line[seen] = row
    return output


def _encode(session: EncoderSession, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """One call; the hidden states of each row, or its vector."""
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.zeros(mask.shape, np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    features = session.encode(ids, mask)
    pooled = features.ndim == 2
    return [row if pooled else row[:length] for row, length in zip(features, lengths, strict=True)]


def _facts(source: ModelSource) -> ModelFacts:
    """What the rest of the way needs to know; refuses what `AutoModel` does not make."""
    config = source.config
    name = type(source.live.base_model).__name__ if source.live is not None else _class_name(config)
    if not name:
        raise UnsupportedModelError(
            f"transformers has no AutoModel for '{config.model_type}', the type of {source.name}."
        )
    text = _text_config(config)
    most = getattr(text, "max_position_embeddings", None)
    architectures = getattr(config, "architectures", None) or [name]
    return ModelFacts(
        name=name,
        architecture=architectures[0],
        model_type=config.model_type,
        task=TASK,
        vocab_size=int(getattr(text, "vocab_size", None) or 0),
        max_positions=most if isinstance(most, int) and most > 0 else None,
        pad_token_id=getattr(text, "pad_token_id", None),
        source=source.name,
    )


def _text_config(config: Any) -> Any:
    """The part of a composite config that is about text; all of it where several parts are."""
    try:
        return config.get_text_config()
    except ValueError:
        return config


def _is_decoder(config: Any) -> bool:
    """Whether each token sees earlier ones only."""
    kind, text = config.model_type, _text_config(config)
    both_ways = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(text, "use_bidirectional_attention", None)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not both_ways


def _class_name(config: Any) -> str:
    remote = (getattr(config, "auto_map", None) or {}).get("AutoModel", "")
    mapped = MODEL_MAPPING_NAMES.get(config.model_type) or remote.rpartition(".")[2]
    return str(mapped[0] if isinstance(mapped, tuple) else mapped)
