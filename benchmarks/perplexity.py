"""What rounding costs: perplexity of the demo model on its held-out text, by weight format and cache.

python -m benchmarks.perplexity                 the table of docs/cpu.md
python -m benchmarks.perplexity '{"weight_format": "int4", "group_size": 64}'
"""

from __future__ import annotations

import json
import sys
from typing import Any

from transformers import AutoTokenizer

from QEfficient import QEFFAutoModelForCausalLM
from QEfficient.demo import DEMO_NAME, demo_folder
from QEfficient.devices import get_device
from QEfficient.program import load_compiled
from QEfficient.verification.perplexity import perplexity

WINDOW = 512
EXACT = {"weight_format": "f32", "kv_cache": "f32"}
FORMATS: tuple[dict[str, Any], ...] = (
    {"weight_format": "f32", "kv_cache": "u8"},
    {"weight_format": "bf16"},
    {"weight_format": "int8"},
    {"weight_format": "int4"},
    {"weight_format": "int4", "calibration": "self"},
    {"weight_format": "int4", "group_size": 32},
    {"weight_format": "int4", "calibration": "self", "head_format": "int8"},
)


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    text = (demo_folder() / "held_out.txt").read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    model = QEFFAutoModelForCausalLM.from_pretrained(DEMO_NAME)
    exact = None
    for options in (EXACT, *(map(json.loads, sys.argv[1:]) if sys.argv[1:] else FORMATS)):
        compiled = load_compiled(model.compile(device="cpu", ctx_len=WINDOW, **options))
        with get_device("cpu").load(compiled) as session:
            found = perplexity(session, ids, WINDOW, 1)
        exact = exact or found
        print(f"{json.dumps(options)}: {found:.3f}, {100 * (found / exact - 1):+.2f} %", flush=True)


if __name__ == "__main__":
    main()
