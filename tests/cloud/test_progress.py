"""Long work shows on a terminal that it goes on, and nowhere else."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from command_line import GEOMETRY, Cli

from QEfficient import progress
from QEfficient.cloud._presentation import StageClock


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_stage_shows_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with StageClock() as clock:
        clock("weights")
        progress.tell(1_000_000, 4_000_000_000)
        clock("compile")
        progress.tell(2_500_000)
        clock.stop()
        progress.tell(1)  # between stages nothing is shown
    progress.tell(1)
    shown = screen.getvalue()
    assert "weights: 1.0 MB of 4.0 GB written" in shown and "compile: 2.5 MB written" in shown
    assert list(clock.seconds) == ["weights", "compile"]


@pytest.mark.parametrize("verbose", [False, True])
def test_elsewhere_nothing_is_shown(verbose: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with StageClock(verbose) as clock:
        clock("weights")
        progress.tell(1, 2)
    assert capsys.readouterr() == ("", "")


def test_export_and_compilation_tell(cli: Cli, scratch: Path, model_folder: Path) -> None:
    told: list[tuple[int, int | None]] = []

    class Clock(StageClock):
        def _advance(self, done: int, total: int | None) -> None:
            told.append((done, total))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("QEfficient.cloud._presentation.StageClock", Clock)
        assert cli("compile", model_folder, *GEOMETRY, "--device", "cpu").code == 0
    exported = [(done, total) for done, total in told if total is not None]
    compiled = [done for done, total in told if total is None]
    assert len(exported) > 5 and exported == sorted(exported)
    assert 0.8 * exported[-1][1] < exported[-1][0] <= exported[-1][1]
    assert len(compiled) > 5 and compiled == sorted(compiled) and compiled[-1] > 100_000
