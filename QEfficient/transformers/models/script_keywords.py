"""Keywords of `generate` that scripts of Qualcomm's library pass: each means here what it does there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from QEfficient.devices import Device, Watch
from QEfficient.errors import OptionError
from QEfficient.generation.script_options import Wishes, check_contexts, check_iteration, check_sampler_keywords
from QEfficient.program import CompiledProgram
from QEfficient.transformers.models.card_options import numbers

SAMPLER_KEYWORDS = ("include_sampler", "sampling_params", "return_pdfs", "include_guided_decoding")
CONTEXTS = ("comp_ctx_lengths_prefill", "comp_ctx_lengths_decode")
PROMPTS_FILE = "prompts_txt_file_path"
NAMES = (
    PROMPTS_FILE, *SAMPLER_KEYWORDS, *CONTEXTS, "write_io", "iteration", "automation", "enable_debug_logs",
)  # fmt: skip
IO_FOLDER = "io_dir"
"""Beside what `compile` returned."""


@dataclass(frozen=True)
class ScriptKeywords:
    """What a script said beyond our own keywords; `take_keywords` makes it."""

    sampler: Mapping[str, Any]
    """Those about a program that chooses tokens itself, as they were given."""
    contexts: Wishes
    iteration: int
    write_io: bool
    debug: bool

    @property
    def sampling_params(self) -> Mapping[str, Any]:
        """Arrays with a line for each prompt."""
        return self.sampler.get("sampling_params") or {}

    def check(self, compiled: CompiledProgram) -> None:
        """Refuse what the program was not compiled for."""
        check_contexts(self.contexts, compiled)
        check_sampler_keywords(self.sampler, compiled)

    def without_effect(self, device: Device) -> str:
        """A sentence that names what does nothing on this device; empty if there is nothing."""
        if not self.debug or device.shows_runs:
            return ""
        return f"enable_debug_logs has no effect on device '{device.name}': its runtime has no log."

    def watch(self, device: Device, qpc_path: str | None) -> Watch | None:
        """What the session is to show of its runs."""
        if self.write_io and not device.shows_runs:
            raise OptionError(
                f"write_io was asked for, but device '{device.name}' does not show the buffers of its runs. Leave it"
                " out, or run on a Cloud AI 100 (its simulator will do)."
            )
        if not device.shows_runs or not (self.write_io or self.debug):
            return None
        assert qpc_path is not None, "the program was compiled"
        return Watch(Path(qpc_path).parent / IO_FOLDER if self.write_io else None, self.debug)


def take_keywords(options: dict[str, Any]) -> ScriptKeywords:
    """Take them out of the options of `generate`. `automation` lets answers go on behind their ends."""
    sampler = {name: options.pop(name, None) for name in SAMPLER_KEYWORDS}
    prefill, decode = (numbers(name, options.pop(name, None)) for name in CONTEXTS)
    if options.pop("automation", None) and options.get("ignore_eos") is None:
        options["ignore_eos"] = True
    return ScriptKeywords(
        sampler,
        Wishes(comp_ctx_lengths_prefill=prefill, comp_ctx_lengths_decode=decode),
        check_iteration(options.pop("iteration", None)),
        bool(options.pop("write_io", None)),
        bool(options.pop("enable_debug_logs", None)),
    )
