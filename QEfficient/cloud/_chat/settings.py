"""How answers are chosen, as flags and `/set` say it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from QEfficient.cloud._arguments import Parser, add_choosing, add_length, switch
from QEfficient.errors import OptionError, did_you_mean
from QEfficient.generation.defaults import sampling_params
from QEfficient.specs import SamplingParams

AS_THE_MODEL = "default"
"""The value that takes a setting back."""


class Settings:
    """What was given, over what the model's generation config says."""

    def __init__(self, config: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self._config = config
        self._given = dict(given)
        self.params = self._params(self._given)

    def set(self, name: str, text: str) -> str:
        """Change a setting, or refuse to and leave all as it is; returns what it is now."""
        name, action = _find(name)
        given = {key: value for key, value in self._given.items() if key != name}
        if text != AS_THE_MODEL:
            given[name] = _read(name, action, text)
        self.params, self._given = self._params(given), given
        return f"{name}: {getattr(self.params, name, text)}"

    def rows(self) -> list[tuple[str, str]]:
        """The settings that do something, and who said so."""
        usual = SamplingParams()
        found = []
        for field in fields(SamplingParams):
            value = getattr(self.params, field.name)
            if field.name in self._given or value != getattr(usual, field.name):
                found.append((field.name, f"{value}" + ("" if field.name in self._given else "  (the model's own)")))
        return found

    def _params(self, given: Mapping[str, Any]) -> SamplingParams:
        # A chat shows one answer, and no log-probabilities, whatever the model's config asks for.
        return replace(sampling_params(self._config, given), n=1, logprobs=None, prompt_logprobs=None)


def _flags() -> dict[str, tuple[str, argparse.Action]]:
    """Name of a setting → its field in SamplingParams, and the flag that reads it. A flag may have two names."""
    parser = Parser(add_help=False)
    add_choosing(parser)
    add_length(parser)
    found = {}
    for flag, action in parser._option_string_actions.items():
        if action.help != argparse.SUPPRESS:
            field = "max_new_tokens" if action.dest == "generation_len" else action.dest
            found[flag.removeprefix("--").replace("-", "_")] = (field, action)
    return found


def setting_names() -> list[str]:
    return sorted({field for field, _ in _flags().values()})


def _find(name: str) -> tuple[str, argparse.Action]:
    flags = _flags()
    own = name.removeprefix("--").replace("-", "_")
    if own not in flags:
        raise OptionError(f"there is no setting '{name}'.{did_you_mean(own, flags)} /help set lists them.")
    return flags[own]


def _read(name: str, action: argparse.Action, text: str) -> Any:
    """The value that the flag would have for this text."""
    convert: Any = switch if action.nargs == 0 else action.type or str
    try:
        value = convert(text)
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"{name}: {error}.") from error
    except ValueError:
        kind = "a whole number" if convert is int else "a number"
        raise OptionError(f"{name} must be {kind}, not '{text}'.") from None
    return (value,) if name in ("stop", "logit_bias") else value
