"""The Qualcomm Cloud AI 100, through the compiler and the runtime of Qualcomm's SDK.

sdk                     where the SDK lies, which version it has
options                 what `compile` can be told, checked, and how the compiler spells it
command                 the command line
specializations_file    specializations.json: the shapes of one program
custom_io               custom_io.yaml: the precision of the state
partitions              mdp_*.json: several devices
qconfig                 qconfig.json: what a program was made from, for people
container               programqpc.bin: what the compiler wrote, read without the SDK
half_range              constants that float16 cannot hold
compilation             all of it, one step after the other
inference_session       buffers in, buffers out: `QAICInferenceSession`
session                 a program as the engine sees it
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from QEfficient.devices import Accuracy, Device, Session
from QEfficient.devices.cloud_ai_100.options import OPTION_TYPES, READ_FILES, read_options
from QEfficient.devices.cloud_ai_100.sdk import find_sdk
from QEfficient.errors import DeviceError
from QEfficient.program import CompiledProgram, ExportedProgram
from QEfficient.specs import CompileSpec

FORMAT = 1
"""Of what `compile` writes: raised whenever an older folder could not be opened, or would be another."""
HALF = Accuracy(0.05, 0.02)
"""Of what is computed in float16; what the card adds to that nobody has stated."""


class CloudAI100(Device):
    """Compiles with Qualcomm's compiler, runs on the card."""

    name = "cloud_ai_100"
    options = OPTION_TYPES

    @classmethod
    def availability(cls) -> str | None:
        try:
            find_sdk()
        except DeviceError as error:
            return str(error)
        return None

    def own_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        from QEfficient.devices.cloud_ai_100.compilation import check_options

        check_options(given)
        return {name: value for name, value in given.items() if value is not None and name != "compile_only"}

    def ingredients(self, own: Mapping[str, Any]) -> Mapping[str, Any]:
        sdk, options = find_sdk(), read_options(own)
        named = {**vars(options), **dict(options.passed)}
        files = {name: _digest(Path(named[name])) for name in READ_FILES if named.get(name)}
        return {"format": FORMAT, "sdk": sdk.version, "root": str(sdk.root), "files": files}

    def compile(self, program: ExportedProgram, spec: CompileSpec, folder: Path) -> Mapping[str, Any]:
        from QEfficient.devices.cloud_ai_100.compilation import compile_program

        return compile_program(program, spec, folder)

    def load(self, compiled: CompiledProgram) -> Session:
        from QEfficient.devices.cloud_ai_100.session import CloudSession

        return CloudSession(compiled)

    def accuracy(self, compiled: CompiledProgram) -> Accuracy:
        return HALF


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


DEVICE = CloudAI100
