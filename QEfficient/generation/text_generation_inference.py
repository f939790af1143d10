"""Where existing scripts look for `TextGeneration` and `cloud_ai_100_exec_kv`: text from a folder with programqpc.bin
alone, whoever compiled it."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from QEfficient.devices.cloud_ai_100.opened import open_program
from QEfficient.devices.cloud_ai_100.session import CloudSession
from QEfficient.devices.cloud_ai_100.written_io import opener
from QEfficient.errors import DeviceError, OptionError, PromptError
from QEfficient.generation.decoding.selection import DecodingChoice
from QEfficient.generation.live_text import LiveText
from QEfficient.generation.metrics import (
    CloudAI100ExecInfo,
    CloudAI100ExecInfoNew,
    PerfMetrics,
    average,
    exec_info,
    perf_metrics,
)
from QEfficient.generation.opened import OpenedProgram
from QEfficient.generation.prefill import PromptRunner, checked_length
from QEfficient.generation.request import Request, output_of
from QEfficient.generation.script_options import (
    Wishes,
    check_iteration,
    check_wishes,
    chosen_params,
    for_every_batch,
    pad_right,
    read_prompts,
)
from QEfficient.generation.text import TextGenerator
from QEfficient.specs import SamplingParams

__all__ = [
    "CloudAI100ExecInfo",
    "CloudAI100ExecInfoNew",
    "PerfMetrics",
    "TextGeneration",
    "cloud_ai_100_exec_kv",
]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class TextGeneration:
    """A compiled program on the card with a tokenizer. Its cores are given back by `close`, or when it is dropped."""

    def __init__(
        self,
        tokenizer: Any,
        qpc_path: str | Path,
        full_batch_size: int | None = None,
        ctx_len: int | None = None,
        comp_ctx_lengths_prefill: Sequence[int] | None = None,
        comp_ctx_lengths_decode: Sequence[int] | None = None,
        device_id: list[int] | None = None,
        enable_debug_logs: bool = False,
        write_io_dir: str | Path | None = None,
        is_tlm: bool = False,
        include_sampler: bool = False,
        return_pdfs: bool = False,
        include_guided_decoding: bool = False,
        sampling_params: Mapping[str, Any] | None = None,
    ) -> None:
        """The geometry is read from the program; what is said of it here must agree. `ctx_len` may be less.

        `sampling_params`: for a program that chooses tokens on the card, arrays with a line for each prompt. One line
        is for all of them; without continuous batching, those of one batch are for the others too.
        """
        self._compiled = open_program(qpc_path, ctx_len)
        wishes = Wishes(
            full_batch_size,
            tuple(comp_ctx_lengths_prefill or ()),
            tuple(comp_ctx_lengths_decode or ()),
            is_tlm,
            include_sampler or return_pdfs,
            include_guided_decoding,
            sampling_params or {},
        )
        check_wishes(wishes, self._compiled)
        pad_right(tokenizer)
        self._tokenizer = tokenizer
        chooses = self._compiled.program.graphs["lm"].spec.chooses_tokens
        self._sampling = dict(sampling_params or {}) if chooses else {}
        load = partial(CloudSession, opener=opener(write_io_dir, enable_debug_logs))
        # Every call computes its whole prompt: scripts measure that, and `run_prefill` writes slots unseen.
        self._opened, self._device_id = OpenedProgram(self._compiled, load, prefix_cache=False), device_id
        self.close = weakref.finalize(self, self._opened.close)
        """Give the cores back; idempotent."""
        self._start()
        self._metrics: PerfMetrics | None = None

    def _open(self) -> None:
        """Go on with the engine that is there: with another one after its device was lost."""
        if not self.close.alive:
            raise DeviceError("the session is closed: make another TextGeneration for the program.")
        if self._engine.lost is not None:
            self._start()

    def _start(self) -> None:
        self._engine = self._opened.engine(DecodingChoice(), device_ids=self._device_id)
        self._text = TextGenerator(self._engine, self._tokenizer)

    @property
    def _qaic_model(self) -> PromptRunner:
        """By this name scripts find what runs prompts alone."""
        self._open()
        return PromptRunner(self._engine, self._text)

    @property
    def perf_metrics(self) -> PerfMetrics | None:
        """Of the last `generate`."""
        return self._metrics

    @property
    def batch_size(self) -> int:
        """How many prompts run together."""
        return self._compiled.spec.decode_rows

    @property
    def continuous_batching(self) -> bool:
        return self._compiled.spec.continuous_batching

    def generate(
        self,
        prompt: str | Sequence[str],
        generation_len: int | None = None,
        stream: bool = True,
        automation: bool = False,
        prompt_to_lora_id_mapping: Sequence[int] | None = None,
    ) -> CloudAI100ExecInfo:
        """The likeliest tokens for each prompt, in order. `stream` prints them as they come; with `automation` answers
        go on behind the end that the model gives them.

        Prompts that are fewer than a batch are repeated. More than one batch, without continuous batching, come back as
        a list for each batch, of which the last may be shorter.
        """
        prompts = self._filled(prompt, prompt_to_lora_id_mapping)
        info = self._generate(prompts, generation_len, stream, automation)
        if self.continuous_batching or len(prompts) > self.batch_size:
            return info
        texts = [output.text for answers in info.outputs for output in answers]
        return replace(info, generated_texts=texts, generated_ids=info.generated_ids[0])

    def generate_stream_tokens(
        self,
        prompt: str | Sequence[str],
        generation_len: int | None = None,
        automation: bool = False,
        prompt_to_lora_id_mapping: Sequence[int] | None = None,
    ) -> Iterator[list[str]]:
        """What each prompt's answer goes on with, step by step; one batch only. Closing it ends the answers."""
        if self.continuous_batching:
            raise NotImplementedError(
                "the program was compiled for continuous batching, where prompts come and go: use"
                " generate(stream=True)."
            )
        prompts = self._filled(prompt, prompt_to_lora_id_mapping)
        if len(prompts) > self.batch_size:
            raise OptionError(f"{len(prompts)} prompts were given, but one batch has {self.batch_size}.")
        return self._steps(self._requests(prompts, generation_len, automation))

    def _steps(self, requests: Sequence[Request]) -> Iterator[list[str]]:
        engine, text = self._engine, self._text
        writers = {request: text.writer(request) for request in requests}
        try:
            for request in requests:
                engine.submit(request)
            while not all(request.finished for request in requests):
                events = [event for event in engine.step() if event.request in writers]
                pieces = {event.request: text.read(event, writers[event.request]).text for event in events}
                if pieces:
                    yield [pieces.get(request, "") for request in requests]
        finally:
            for request in requests:
                engine.cancel(request)

    def _generate(
        self, prompts: Sequence[str], generation_len: int | None, stream: bool, automation: bool
    ) -> CloudAI100ExecInfo:
        requests = self._requests(prompts, generation_len, automation)
        texts = dict.fromkeys(requests, "")
        live = LiveText(dict(zip(requests, prompts, strict=True)), _print) if stream else None
        for event in itertools.chain.from_iterable(map(self._text.stream, self._together(requests))):
            texts[event.request] += event.text
            if live is not None:
                live.tell(event)
        outputs = [output_of(request, text) for request, text in texts.items()]
        spec, pad = self._compiled.spec, self._tokenizer.pad_token_id
        info = exec_info(outputs, spec.batch_size, self.continuous_batching, 0 if pad is None else pad)
        info.perf_metrics = average([perf_metrics(batch, info.batch_size) for batch in self._together(outputs)])
        info.simulated = self._compiled.simulated
        self._metrics = info.perf_metrics
        return info

    def _together(self, prompts: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """What belongs to prompts, all at once with continuous batching. Without it batch by batch: what others
        compiled may not bear a row that begins while another goes on."""
        most = len(prompts) if self.continuous_batching else self.batch_size
        return (prompts[first : first + most] for first in range(0, len(prompts), most))

    def _requests(self, prompts: Sequence[str], generation_len: int | None, automation: bool) -> list[Request]:
        self._open()
        encoded = [self._text.encode(prompt) for prompt in prompts]
        for ids in encoded:  # first of all: a length says nothing about a prompt that does not fit
            self._engine.scheduler.check(self._text.request(ids))
        checked_length(generation_len, max(map(len, encoded)), self._compiled.spec.ctx_len)
        usual = SamplingParams(max_new_tokens=generation_len, ignore_eos=automation)
        arrays = self._sampling
        if not self.continuous_batching:
            arrays = for_every_batch(arrays, len(encoded), self.batch_size)
        params = [chosen_params(usual, arrays, number) for number in range(len(encoded))]
        return [self._text.request(*each) for each in zip(encoded, params, strict=True)]

    def _filled(self, prompt: str | Sequence[str], lora_ids: Sequence[int] | None) -> list[str]:
        """The prompts, repeated up to one batch; what is left of a last batch stays empty."""
        if lora_ids is not None and "lora_ids" not in {t.name for t in self._compiled.program.graphs["lm"].spec.inputs}:
            raise OptionError("prompt_to_lora_id_mapping was given, but the program has no input 'lora_ids'.")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise PromptError("there is no prompt: give at least one.")
        if len(prompts) < self.batch_size:
            times = -(-self.batch_size // len(prompts))
            logger.warning("%d prompt(s) do not fill a batch of %d: repeated.", len(prompts), self.batch_size)
            return (prompts * times)[: self.batch_size]
        left = 0 if self.continuous_batching else len(prompts) % self.batch_size
        if left:
            logger.warning("the last batch has %d prompt(s) for %d rows; the others stay idle.", left, self.batch_size)
        return prompts


def cloud_ai_100_exec_kv(
    tokenizer: Any,
    qpc_path: str | Path,
    prompt: str | Sequence[str] | None = None,
    prompts_txt_file_path: str | Path | None = None,
    device_id: list[int] | None = None,
    generation_len: int | None = None,
    comp_ctx_lengths_prefill: Sequence[int] | None = None,
    comp_ctx_lengths_decode: Sequence[int] | None = None,
    enable_debug_logs: bool = False,
    stream: bool = True,
    write_io_dir: str | Path | None = None,
    automation: bool = False,
    iteration: int = 1,
    prompt_to_lora_id_mapping: Sequence[int] | None = None,
    is_tlm: bool = False,
    include_sampler: bool = False,
    return_pdfs: bool = False,
    include_guided_decoding: bool = False,
    sampling_params: Mapping[str, Any] | None = None,
) -> CloudAI100ExecInfo:
    """Open a program, run prompts, print the figures, close it. Without continuous batching texts and ids are lists,
    one entry for each batch, and the figures are the mean of the batches. `iteration`: how often all of it runs; the
    figures are the mean of that too."""
    check_iteration(iteration)
    prompts = read_prompts(prompt, prompts_txt_file_path)
    generation = TextGeneration(
        tokenizer,
        qpc_path,
        comp_ctx_lengths_prefill=comp_ctx_lengths_prefill,
        comp_ctx_lengths_decode=comp_ctx_lengths_decode,
        device_id=device_id,
        enable_debug_logs=enable_debug_logs,
        write_io_dir=write_io_dir,
        is_tlm=is_tlm,
        include_sampler=include_sampler,
        return_pdfs=return_pdfs,
        include_guided_decoding=include_guided_decoding,
        sampling_params=sampling_params,
    )
    try:
        filled = generation._filled(prompts, prompt_to_lora_id_mapping)
        infos = [generation._generate(filled, generation_len, stream, automation) for _ in range(iteration)]
    finally:
        generation.close()
    info = replace(infos[-1], perf_metrics=average([info.perf_metrics for info in infos]))
    _print(f"\n{info!r}\n")
    return info


def _print(text: str) -> None:
    print(text, end="", flush=True)
