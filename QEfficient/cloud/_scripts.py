"""`main` of the commands' modules: what scripts of Qualcomm's library call in place of a command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from QEfficient.cloud._arguments import UsageError
from QEfficient.cloud.main import command_parser, load_command, simulation
from QEfficient.errors import OptionError


def call(name: str, given: Mapping[str, Any]) -> None:
    """Run a command with keywords for flags; what is None or False is not said. Errors are raised, not printed.

    `options` holds keywords that `main` does not name, and `prompt` is a text or a list of them: `|` separates nothing.
    """
    said = {**given, **given.get("options", {})}
    said.pop("options", None)
    prompt, config = said.pop("prompt", None), said.pop("qnn_config", None)
    if said.get("enable_qnn") and config is not None:
        said["enable_qnn"] = config
    words = [_flag(keyword, value) for keyword, value in said.items() if value is not None and value is not False]
    command = load_command(name)
    try:
        arguments = command_parser(name, command, f"QEfficient.cloud.{name}.main").read(words)
        if prompt is not None:
            arguments.prompt = [prompt] if isinstance(prompt, str) else list(prompt)
        with simulation(arguments):
            command.run(arguments)
    except UsageError as error:
        raise OptionError(str(error)) from None


def _flag(keyword: str, value: Any) -> str:
    flag = "--" + keyword.replace("_", "-")
    if value is True:
        return flag
    return f"{flag}={','.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
