from __future__ import annotations

from QEfficient.generation.live_text import LiveText
from QEfficient.generation.request import FinishReason, Request
from QEfficient.generation.text import TextEvent


def test_answers_take_turns() -> None:
    """Whoever is not first waits, also when it has ended."""
    requests = [Request((1,)) for _ in range(3)]
    said: list[str] = []
    live = LiveText(dict(zip(requests, ("A:", "B:", "C:"), strict=True)), said.append)

    def come(number: int, text: str, reason: FinishReason | None = None) -> str:
        before = len(said)
        live.tell(TextEvent(requests[number], (), text, reason))
        return "".join(said[before:])

    assert said == ["A:"]
    assert [come(1, " b"), come(0, " a"), come(1, " bb", "stop"), come(2, " c")] == ["", " a", "", ""]
    assert come(0, " aa", "length") == " aa\nB: b bb\nC: c"
    assert come(2, " cc", "stop") == " cc\n"
