"""The node-precision file: which nodes stay in fp32 when everything else is converted to float16."""

from __future__ import annotations

import json
from collections.abc import Iterable

KEY = "FP32NodeInstanceNames"


def precision_text(names: Iterable[str], remarks: Iterable[str] = ()) -> str:
    """The text of the file. Names are quoted: some would be numbers or worse to a YAML reader."""
    said = "".join(f"# {remark}\n" for remark in remarks)
    return f"{said}{KEY}:\n" + "".join(f"  - {json.dumps(name, ensure_ascii=False)}\n" for name in names)
