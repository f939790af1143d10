"""Programs that are not to outlive us: a compiler that nobody waits for would go on for hours."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence

TOOL = "setpriv"
"""Of util-linux. It asks the kernel for the signal and becomes the program; `preexec_fn`, which could ask too, may hang
where there are threads."""
OPTION = "--pdeathsig"


def bound(command: Sequence[str]) -> list[str]:
    """The command of a program that is killed when the thread that starts it ends, however that ends; as it is where
    nothing here can do that, or where it cannot be started, so that the reason is the system's own."""
    return [*(_prefix() if os.access(command[0], os.X_OK) else ()), *command]


@functools.cache
def _prefix() -> tuple[str, ...]:
    tool = shutil.which(TOOL)
    if tool is None:
        return ()
    try:
        known = subprocess.run([tool, "--help"], capture_output=True, text=True, errors="replace").stdout
    except OSError:
        return ()
    return (tool, OPTION, "KILL", "--") if OPTION in known else ()
