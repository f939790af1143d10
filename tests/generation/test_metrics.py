from __future__ import annotations

import pytest

from QEfficient.generation.metrics import (
    CloudAI100ExecInfo,
    CloudAI100ExecInfoNew,
    PerfMetrics,
    average,
    exec_info,
    perf_metrics,
)
from QEfficient.generation.request import RequestOutput, Timings


def output(count: int, submitted: float = 10.0, finished: float = 20.0, prefill: float = 1.0) -> RequestOutput:
    timings = Timings(submitted, submitted, submitted + prefill, finished, prefill)
    return RequestOutput("id", (1, 2), tuple(range(1, count + 1)), "length", timings, f"text {count}")


def test_continuous_batching() -> None:
    metrics = perf_metrics([output(9), output(5, finished=18.0), output(1, finished=12.0), output(8)])
    assert metrics == PerfMetrics(prefill_time=1.0, decode_perf=19 / 6, total_perf=1.9, total_time=10.0)


def test_static_batches_count_per_line() -> None:
    metrics = perf_metrics([output(9)] * 4, batch_size=2)
    assert metrics == PerfMetrics(prefill_time=2.0, decode_perf=16 / 6, total_perf=1.6, total_time=10.0)


def test_nothing_to_measure() -> None:
    waiting = RequestOutput("id", (1,), (), "cancelled", Timings(submitted=1.0, finished=2.0))
    assert perf_metrics([]) == perf_metrics([waiting]) == PerfMetrics(0.0, 0.0, 0.0, 0.0)
    assert perf_metrics([waiting, output(9)]) == perf_metrics([output(9)])


def test_only_prefill() -> None:
    assert perf_metrics([output(1, finished=11.0)]) == PerfMetrics(1.0, 0.0, 0.0, 1.0)


def test_lines_that_scripts_look_for() -> None:
    info = CloudAI100ExecInfo(2, [], [], PerfMetrics(0.5, 10.0, 8.0, 3.0))
    assert str(info).splitlines() == [
        "Average Prefill time a.k.a TTFT is= 0.50 sec",
        "Decode is= 20.00 tokens/sec",
        "Total is= 16.00 tokens/sec",
        "Total (E2E) inference time is= 3.00 sec",
    ]


def test_lines_without_texts() -> None:
    lines = str(CloudAI100ExecInfoNew(2, [], PerfMetrics(0.5, 10.0, 8.0, 3.0))).splitlines()
    assert lines[1:3] == ["Decode is= 20.00 token/sec", "Total is= 16.00 token/sec"] and len(lines) == 4


def test_the_mean_of_several_runs() -> None:
    assert average([PerfMetrics(1.0, 10.0, 8.0, 3.0), PerfMetrics(2.0, 20.0, 9.0, 5.0)]) == PerfMetrics(1.5, 15, 8.5, 4)


@pytest.mark.parametrize("prompts", [2, 3])
def test_exec_info_static(prompts: int) -> None:
    info = exec_info([output(3), output(1), output(2)][:prompts], 2, continuous_batching=False, pad_token_id=7)
    texts, ids = [["text 3", "text 1"], ["text 2"]], [[[1, 2, 3], [1, 7, 7]], [[1, 2]]]
    batches = (prompts + 1) // 2
    assert info.batch_size == 2
    assert info.generated_texts == texts[:batches]
    assert [batch.tolist() for batch in info.generated_ids] == ids[:batches]


@pytest.mark.parametrize("continuous", [True, False])
def test_several_answers_lie_together(continuous: bool) -> None:
    outputs = [output(3), output(1), output(2), output(2)]
    info = exec_info(outputs, 3, continuous, n=2)
    assert info.generated_texts == [["text 3", "text 1"], ["text 2", "text 2"]]
    assert [ids.tolist() for ids in info.generated_ids] == [[[1, 2, 3], [1, 0, 0]], [[1, 2], [1, 2]]]
    assert info.outputs == [outputs[:2], outputs[2:]] and info.batch_size == (1 if continuous else 3)


def test_an_answer_without_tokens() -> None:
    assert perf_metrics([output(0), output(5)]).total_perf == perf_metrics([output(1), output(5)]).total_perf


def test_exec_info_continuous() -> None:
    info = exec_info([output(3), output(1)], 2, continuous_batching=True)
    assert (info.batch_size, info.generated_texts) == (1, ["text 3", "text 1"])
    assert info.generated_ids.tolist() == [[1, 2, 3], [1, 0, 0]]
