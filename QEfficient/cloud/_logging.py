"""Where log lines go: to stderr, warnings only unless --verbose; what other libraries remark is left out."""

from __future__ import annotations

import logging
import sys
import warnings

CHATTY = ("huggingface_hub", "transformers", "torch", "httpx", "onnxscript", "onnx_ir")
"""Libraries whose warnings (retries, advice on options that this library decides) are no news for a user."""


def configure_logging(verbose: bool) -> None:
    """Set up this package's own log. Call `quieten_libraries` when the libraries are loaded."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    own = logging.getLogger("QEfficient")
    own.handlers[:] = [handler]
    own.setLevel(logging.INFO if verbose else logging.WARNING)
    if not verbose and not sys.warnoptions:
        warnings.simplefilter("ignore")
    quieten_libraries(verbose)


def quieten_libraries(verbose: bool) -> None:
    """Errors only, unless --verbose; bars on a terminal only.

    Some of them set their level while they are imported: repeat it after that.
    """
    for name in () if verbose else CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    loaded = sys.modules.get("transformers.utils.logging")
    if loaded is not None and not sys.stderr.isatty():
        loaded.disable_progress_bar()
