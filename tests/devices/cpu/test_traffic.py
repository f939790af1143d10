"""Who shares a batch, what was computed before and what had to give way changes nobody's tokens."""

from __future__ import annotations

import pytest
from conftest import Exported

from QEfficient.devices import get_device
from QEfficient.verification.traffic import differences, in_traffic, make_requests, one_by_one

ASKED = make_requests(200, range(2, 300), longest=240)
OFF = 1e-5
"""In float32: how far logits of a token may be from those that it has alone, as a part of their spread."""
OFF_COMPRESSED = 0.02


@pytest.mark.parametrize(
    ("options", "tolerated"),
    [
        ({"weight_format": "f32"}, OFF),
        ({"weight_format": "int4", "batch_invariant": True}, 0.0),
        ({"weight_format": "int8", "batch_invariant": True, "kv_cache": "f32"}, 0.0),
        ({"weight_format": "int4"}, OFF_COMPRESSED),
    ],
    ids=str,
)
def test_two_hundred_requests(llama: Exported, options: dict[str, object], tolerated: float) -> None:
    sizes = {"ctx_len": 256, "max_sequences": 32, "max_tokens": 64, "num_threads": 2}
    roomy, tight = (llama.compile(**options, **sizes, kv_cache_tokens=tokens) for tokens in (8192, 320))
    with get_device("cpu").load(roomy) as session:
        expected = one_by_one(session, ASKED)
    for compiled in (roomy, tight):
        with get_device("cpu").load(compiled) as session:
            for prefix_cache in (True, False):
                found, counts = in_traffic(session, ASKED, prefix_cache=prefix_cache, seed=prefix_cache)
                assert (counts.preemptions > 0) == (compiled is tight)
                assert (counts.cache.hit_tokens > 0) == prefix_cache
                assert counts.ended["cancelled"] > 0
                others = list(differences(expected, found))
                assert all(other.lead < tolerated for other in others), others
