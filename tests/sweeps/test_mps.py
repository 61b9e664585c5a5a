"""The Multi-Process Service, with a stand-in for NVIDIA's control program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seqrec.errors import UserError
from sweeps import mps

ROOT = Path(__file__).parents[2]
CONTROL = """#!/bin/sh
# -f: serves until told to quit. Without: passes a command on.
cd "$CUDA_MPS_PIPE_DIRECTORY" || exit 1
if [ "$1" = -f ]; then
    echo $$ > "$RECORD"
    trap 'echo ended >> "$RECORD"; exit 0' TERM
    touch alive
    while [ ! -e quit ]; do sleep 0.02; done
    rm alive
    echo quit >> "$RECORD"
else
    [ -e alive ] || exit 1
    read command
    [ "$command" != quit ] || touch quit
fi
"""


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stand-in writes down: its pid, and how it ended."""
    program = tmp_path / "bin" / mps.CONTROL
    program.parent.mkdir()
    program.write_text(CONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.delenv(mps.PIPES, raising=False)
    return tmp_path / "record"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_runs_for_the_block_and_for_what_is_started_in_it(record: Path) -> None:
    with mps.service(True):
        pid = int(record.read_text())
        assert is_alive(pid)
        seen = subprocess.run([sys.executable, "-c", f"import os; print(os.environ['{mps.PIPES}'])"], **PRINTED)
        folder = Path(seen.stdout.strip())
        assert folder.is_dir()
    assert not is_alive(pid)
    assert record.read_text().split()[1:] == ["quit"]
    assert not folder.exists()
    assert mps.PIPES not in os.environ


PRINTED = {"capture_output": True, "text": True, "check": True}


def test_an_error_in_the_block_ends_it_too(record: Path) -> None:
    with pytest.raises(KeyError), mps.service(True):
        raise KeyError
    assert not is_alive(int(record.read_text().split()[0]))
    assert mps.PIPES not in os.environ


def test_somebody_elses_is_left_alone(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mps.PIPES, "/run/theirs")
    with mps.service(True):
        assert os.environ[mps.PIPES] == "/run/theirs"
    assert os.environ[mps.PIPES] == "/run/theirs"
    with mps.service(False):
        pass
    assert not record.exists()


def test_who_wants_it_and_cannot_have_it_is_told(record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin" / mps.CONTROL).write_text("#!/bin/sh\necho no driver >&2\nexit 3\n")
    with (
        pytest.raises(UserError, match=r"^resources.mps: .* ended \(no driver\); expected NVIDIA's"),
        mps.service(True),
    ):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=f"no {mps.CONTROL} on the PATH"), mps.service(True):
        pass
    assert mps.PIPES not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel that ties a child's life to its parent's")
def test_it_does_not_outlive_a_killed_driver(record: Path) -> None:
    code = (
        "import time\nfrom sweeps import mps\nwith mps.service(True):\n    print('up', flush=True)\n    time.sleep(60)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    assert driver.stdout.readline() == "up\n"
    pid = int(record.read_text())
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    deadline = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert record.read_text().split()[1:] == ["ended"]
