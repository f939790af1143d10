"""Prompts in, texts out: what `infer` and `execute` do with a compiled program."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from QEfficient.artifacts import ArtifactStore
from QEfficient.cloud._presentation import StageClock, note, table
from QEfficient.cloud._tokenizers import saved_tokenizer
from QEfficient.devices.slotted import slotted_limits
from QEfficient.errors import ModelError, OptionError, PromptError
from QEfficient.generation.decoding.on_device import check_params
from QEfficient.generation.decoding.selection import DecodingChoice
from QEfficient.generation.defaults import LOOKUP, left_out, sampling_params
from QEfficient.generation.engine import Engine
from QEfficient.generation.logprobs import TokenLogprob
from QEfficient.generation.metrics import CloudAI100ExecInfo, exec_info
from QEfficient.generation.opened import OpenedProgram
from QEfficient.generation.request import Request, RequestOutput, output_of
from QEfficient.generation.scheduler import Scheduler
from QEfficient.generation.text import TextGenerator
from QEfficient.program import CompiledProgram
from QEfficient.specs import CompileSpec, SamplerSpec, SamplingParams


def read_prompts(arguments: argparse.Namespace, default: str | None = None) -> list[str]:
    """The prompts of the file, else those of the flag, else the default."""
    if arguments.prompts_txt_file_path:
        prompts = _lines(Path(arguments.prompts_txt_file_path))
    else:
        texts = arguments.prompt or ""
        texts = texts.split("|") if isinstance(texts, str) else texts  # a list is a script's
        prompts = [text.strip() for text in texts if text.strip()]
    if not prompts and arguments.prompt is None and default is not None:
        note(f'no prompt given: using "{default}"')
        return [default]
    if not prompts:
        raise PromptError("there is no prompt: give --prompt TEXT or --prompts-txt-file-path FILE.")
    return prompts


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise OptionError(f"the prompts in {path} cannot be read: {reason}.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise PromptError(f"the file {path} holds no prompt: a prompt per line is expected.")
    return prompts


def sampling(arguments: argparse.Namespace, default_length: int | None = None) -> dict[str, Any]:
    """What the flags say about how tokens are chosen; refused if it cannot be, before anything else is done."""
    names = ["do_sample", *(field.name for field in fields(SamplingParams))]
    given = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    length = default_length if arguments.generation_len is None else arguments.generation_len
    if length is not None:
        given["max_new_tokens"] = length
    if "logit_bias" in given:
        given["logit_bias"] = tuple(given["logit_bias"])
    _read_script_flags(arguments, given)
    sampling_params({}, given)
    if not arguments.json and given.keys() & {"logprobs", "prompt_logprobs"}:
        note("log-probabilities are printed with --json only")
    return given


def _read_script_flags(arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    """Flags that scripts of Qualcomm's library give: with --automation answers go on behind their ends."""
    if getattr(arguments, "automation", None):
        given.setdefault("ignore_eos", True)
    if (getattr(arguments, "iteration", None) or 1) > 1:
        note(f"--iteration {arguments.iteration} has no effect: the prompts run once")


def decoding(arguments: argparse.Namespace, draft: Callable[[], CompiledProgram]) -> DecodingChoice:
    """What the flags say about how tokens are found; `draft` prepares the draft model that they name."""
    if arguments.prompt_lookup is not None:
        return DecodingChoice("prompt_lookup", lookahead=arguments.prompt_lookup or None)
    return DecodingChoice(draft=draft() if arguments.draft_model is not None else None)


def check_decoding(
    arguments: argparse.Namespace, spec: CompileSpec, pads_calls: bool, given: Mapping[str, Any]
) -> None:
    """Refuse what a program of these kinds of calls could not do, before it is made."""
    flag = "--prompt-lookup" if arguments.prompt_lookup is not None else "--draft-model"
    ahead = arguments.prompt_lookup is not None or arguments.draft_model is not None
    if ahead and arguments.include_sampler:
        raise OptionError(
            f"{flag} tries tokens ahead, but with --include-sampler the program chooses them itself. Leave one out."
        )
    if ahead and pads_calls and not arguments.projections and not any(spec.num_speculative_tokens):
        raise OptionError(
            f"{flag} tries tokens ahead, for which this device needs a program of its own: add"
            " --num-speculative-tokens 3, say."
        )
    if arguments.include_sampler:
        check_params(sampling_params({}, given), arguments.max_top_k_ids or SamplerSpec.max_top_k_ids)


def check_prompts(tokenizer: Any, prompts: Sequence[str], spec: CompileSpec) -> None:
    """Refuse prompts that a program of this geometry will refuse."""
    scheduler = Scheduler(slotted_limits(spec))
    for prompt in prompts:
        scheduler.check(Request(tuple(tokenizer(prompt)["input_ids"])))


def check_tokens(given: Mapping[str, Any], vocabulary: int) -> None:
    """Refuse token ids that no token has. `vocabulary`: how many there are; 0 where nobody can say."""
    named = {"--stop-token-ids": given.get("stop_token_ids", ()), "--logit-bias": dict(given.get("logit_bias", ()))}
    for flag, tokens in named.items():
        beyond = [token for token in tokens if token >= vocabulary > 0]
        if beyond:
            raise OptionError(
                f"{flag} names the token {beyond[0]}, but the model has {vocabulary:,} tokens (0 to {vocabulary - 1})."
            )


@dataclass(frozen=True)
class Task:
    """What is to be generated."""

    prompts: Sequence[str]
    sampling: Mapping[str, Any]
    """What was given; the model's generation config says the rest."""
    as_json: bool
    device_ids: Sequence[int] | None = None
    prefill: CompiledProgram | None = None
    """Another program of the model, which takes the prompts."""


def open_tokenizer(compiled: CompiledProgram) -> Any:
    """The tokenizer that was exported with the program."""
    if not compiled.program.has_tokenizer:
        raise ModelError(f"{compiled.program.folder} holds no tokenizer. Name a model that has it with --model-name.")
    return saved_tokenizer(compiled.program.folder / "tokenizer")


def check_program(compiled: CompiledProgram) -> None:
    """Refuse what does not generate text, and what is damaged."""
    if compiled.program.model.task != "causal-lm":
        raise OptionError(f"{compiled.folder} computes {compiled.program.model.task}; it does not generate text.")
    if compiled.program.fingerprint:  # else it is known by its container alone
        ArtifactStore().open(compiled.program.folder)


TextOpener = Callable[[], tuple[Engine, TextGenerator]]
"""Gives an engine, and the same for text: those of the last call, unless their session was lost."""


@contextmanager
def opened(
    compiled: CompiledProgram,
    tokenizer: Any,
    clock: StageClock,
    choice: DecodingChoice,
    device_ids: Sequence[int] | None = None,
    prefill: CompiledProgram | None = None,
) -> Iterator[TextOpener]:
    """What opens the program: it has done so already, and does it again after the device was lost."""
    facts = compiled.program.model
    if left_out(facts.generation):
        note(left_out(facts.generation))
    clock("load the program")
    with closing(OpenedProgram(compiled)) as program:

        def text() -> tuple[Engine, TextGenerator]:
            engine = program.engine(choice, facts.generation.get(LOOKUP), device_ids, prefill)
            return engine, TextGenerator(engine, tokenizer, facts.eos_token_ids)

        text()
        clock.stop()
        yield text


def generate(
    compiled: CompiledProgram, tokenizer: Any, task: Task, clock: StageClock, choice: DecodingChoice
) -> dict[str, Any]:
    """Run the prompts, print texts and figures unless JSON was asked for; return the record of all of it."""
    check_program(compiled)
    check_prompts(tokenizer, task.prompts, compiled.spec)
    check_tokens(task.sampling, compiled.program.model.vocab_size)
    params = sampling_params(compiled.program.model.generation, task.sampling)
    with opened(compiled, tokenizer, clock, choice, task.device_ids, task.prefill) as opener:
        engine, text = opener()
        outputs = _run(text, task, params, clock)
    geometry = compiled.spec.batch_size, compiled.spec.continuous_batching
    info = exec_info(outputs, *geometry, compiled.program.model.pad_token_id or 0, params.n)
    info.simulated = compiled.simulated
    info.drafted, info.accepted = engine.statistics.drafted, engine.statistics.accepted
    if not task.as_json:
        _print(outputs, task, info)
    return _record(task, info)


def _run(text: TextGenerator, task: Task, params: SamplingParams, clock: StageClock) -> list[RequestOutput]:
    requests = [request for prompt in task.prompts for request in text.requests(text.encode(prompt), params)]
    streams = len(requests) == 1 and not task.as_json
    if not streams:
        clock("generate")
    else:
        print(task.prompts[0], end="")
    texts = dict.fromkeys(requests, "")
    for event in text.stream(requests):
        texts[event.request] += event.text
        if streams:
            print(event.text, end="", flush=True)
    clock.stop()
    return [output_of(request, text) for request, text in texts.items()]


def _print(outputs: Sequence[RequestOutput], task: Task, info: CloudAI100ExecInfo) -> None:
    if len(outputs) == 1:
        print()  # the text was printed as it came
    else:
        rows = [
            (prompt, output.text, len(output.generated_ids), output.finish_reason)
            for prompt, answers in zip(task.prompts, info.outputs, strict=True)
            for output in answers
        ]
        table(("prompt", "text", "tokens", "ended by"), rows)
    print(f"\n{info!r}")
    sys.stdout.flush()


def _record(task: Task, info: CloudAI100ExecInfo) -> dict[str, Any]:
    metrics = info.perf_metrics
    return {
        "simulated": info.simulated,
        "outputs": [
            {"prompt": prompt, **_record_of(output)}
            for prompt, answers in zip(task.prompts, info.outputs, strict=True)
            for output in answers
        ],
        "metrics": {
            "prefill_seconds": metrics.prefill_time,
            "decode_tokens_per_second": metrics.decode_perf * info.batch_size,
            "total_tokens_per_second": metrics.total_perf * info.batch_size,
            "total_seconds": metrics.total_time,
            "drafted_tokens": info.drafted,
            "accepted_tokens": info.accepted,
        },
    }


def _record_of(output: RequestOutput) -> dict[str, Any]:
    record = {
        "sample": output.sample,
        "text": output.text,
        "prompt_tokens": len(output.prompt_ids),
        "generated_ids": list(output.generated_ids),
        "finish_reason": output.finish_reason,
    }
    for name, found in (("logprobs", output.logprobs), ("prompt_logprobs", output.prompt_logprobs)):
        if found:
            record[name] = [None if each is None else _record_of_logprob(each) for each in found]
    return record


def _record_of_logprob(found: TokenLogprob) -> dict[str, Any]:
    """JSON has no infinity."""
    logprob = found.logprob if math.isfinite(found.logprob) else None
    return {"token": found.token, "logprob": logprob, "rank": found.rank, "top": found.top}
