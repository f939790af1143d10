"""A written root is found as an SDK, and its tools run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qaic_simulator.profiles import SDKS
from qaic_simulator.root import EXECUTABLES, FILES, main, write_root
from QEfficient.devices.cloud_ai_100 import sdk as installed


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("QAIC_SIM_")}
    return subprocess.run([str(a) for a in arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("sdk", SDKS)
def test_files_are_there_and_tools_can_be_run(tmp_path: Path, sdk: str) -> None:
    root = write_root(tmp_path / "a root", sdk)
    for place in FILES:
        assert (root / place).is_file()
        assert os.access(root / place, os.X_OK) == (Path(place).parts[0] in EXECUTABLES)
    for part in ("apps", "platform"):
        assert installed._version(root, part) == f"{sdk}.0"
        assert run(root / "tools" / "qaic-version-util", f"--{part}").stdout == f"{part}:{sdk}.0\n"
    assert run(root / "tools" / "qaic-version-util").stdout.splitlines() == [f"platform:{sdk}.0", f"apps:{sdk}.0"]
    assert run(root / "tools" / "qaic-version-util", "--all").returncode == 1


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("tool", ["qaic-compile", "qaic-exec"])
def test_compilers_are_those_of_the_release(tmp_path: Path, tool: str, sdk: str) -> None:
    root = write_root(tmp_path / "it's a root", sdk)
    ran = run(root / "exec" / tool, "-compile-only", f"-m={tmp_path}/no model.onnx")
    removed = tool == "qaic-compile" and sdk == "1.22"
    assert ran.returncode == 1 and ("simulator rule: arguments.removed" in ran.stderr) == removed
    assert ran.stdout.startswith("qaic simulator: ") and "Traceback" not in ran.stderr


def test_written_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "root"), "--sdk", "1.21"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'root'}\n"
    assert "1.21.0" in (tmp_path / "root" / "versions" / "apps.xml").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "other"), "--sdk", "1.0"])
    with pytest.raises(ValueError, match=r"SDK '1\.0' has no profile"):
        write_root(tmp_path / "other", "1.0")


def test_tools_run_with_the_python_that_is_named(tmp_path: Path) -> None:
    python = tmp_path / "some python"
    python.symlink_to(sys.executable)
    text = (write_root(tmp_path / "root", python=str(python)) / "exec" / "qaic-compile").read_text(encoding="utf-8")
    assert f"exec '{python}' -c" in text
