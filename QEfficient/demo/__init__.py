"""The built-in demo model: a very small Llama that ships with the package (see README.md beside this file)."""

from pathlib import Path

DEMO_NAME = "demo"


def demo_folder() -> Path:
    """The folder that holds the demo model's configuration, weights and tokenizer."""
    return Path(__file__).resolve().parent


def held_out_text() -> str:
    """English text the demo model was not trained on, one paragraph per line."""
    return (demo_folder() / "held_out.txt").read_text(encoding="utf-8")
