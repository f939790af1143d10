"""The parser that reads both spellings and forwards device options, and the options that several commands share."""

from __future__ import annotations

import argparse
import ast
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from QEfficient.errors import OptionError
from QEfficient.specs import DTYPES

MISSPELT = 0.75
"""How alike (0 to 1) an unknown flag and a known one must be to be taken for the same."""
SWITCH = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}

SIMULATED_DEVICE = "cloud_ai_100"


class UsageError(Exception):
    """The command line cannot be understood."""


class Parser(argparse.ArgumentParser):
    """Takes `--ctx_len` for `--ctx-len`, and says what was probably meant by a flag that it does not know."""

    takes_device_options = False
    """Whether unknown `--key value` pairs are for the device."""

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        _check_text(words)
        known, unknown = self._split([_one_spelling(word) for word in words])
        arguments = self.parse_intermixed_args(known)  # names may stand after flags: cache remove --json NAME
        arguments.device_options = unknown
        return arguments

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.rstrip('.')}. `{self.prog} --help` lists the flags.")

    def _split(self, words: list[str]) -> tuple[list[str], dict[str, Any]]:
        """Words that argparse knows, and device options. Before argparse: it would take their values for a model."""
        known: list[str] = []
        options: dict[str, Any] = {}
        while words:
            word = words.pop(0)
            flag, equals, value = word.partition("=")
            if word == "--":
                return [*known, word, *words], options
            if not _is_flag(word) or flag in self._option_string_actions:
                known.append(word)
                continue
            kind = self._kind(flag)
            following = value if equals else words.pop(0) if words and _is_value(words[0], kind) else None
            options[_option_name(flag)] = _converted(flag, kind, following)
        return known, options

    def _kind(self, flag: str) -> type | None:
        """The type of a device option; None if only the device can tell. Refuses what looks like a misspelt flag."""
        kinds = _device_options() if self.takes_device_options else {}
        if _option_name(flag) in kinds:
            return kinds[_option_name(flag)]
        flags = [*self._option_string_actions, *("--" + name.replace("_", "-") for name in kinds)]
        meant = _meant(flag, [known for known in flags if known.startswith("--")])
        if meant or not self.takes_device_options:
            suggestion = f". Did you mean {meant}?" if meant else "."
            raise UsageError(f"{self.prog} does not know the flag {flag}{suggestion}")
        return None


class NotYet(argparse.Action):
    """A flag of Qualcomm's library that this release refuses."""

    def __init__(self, option_strings: Sequence[str], dest: str, nargs: str = "?") -> None:
        super().__init__(option_strings, dest, nargs=nargs, help=argparse.SUPPRESS)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> NoReturn:
        raise OptionError(f"{option_string} is not supported by this release.")


def _check_text(words: Sequence[str]) -> None:
    """Refuse words that are no text: Python hands on bytes that it cannot decode, but tokenizers take none."""
    for number, word in enumerate(words, 1):
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            shown = word.encode("utf-8", "backslashreplace").decode().replace("\\udc", "\\x")  # each byte as it was
            raise UsageError(
                f"word {number} of these is no text in {sys.getfilesystemencoding()}: '{shown}'. Write it in that"
                " encoding, or give the prompts in a file of UTF-8 text."
            ) from None


def _one_spelling(word: str) -> str:
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if _is_flag(word) else word


def _is_flag(word: str) -> bool:
    return re.match(r"--[A-Za-z][\w-]*(=|$)", word) is not None


def _is_value(word: str, kind: type | None) -> bool:
    """Whether a word after an option belongs to it: after a switch only a yes or no."""
    if kind is bool:
        return word.lower() in SWITCH
    return not word.startswith("-") or re.match(r"-[\d.]", word) is not None


def _option_name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _device_options() -> Mapping[str, type]:
    from QEfficient.devices import FOREIGN_OPTIONS, device_class, device_names

    own = {name: kind for device in device_names() for name, kind in device_class(device).options.items()}
    return {**FOREIGN_OPTIONS, **own}


def _meant(flag: str, known: Sequence[str]) -> str | None:
    longer = [k for k in known if k.startswith(flag + "-") or flag.startswith(k + "-")]
    names = {k.removeprefix("--"): k for k in known}
    close = difflib.get_close_matches(flag.removeprefix("--"), names, n=1, cutoff=MISSPELT)
    return names[close[0]] if close else longer[0] if longer else None


def _converted(flag: str, kind: type | None, value: str | None) -> Any:
    """The value of a device option: of the type that the option has, or of the type that it looks like. An `object` is
    a text or a bare flag, which true and false say too."""
    if value is None:
        if kind in (int, float, str):
            raise UsageError(f"{flag} needs a value.")
        return True
    if kind is bool or (kind in (None, object) and value.lower() in ("true", "false")):
        return switch(value)
    if kind is int or (kind is None and re.fullmatch(r"-?\d+", value)):
        try:
            return int(value)
        except ValueError:
            raise UsageError(f"{flag} takes a whole number, not '{value}'.") from None
    if kind is float:
        try:
            return float(value)
        except ValueError:
            raise UsageError(f"{flag} takes a number, not '{value}'.") from None
    return value


def switch(text: str) -> bool:
    """A yes or no."""
    if text.lower() not in SWITCH:
        raise argparse.ArgumentTypeError(f"true or false is expected, not '{text}'")
    return SWITCH[text.lower()]


def device_group(text: str) -> list[int]:
    """`[0,1]` or `0,1`."""
    found = _numbers(text, "[0,1]", least=1)
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"cards have numbers from 0 on, but '{text}' has {min(found)}")
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"each card can be named once, but '{text}' has one twice")
    return found


def several(text: str) -> list[int]:
    """`256,512`, `[256,512]` or `256`."""
    return _numbers(text, "256,512", least=1)


def one_or_several(text: str) -> int | list[int]:
    """`4`, or `1,2`: a number for each cluster of cores."""
    found = _numbers(text, "1,2", least=1)
    return found[0] if len(found) == 1 else found


def _numbers(text: str, example: str, least: int = 0) -> list[int]:
    try:
        found = ast.literal_eval(text if text.startswith("[") else f"[{text}]")
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, list) or len(found) < least or not all(type(item) is int for item in found):
        raise argparse.ArgumentTypeError(f"a list of numbers such as {example} is expected, not '{text}'")
    return found


def add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON document on stdout")
    group.add_argument("-v", "--verbose", action="store_true", help="log what is done, on stderr")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and where its files come from."""
    group = parser.add_argument_group("model")
    group.add_argument("model", metavar="MODEL", nargs="?", help="hub name or local folder; default: demo")
    group.add_argument("--model-name", "--model", metavar="MODEL", help="the same as a flag")
    add_source(group)
    group.add_argument("--dtype", choices=[*DTYPES, "auto"], help="type of the weights in the program; default float32")


def add_source(group: Any) -> None:
    group.add_argument("--local-model-dir", metavar="DIR", help="a folder with the model's files")
    group.add_argument("--cache-dir", metavar="DIR", help="where downloads from the hub are kept")
    group.add_argument("--hf-token", metavar="TOKEN", help="token for gated and private models")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that the model brings")


def add_export(parser: argparse.ArgumentParser) -> None:
    """What shapes the graph."""
    group = parser.add_argument_group("graph")
    group.add_argument("--use-onnx-subfunctions", action="store_true", help="one ONNX function per kind of layer")
    group.add_argument("--retain-full-kv", action="store_true", help="windowed layers keep the whole context")
    group.add_argument("--kv-cache-prefix", metavar="NAME", help="mark the names of keys and values: past_key.0_NAME")
    group.add_argument("--dynamo", action="store_true", help=argparse.SUPPRESS)  # the only way there is here


@dataclass(frozen=True)
class Geometry:
    """Defaults of a command; None: it finds its own."""

    ctx_len: int | None = 128
    prefill_seq_len: int | None = 32
    batch_size: int | None = 1


USUAL = Geometry()


def add_geometry(parser: Parser, defaults: Geometry = USUAL) -> None:
    """What the program is compiled for."""
    group = parser.add_argument_group("geometry")
    for flags, name, meaning in (
        (("--ctx-len",), "ctx_len", "most tokens of a sequence"),
        (("--prompt-len", "--prefill-seq-len"), "prefill_seq_len", "tokens of a prompt that run at once"),
        (("--batch-size",), "batch_size", "sequences that run together"),
    ):
        default = getattr(defaults, name)
        said = meaning if default is None else f"{meaning}; default {default}"
        group.add_argument(*flags, type=int, dest=name, metavar="N", help=said)
    parser.set_defaults(ctx_len=defaults.ctx_len, batch_size=defaults.batch_size)  # a chunk must fit what is given
    group.add_argument("--full-batch-size", type=int, metavar="N", help="continuous batching: how many decode together")
    group.add_argument("--kv-cache-batch-size", type=int, metavar="N", help="continuous batching: places in the cache")
    _add_calls(parser)


def _add_calls(parser: Parser) -> None:
    """Other kinds of calls, which need a program of their own."""
    group = parser.add_argument_group("kinds of calls", "other programs than the usual one (docs/programs.md)")
    group.add_argument(
        "--comp-ctx-lengths-prefill",
        type=several,
        metavar="256,512",
        help="a prompt's chunk reads the smallest of these contexts that holds it",
    )
    group.add_argument(
        "--comp-ctx-lengths-decode", type=several, metavar="512,1024", help="the same for new tokens: 512,1024"
    )
    group.add_argument("--ccl-enabled", action="store_true", help="such contexts, chosen by --ctx-len")
    group.add_argument(
        "--num-speculative-tokens",
        type=several,
        metavar="1,3,7",
        help="tokens that one run can try ahead on a card, a shape for each number; with --prompt-lookup",
    )
    add_projections(group)
    group.add_argument("--include-sampler", action="store_true", help="the program chooses the tokens itself")
    add_sampler_width(group)
    group.add_argument(
        "--replicate-kv-heads",
        action="store_true",
        help="hold keys and values several times, so that the cards of --device-group share them evenly",
    )
    add_latent(group)


def add_projections(group: Any) -> None:
    """What a checkpoint may bring to guess tokens with."""
    group.add_argument(
        "--projections",
        action="store_true",
        help="the program guesses tokens to try ahead, with the checkpoint's projections (speculator.safetensors)",
    )


def add_latent(group: Any) -> None:
    """How models with latent attention attend."""
    group.add_argument(
        "--mla-absorption",
        choices=("online", "fused"),
        help="latent attention on what the states hold, no keys are made; fused: with larger weights for queries",
    )


def add_sampler_width(group: Any) -> None:
    """How many tokens a program that chooses looks at."""
    group.add_argument("--max-top-k-ids", type=positive, metavar="N", help="… among the N likeliest; default 512")


def add_phase(parser: Parser) -> None:
    """One of the two phases alone."""
    group = parser.add_argument_group("one phase", "two programs that work together: execute --prefill-qpc-path")
    chosen = group.add_mutually_exclusive_group()
    chosen.add_argument(
        "--prefill-only", dest="prefill_only", action="store_const", const=True, help="the shapes of prompts alone"
    )
    chosen.add_argument(
        "--decode-only", dest="prefill_only", action="store_const", const=False, help="the shapes of new tokens alone"
    )


def add_device(parser: Parser) -> None:
    """Which device, and its options; flags that no command knows go to the device too."""
    parser.takes_device_options = True
    group = parser.add_argument_group("device", "other --key value pairs go to the device too: --num-threads 4")
    group.add_argument(
        "--device", metavar="NAME", help="default: the environment's QEFF_DEVICE, else the best one here"
    )
    group.add_argument("--device-group", type=device_group, metavar="[0,1]", help="cards by number")
    group.add_argument("--num-cores", type=int, metavar="N", help="cores of a card")
    group.add_argument("--mxfp6-matmul", "--mxfp6", action="store_true", help="MXFP6 weights on a card")
    group.add_argument("--mxint8-kv-cache", "--mxint8", action="store_true", help="MXINT8 cache on a card")
    group.add_argument("--mos", type=one_or_several, metavar="N", help="effort to keep data on a card's chip")
    group.add_argument("--aic-enable-depth-first", action="store_true", help="depth-first order on a card")
    group.add_argument("--allow-mxint8-mdp-io", action="store_true", help="MXINT8 between cards")
    group.add_argument(
        "--compiler-arg",
        "--extra-compiler-args",
        dest="extra_compiler_args",
        action="append",
        metavar="-name=value",
        help="for a card's compiler as it is: --compiler-arg=-stats-level=20; once for each",
    )
    add_simulate(group)
    group.add_argument("--enable-qnn", nargs="?", const=True, metavar="CONFIG", help="compile for a card with QNN")


def add_simulate(group: Any) -> None:
    """Stand-ins for the Cloud AI SDK, also in the processes that a command starts."""
    group.add_argument(
        "--simulate",
        nargs="?",
        const="1",
        type=sdk_version,
        metavar="SDK",
        help="a simulator in place of Qualcomm's SDK, of its latest version or of 1.21: nothing runs on a card",
    )


def sdk_version(text: str) -> str:
    """`1.21`."""
    from QEfficient.devices.cloud_ai_100.sdk import SIMULATED_VERSIONS

    if text not in ("1", *SIMULATED_VERSIONS):
        known = " or ".join(SIMULATED_VERSIONS)
        raise argparse.ArgumentTypeError(f"the version of an SDK, {known}, or nothing is expected, not '{text}'")
    return text


def refuse_simulating(device: str | None, found: str) -> None:
    """Only one device has stand-ins."""
    if device != SIMULATED_DEVICE:
        raise UsageError(f"--simulate is for the device {SIMULATED_DEVICE}, but {found}. Leave one of them out.")


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """What is continued, and how far."""
    group = parser.add_argument_group("prompts")
    group.add_argument("--prompt", metavar="TEXT", help="several are separated by |")
    group.add_argument("--prompts-txt-file-path", metavar="FILE", help="a prompt per line; goes before --prompt")
    add_length(group)


def add_length(group: Any) -> None:
    """How far an answer may go."""
    group.add_argument("--generation-len", "--max-new-tokens", type=int, metavar="N", help="most new tokens per prompt")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen, how many answers there are and what is told of them."""
    add_choosing(parser)
    group = parser.add_argument_group("answers")
    group.add_argument("--n", type=int, metavar="N", help="answers to each prompt")
    group.add_argument("--iteration", type=positive, help=argparse.SUPPRESS)
    group.add_argument("--automation", nargs="?", const=True, type=switch, help=argparse.SUPPRESS)
    for later in ("--image-path", "--image-url", "--img-size"):
        group.add_argument(later, action=NotYet)
    group = parser.add_argument_group("log-probabilities", "printed with --json")
    group.add_argument("--logprobs", type=int, metavar="N", help="of each new token, and of the N likeliest")
    group.add_argument("--prompt-logprobs", type=int, metavar="N", help="of each token of the prompt")


def add_choosing(parser: argparse.ArgumentParser) -> None:
    """How the next token is chosen; what is not given is as the model's generation config says."""
    group = parser.add_argument_group("sampling", "default: what the model's own generation config says")
    group.add_argument("--temperature", type=float, metavar="X", help="0: the likeliest token")
    group.add_argument("--do-sample", nargs="?", const=True, type=switch, metavar="BOOL", help="false: the same as 0")
    group.add_argument("--top-k", type=int, metavar="N", help="choose among the N likeliest")
    group.add_argument("--top-p", type=float, metavar="X", help="… among the likeliest that together have X")
    group.add_argument("--min-p", type=float, metavar="X", help="… among those X times as likely as the first")
    group.add_argument("--typical-p", type=float, metavar="X", help="… among the most typical that together have X")
    group.add_argument("--seed", type=int, metavar="N", help="for the same choices again")
    _add_penalties(parser.add_argument_group("penalties"))
    _add_endings(parser.add_argument_group("end of an answer"))


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """How tokens are found; which ones come is the same."""
    group = parser.add_argument_group("tokens tried ahead", "the text is the same, sooner (docs/decodings.md)")
    chosen = group.add_mutually_exclusive_group()
    chosen.add_argument(
        "--prompt-lookup",
        nargs="?",
        const=0,
        type=positive,
        metavar="N",
        help="up to N that followed the same words before: for texts that repeat their prompt or themselves",
    )
    chosen.add_argument("--draft-model", metavar="PATH", help="those of a smaller model with the same tokenizer")
    group.add_argument("--draft-num-cores", type=positive, metavar="N", help="cores of a card for it; default 5 of 16")


def positive(text: str) -> int:
    """`16`."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a positive whole number is expected, not '{text}'")
    return int(text)


def _add_penalties(group: Any) -> None:
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="of tokens of prompt and answer; 1: none")
    group.add_argument("--presence-penalty", type=float, metavar="X", help="of tokens of the answer; 0: none")
    group.add_argument("--frequency-penalty", type=float, metavar="X", help="… for each time that it is there")
    group.add_argument(
        "--logit-bias", action="append", type=token_bias, metavar="ID=X", help="add X to a token's logit; repeatable"
    )


def _add_endings(group: Any) -> None:
    group.add_argument("--stop", action="append", type=some_text, metavar="TEXT", help="end before this; repeatable")
    group.add_argument("--stop-token-ids", type=token_ids, metavar="ID,ID", help="end at these tokens too")
    group.add_argument("--ignore-eos", action="store_true", default=None, help="go on after the model's end")
    group.add_argument("--min-new-tokens", type=int, metavar="N", help="no end before so many tokens")
    group.add_argument("--max-length", type=int, metavar="N", help="most tokens of prompt and answer together")


def some_text(text: str) -> str:
    """A text that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("a text is expected, but it is empty")
    return text


def token_bias(text: str) -> tuple[int, float]:
    """`15=-2.5`."""
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a token id and a number such as 15=-2.5 is expected, not '{text}'") from None


def token_ids(text: str) -> tuple[int, ...]:
    """`2` or `2,7`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"token ids such as 2,7 are expected, not '{text}'") from None
