"""From the checkpoint to what each engine opens. Every module here is a program: folder of the model, folder to fill.

Each leaves `record.json`: bytes of the weights, and how many of them one decoding step reads (a separate embedding is
looked up, not read).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = "record.json"


def write_record(folder: Path, weight_bytes: int, step_bytes: int, **more: Any) -> None:
    record = {"weight_bytes": weight_bytes, "step_bytes": step_bytes, **more}
    (folder / RECORD).write_text(json.dumps(record, indent=1))
