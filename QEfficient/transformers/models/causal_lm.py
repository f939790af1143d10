"""`QEFFAutoModelForCausalLM`: from_pretrained → export → compile → generate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import transformers

from QEfficient.artifacts import ArtifactStore
from QEfficient.devices import Device, Watch, get_device
from QEfficient.errors import OptionError, did_you_mean
from QEfficient.generation.decoding import Decoding
from QEfficient.generation.engine import Engine
from QEfficient.generation.metrics import CloudAI100ExecInfo, average, exec_info
from QEfficient.generation.opened import OpenedProgram
from QEfficient.generation.request import RequestOutput
from QEfficient.generation.script_options import chosen_params
from QEfficient.generation.text import MaskMaker, TextGenerator, TokensOnly, check_streamer
from QEfficient.graph.exporter import Source
from QEfficient.program import GraphSpec
from QEfficient.specs import BlockingSpec, CompileSpec, ExportSpec, SamplingParams
from QEfficient.transformers.checkpoint import Sink
from QEfficient.transformers.latent import AbsorbedWeights
from QEfficient.transformers.layers import layers_of
from QEfficient.transformers.loading import ModelSource, open_source
from QEfficient.transformers.models import stages
from QEfficient.transformers.models.card_options import (
    Shapes,
    check_device,
    graph_options,
    read_qaic_config,
    shaped,
    sharing,
    with_compile_config,
)
from QEfficient.transformers.models.causal_facts import causal_facts, layers_in
from QEfficient.transformers.models.compile_keywords import own_options
from QEfficient.transformers.models.decoding_options import compiled_program, read_decoding
from QEfficient.transformers.models.inputs import Prompts, by_position, read_prompts
from QEfficient.transformers.models.projected import open_projections
from QEfficient.transformers.models.sampling_options import Choosing, read_choosing
from QEfficient.transformers.models.script_keywords import PROMPTS_FILE, ScriptKeywords, take_keywords
from QEfficient.transformers.models.scripted import ScriptedModel
from QEfficient.transformers.models.verbatim_shapes import check_symbols, shapes_of, verbatim_spec
from QEfficient.transformers.retained_module import RetainedModule, width_of
from QEfficient.transformers.signature import causal_signature, torch_dtype
from QEfficient.transformers.transform import (
    check_steered,
    retain,
    transform_names,
    weight_aliases,
    with_copied_heads,
    with_latent_states,
)

LATER_OPTIONS = ("decode_only",)
"""Options of Qualcomm's library that nothing of ours does; refused when they are used."""
WITHOUT_EFFECT = (
    "dynamo",
    "enable_chunking",
    "layerwise",
    "layerwise_window_size",
    "moe_prefill_packed_chunk_size",
    "num_cores",
    "offload_pt_weights",
    "prefill_only",
    "prefill_seq_len",
)
"""Of `export`: one graph serves both phases, every chunk reads what is there, weights are always streamed, and programs
are always traced by `torch.export`."""


class QEFFAutoModelForCausalLM(ScriptedModel):
    """A causal language model, from its checkpoint to tokens.

    The model that you pass in is never changed: it is copied without its weights, and the copy is transformed.
    """

    def __init__(
        self,
        model: Any,
        continuous_batching: bool = False,
        qaic_config: Mapping[str, Any] | None = None,
        max_seq_len_cached: int | None = None,
        **options: Any,
    ) -> None:
        _check_batching(continuous_batching)
        card = read_qaic_config(qaic_config)
        opened = isinstance(model, ModelSource)
        source = model if opened else open_source(model, transformers.AutoModelForCausalLM, options)
        projections = open_projections(card, source)
        if projections is not None and source.live is None:
            source.config.speculative_config = dict(projections.config)  # where scripts read it
        super().__init__(source, causal_facts(source), card, projections)
        self.continuous_batching = continuous_batching
        self.max_seq_len_cached = max_seq_len_cached
        self._exported_as: dict[str, Any] | None = None  # the options of the last export

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        continuous_batching: bool = False,
        qaic_config: Mapping[str, Any] | None = None,
        max_seq_len_cached: int | None = None,
        layerwise: bool = False,
        **options: Any,
    ) -> QEFFAutoModelForCausalLM:
        """Open a hub name, a local folder, `demo`, or a model object. Weights stay where they are until `export`.

        `layerwise` needs nothing here: weights are always streamed. `config` is a config object of transformers in
        place of the checkpoint's own, and other options are fields of it.
        """
        if options.pop("full_batch_size", None):
            continuous_batching = True
        return cls(pretrained_model_name_or_path, continuous_batching, qaic_config, max_seq_len_cached, **options)

    def _identity(self) -> dict[str, Any]:
        own = {"qeff_auto_class": type(self).__name__, "max_seq_len_cached": self.max_seq_len_cached}
        return own if self._projections is None else {**own, "projections": self._projections.identity()}

    # the verbs

    def export(
        self,
        export_dir: str | Path | None = None,
        prefill_only: bool | None = False,
        prefill_seq_len: int | None = None,
        num_cores: int = 16,
        moe_prefill_packed_chunk_size: int = 256,
        layerwise: bool = False,
        layerwise_window_size: int = 1,
        kv_cache_prefix: str | None = None,
        dynamo: bool = False,
        *,
        use_onnx_subfunctions: bool = False,
        retain_full_kv: bool = False,
        compute_context: bool = False,
        kv_head_copies: int = 1,
        blocking: BlockingSpec | None = None,
        **options: Any,
    ) -> str:
        """Write the ONNX program, or find it; returns the path of the ONNX file.

        From `prefill_only` to `layerwise_window_size`, and `dynamo`: as `WITHOUT_EFFECT` says.
        `compute_context`: attention reads as much as an input says (compile's `comp_ctx_lengths_…` need it).
        `kv_head_copies`: how often the state holds each head of keys and values.
        `blocking`: attention in blocks; by default as `qaic_config` says.
        """
        _refuse_others(options)
        asked = {
            "dtype": self._source.dtype,
            "export_dir": export_dir,
            "use_onnx_subfunctions": use_onnx_subfunctions,
            "retain_full_kv": retain_full_kv,
            "kv_cache_prefix": kv_cache_prefix,
            "compute_context": compute_context,
            "kv_head_copies": kv_head_copies,
            "blocking": blocking,
            "latent": self._card.latent,
        }
        return self._export(asked, lambda graph: None)

    def _export(self, asked: Mapping[str, Any], check_graph: Callable[[GraphSpec], None]) -> str:
        """`export` with its keywords; what the program is for may refuse the graph before it is traced."""
        spec = ExportSpec(
            dtype=asked["dtype"],
            continuous_batching=self.continuous_batching,
            subfunctions=asked["use_onnx_subfunctions"],
            retain_full_kv=self._keeps_all(asked["retain_full_kv"]),
            kv_cache_prefix=asked["kv_cache_prefix"],
            several_logits=self._card.speculative_target,
            compute_context=asked["compute_context"] or self._card.compute_context,
            kv_head_copies=asked["kv_head_copies"],
            projections=None if self._projections is None else self._projections.spec,
            sampler=self._card.sampler,
            blocking=asked["blocking"] or self._card.blocking,
            latent=asked["latent"],
        )
        make = partial(self._prepare, spec, check_graph)
        folder = asked["export_dir"]
        request = stages.ExportRequest(self._source, spec, self._facts, make, self._identity(), folder)
        self._program = stages.export(request, ArtifactStore(), self.progress)
        self._exported_as = {**asked, "compute_context": spec.compute_context}
        self._forget_compiled()
        return str(self._program.onnx_path())

    def _prepare(self, spec: ExportSpec, check_graph: Callable[[GraphSpec], None]) -> Source:
        skeleton, mode = replace(self._source, dtype=spec.dtype).skeleton()
        retained = with_copied_heads(retain(skeleton, rolling=not spec.retain_full_kv), spec.kv_head_copies)
        check_steered(retained, spec)
        with_latent_states(retained, spec.latent)
        if isinstance(retained, RetainedModule):
            retained.sampler, retained.blocking = spec.sampler, spec.blocking
            if self._projections is not None:
                retained.projections = self._projections.skeleton(width_of(skeleton), torch_dtype(spec.dtype), mode)
        graph = causal_signature(retained.plans, spec, retained.vocab_size, spec.dtype, retained.context)
        check_graph(graph)
        return Source(
            module=retained,
            graph=graph,
            stem=self._facts.name,
            stream=partial(self._stream, skeleton),
            aliases=weight_aliases(retained),
            steps=retained.steps,
            notes=retained.notes(),
            layers=layers_of(retained),
            transforms=transform_names(retained, spec),
        )

    def _stream(self, skeleton: Any, sink: Sink) -> None:
        self._source.weights.stream(skeleton, AbsorbedWeights(skeleton, sink))
        if self._projections is not None:
            self._projections.stream(sink, "projections")

    def compile(
        self,
        onnx_path: str | Path | None = None,
        compile_dir: str | Path | None = None,
        *,
        prefill_seq_len: int = 32,
        ctx_len: int = 128,
        batch_size: int = 1,
        full_batch_size: int | None = None,
        kv_cache_batch_size: int | None = None,
        device: str | None = None,
        use_onnx_subfunctions: bool | None = None,
        retain_full_kv: bool | None = None,
        kv_cache_prefix: str | None = None,
        num_speculative_tokens: int | list[int] | None = None,
        comp_ctx_lengths_prefill: list[int] | str | None = None,
        comp_ctx_lengths_decode: list[int] | str | None = None,
        prefill_only: bool | None = None,
        specializations: Sequence[Mapping[str, Any]] | None = None,
        qaic_config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Path:
        """Compile for `device` (default: environment `QEFF_DEVICE`, else the best here); exports first if needed.

        `num_speculative_tokens`: how many tokens can be tried ahead in one run. `comp_ctx_lengths_…`: how many slots
        attention may read, of which each run takes what it needs. `prefill_only`: True or False for a program that
        does one of both phases (docs/cloud_ai_100.md). `specializations`: the shapes word for word, symbols and sizes,
        in place of all that follows from these numbers.

        `use_onnx_subfunctions`, `retain_full_kv`, `kv_cache_prefix`, blocks of attention: where nothing is said, as the
        last export was. `qaic_config`: as in `from_pretrained`, beside what was said there, for this program.
        """
        chosen, card = get_device(device), with_compile_config(self._card, qaic_config, onnx_path is not None)
        _refuse_later(options)
        for harmless in WITHOUT_EFFECT:
            if harmless != "num_cores":
                options.pop(harmless, None)
        own = own_options(chosen, options, self.compile)
        if specializations is not None:
            spec = verbatim_spec(specializations, options)
            shapes = shapes_of(spec)
        else:
            slots = full_batch_size, self._slots(kv_cache_batch_size, batch_size)
            spec = CompileSpec(batch_size, prefill_seq_len, ctx_len, *slots, options, prefill_only=prefill_only)
            shapes = Shapes(
                self._ahead(num_speculative_tokens), comp_ctx_lengths_prefill, comp_ctx_lengths_decode, prefill_only
            )
        stages.check_batching(self.continuous_batching, spec)
        spec = shaped(spec, shapes, card)
        chosen.check_calls(spec, own)
        if layers_in(self.config):
            chosen.check_layers(layers_in(self.config), own)
        check_device(card, chosen)
        graph = self._graph_options(
            graph_options(card, shapes, self.config, sharing(options), spec) | {"latent": card.latent},
            dtype=self._source.dtype if onnx_path is not None else self._dtype_for(chosen, own),
            use_onnx_subfunctions=use_onnx_subfunctions,
            retain_full_kv=retain_full_kv,
            kv_cache_prefix=kv_cache_prefix,
        )
        if onnx_path is not None:
            self._exported_as = None
        elif self._exported_as not in (None, graph):
            self._program = None
        check_graph = partial(chosen.check_graph, own=own)
        program = self._program_or(onnx_path, lambda: self._export(graph, check_graph))
        check_symbols(program.graphs["lm"].spec, spec)
        self._forget_compiled()
        self.progress("compile")
        compiled = stages.compile_program(program, spec, chosen, ArtifactStore(), compile_dir)
        self._compiled, self._device = compiled, chosen
        return self._output()

    def _dtype_for(self, device: Device, own: Mapping[str, Any]) -> str:
        """In which type the model is exported for a device."""
        asked = self._source.dtype
        found = device.export_dtype(asked, own)
        if found != asked:
            self._say_once(
                f"{self.model_name} was asked for in {asked}, in which device '{device.name}' does not compute with"
                f" these options: it is exported in {found}."
            )
        return found

    def _graph_options(self, steering: Mapping[str, Any], **given: Any) -> dict[str, Any]:
        """What the program that is compiled is exported with: as the last one was, where nothing else is said."""
        usual: dict[str, Any] = {"export_dir": None, "use_onnx_subfunctions": False, "retain_full_kv": False}
        usual |= {"kv_cache_prefix": None, "blocking": None}
        said = {name: value for name, value in given.items() if value is not None}
        return {**usual, **(self._exported_as or {}), **said, **steering}

    @overload
    def generate(self, *inputs: Any, stream: Literal[False] = False, **options: Any) -> CloudAI100ExecInfo: ...

    @overload
    def generate(self, *inputs: Any, stream: Literal[True], **options: Any) -> Iterator[str]: ...

    def generate(
        self,
        *inputs: Any,
        tokenizer: Any = None,
        prompts: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        generation_len: int | None = None,
        sampling: SamplingParams | None = None,
        generation_config: Any = None,
        streamer: Any = None,
        stream: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        decoding: str | Decoding | None = None,
        mask: MaskMaker | None = None,
        draft_model: QEFFAutoModelForCausalLM | None = None,
        assistant_model: QEFFAutoModelForCausalLM | None = None,
        prompt_lookup_num_tokens: int | None = None,
        prefill_model: QEFFAutoModelForCausalLM | None = None,
        device_id: list[int] | None = None,
        runtime_ai100: bool = True,
        **options: Any,
    ) -> CloudAI100ExecInfo | Iterator[str]:
        """Generate for texts, messages or token ids; compiles with defaults if needed. Keywords of Qualcomm's library:
        `script_keywords`. By position: texts alone, or `tokenizer, prompts, device_id, runtime_ai100`.

        Messages, the dicts with `role` and `content` of one conversation or of several, go through the tokenizer's chat
        template; `chat_template_kwargs` (`tools`, …) are its options.

        `stream=True` returns an iterator over the pieces of one answer's text; closing it ends the request. A
        `streamer` of transformers is fed while this call runs.

        How tokens are chosen: as the model's generation config says, on which `generation_config` (an object or a dict)
        is laid, and on that the keywords, which are the fields of SamplingParams and `do_sample`; `temperature=0` takes
        the likeliest token, whatever else is said. Or all at once by `sampling`, beside which no config counts.

        `mask` makes a `TokenMask` for each answer: what a grammar lets it say (docs/sampling.md).

        How fast they come (docs/decodings.md): `decoding` is "plain", "prompt_lookup" or an object; `draft_model`
        (`assistant_model`) is a smaller compiled model of the same vocabulary, whose guesses are tried. Iterators that
        are open go on in the same way.

        `device_id`: on which devices, as many as the program was compiled for; None stays where it is.
        `prefill_model`: the same model, compiled with `prefill_only=True`. It takes the prompts and hands them over to
        this one.

        With token ids, `generated_ids` is a list with the new ids of each prompt, in order. With `n` answers to each
        prompt, `generated_texts` and `generated_ids` have a list for each prompt; `outputs` always has.
        """
        inputs, (device_id, runtime) = by_position(inputs, 2, {"device_id": device_id, "runtime_ai100": runtime_ai100})
        _check_call(runtime, stream, streamer)
        named = {"tokenizer": tokenizer, "prompts": prompts, "input_ids": input_ids, "attention_mask": attention_mask}
        taken = {name: options.pop(name, None) for name in ("prompt", PROMPTS_FILE)}
        given, own_tokenizer = read_prompts(inputs, {**named, **taken})
        script = take_keywords(options)
        if options.get("max_new_tokens") is None:
            options["max_new_tokens"] = generation_len
        choosing = read_choosing(self._facts, sampling, generation_config, options)
        wish = read_decoding(decoding, (draft_model, assistant_model), (prompt_lookup_num_tokens, choosing.lookup))
        self._say_once(choosing.left_out)
        prefill = None if prefill_model is None else compiled_program(prefill_model, "prefill model")
        opened = self._opened(given, device_id)
        watch = self._checked(script)
        engine = opened.engine(wish, choosing.usual_lookup, device_id, prefill, watch)
        text = self._text_generator(engine, own_tokenizer, choosing.eos_token_ids)
        encoded = given.encoded(text, chat_template_kwargs)
        params = [chosen_params(choosing.params, script.sampling_params, number) for number in range(len(encoded))]
        if stream:
            return _pieces(text, encoded, params, mask, script.iteration)
        before = engine.statistics
        infos = [
            self._info(text.generate_ids(encoded, params, streamer, mask), choosing) for _ in range(script.iteration)
        ]
        after = engine.statistics
        info = replace(infos[-1], perf_metrics=average([each.perf_metrics for each in infos]))
        info.drafted, info.accepted = after.drafted - before.drafted, after.accepted - before.accepted
        if given.ids is not None:
            ids = [[list(output.generated_ids) for output in answers] for answers in info.outputs]
            info.generated_ids = ids if choosing.params.n > 1 else [answers[0] for answers in ids]
        return info

    def _info(self, outputs: Sequence[RequestOutput], choosing: Choosing) -> CloudAI100ExecInfo:
        assert self._compiled is not None
        batch_size, n = self._compiled.spec.batch_size, choosing.params.n
        info = exec_info(outputs, batch_size, self.continuous_batching, choosing.pad_token_id, n)
        info.simulated = self._compiled.simulated
        return info

    def _checked(self, script: ScriptKeywords) -> Watch | None:
        """What a session is to show; refuses what a script wants of the program, but the program has not."""
        assert self._compiled is not None and self._device is not None
        script.check(self._compiled)
        self._say_once(script.without_effect(self._device))
        return script.watch(self._device, self.qpc_path)

    def _opened(self, given: Prompts, device_ids: Sequence[int] | None) -> OpenedProgram:
        """The program, compiled with defaults if needed, for as many devices as are named."""
        if self._compiled is None:
            rows = max(1, min(len(given), 4)) if self.continuous_batching else None
            devices: dict[str, Any] = {"num_devices": len(device_ids)} if device_ids else {}
            self.compile(full_batch_size=rows, **devices)
        assert self._compiled is not None
        if self._session is None:
            self._session = OpenedProgram(self._compiled)
        return self._session

    def _text_generator(self, engine: Engine, tokenizer: Any, eos_token_ids: tuple[int, ...]) -> TextGenerator:
        assert self._program is not None
        if tokenizer is None and self._program.has_tokenizer:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._program.folder / "tokenizer")
        return TextGenerator(engine, tokenizer or TokensOnly(), eos_token_ids)


def _check_batching(asked: Any) -> None:
    """By position it stands where many a loader takes a name."""
    if not isinstance(asked, bool):
        raise OptionError(
            f"continuous_batching, the second value by position, must be True or False, but {asked!r} was given. What a"
            " loaded model is called is said by pretrained_model_name_or_path=."
        )


def _check_call(runtime_ai100: bool, stream: bool, streamer: Any) -> None:
    """Refuse what is wrong whatever the prompts are, before any work."""
    if not runtime_ai100:  # as Qualcomm's library says it
        raise NotImplementedError(
            "runtime_ai100=False was asked for, but generate runs compiled programs only. Leave it out: what runs here"
            " without a card is compiled with device='cpu'."
        )
    if stream and streamer is not None:
        raise OptionError("stream=True and streamer= were both given. Give one of them.")
    check_streamer(streamer)


def _pieces(
    text: TextGenerator,
    prompts: Sequence[list[int]],
    params: Sequence[SamplingParams],
    mask: MaskMaker | None,
    iteration: int,
) -> Iterator[str]:
    if len(prompts) != 1:
        raise OptionError(f"stream=True follows one prompt, but {len(prompts)} were given. Leave it out.")
    if iteration != 1:
        raise OptionError(f"stream=True follows one run, but iteration is {iteration}. Leave one of them out.")
    return text.stream_ids(prompts[0], params[0], mask)


def _refuse_later(options: dict[str, Any]) -> None:
    for name in LATER_OPTIONS:
        if options.pop(name, None) not in (None, False):
            raise NotImplementedError(f"{name} is not supported by this release.")


def _refuse_others(options: dict[str, Any]) -> None:
    """What `export` has no name for."""
    _refuse_later(options)
    for name in options:
        if name not in WITHOUT_EFFECT:
            raise OptionError(f"export does not know the option '{name}'.{did_you_mean(name, WITHOUT_EFFECT)}")
