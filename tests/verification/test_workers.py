from __future__ import annotations

import os
import time

from QEfficient.verification.workers import Failure, run_each


def work(item: str) -> str:
    if item == "dies":
        os._exit(3)
    if item == "sleeps":
        time.sleep(60)
    return item.upper()


def test_each_item_has_an_outcome_whatever_becomes_of_its_worker() -> None:
    found = dict(run_each(work, ["a", "dies", "b", "sleeps", "c"], jobs=2, timeout=4.0))
    assert found == {
        "a": "A",
        "b": "B",
        "c": "C",
        "dies": Failure("its process died (exit code 3)"),
        "sleeps": Failure("not done after 4 s"),
    }


def test_nothing_to_do() -> None:
    assert list(run_each(work, [], jobs=2, timeout=1.0)) == []
