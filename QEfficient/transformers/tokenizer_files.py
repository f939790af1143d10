"""Whether there is a tokenizer beside a model. Imports nothing heavy: commands ask before they load torch."""

from __future__ import annotations

from pathlib import Path

PATTERNS = ("*token*", "*vocab*", "merges*", "*bpe*", "*.model", "tekken*")


def lacks_tokenizer(place: Path) -> bool:
    """Whether a local folder has no file of a tokenizer; transformers would make an empty one for some types."""
    return place.is_dir() and not any(next(place.glob(pattern), None) for pattern in PATTERNS)
