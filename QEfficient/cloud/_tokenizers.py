"""Tokenizers: the one beside a model, and the one saved with a program, which is loaded without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from QEfficient.demo import DEMO_NAME, demo_folder
from QEfficient.errors import ModelError
from QEfficient.transformers.tokenizer_files import lacks_tokenizer

UNREADABLE = (OSError, ValueError, KeyError, ImportError, TypeError)
"""What transformers raises for a tokenizer that is missing or cannot be read."""


def model_tokenizer(model: str, options: Mapping[str, Any]) -> Any:
    """The tokenizer beside a model. `options`: `cache_dir`, `token`, `trust_remote_code`."""
    from transformers import AutoTokenizer

    location = str(demo_folder()) if model == DEMO_NAME else model
    if lacks_tokenizer(Path(location).expanduser()):
        raise ModelError(f"the folder {location} has no tokenizer, so the model cannot take text: save one there.")
    try:
        return AutoTokenizer.from_pretrained(location, **options)
    except UNREADABLE as error:
        raise ModelError(
            f"the model '{model}' has no tokenizer that can be read, so it cannot take text: {error}"
        ) from error


def saved_tokenizer(folder: Path) -> Any:
    """The tokenizer saved in `folder`, by the class that it was saved from: AutoTokenizer would import torch."""
    import transformers

    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        own = None if "auto_map" in config else getattr(transformers, config.get("tokenizer_class") or "", None)
        return (own or transformers.AutoTokenizer).from_pretrained(folder)
    except UNREADABLE as error:
        raise ModelError(f"the tokenizer in {folder} cannot be read: {error}") from error
