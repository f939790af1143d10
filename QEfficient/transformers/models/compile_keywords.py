"""Keywords of `compile` that it does not have: which one was meant, of its own and of the device's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from QEfficient.devices import Device
from QEfficient.errors import OptionError, UnknownOptionError

WHICH_DEVICES = "num_devices=, which is how many there are; generate is told which ones (device_id=)"
CALLED: Mapping[str, str] = {
    "mxfp6": "mxfp6_matmul=",
    "mxint8": "mxint8_kv_cache=",
    "prompt_len": "prefill_seq_len=",
    **dict.fromkeys(("device_group", "device_ids", "device_id"), WHICH_DEVICES),
}
"""Names of the command line and of `generate`, and what `compile` has for them."""


def own_options(device: Device, options: Mapping[str, Any], compile: Callable[..., Any]) -> dict[str, Any]:
    """Those that are the device's own. Where it has none of a name, a keyword of the verb may have been meant too."""
    try:
        return device.own_options(options)
    except UnknownOptionError as error:
        keywords = [name for name in inspect.signature(compile).parameters if name != "options"]
        meant = CALLED.get(error.name, "")
        if meant and meant.partition("=")[0] in (*keywords, *error.known):
            raise OptionError(f"compile has no '{error.name}', but {meant}.") from None
        raise error.among(keywords) from None
