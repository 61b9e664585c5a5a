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
from sweeps.mps import Wish, wish
from sweeps.spec import Resources

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
    with mps.service(Wish.YES):
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
    with pytest.raises(KeyError), mps.service(Wish.YES):
        raise KeyError
    assert not is_alive(int(record.read_text().split()[0]))
    assert mps.PIPES not in os.environ


def test_somebody_elses_is_left_alone(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mps.PIPES, "/run/theirs")
    with mps.service(Wish.YES):
        assert os.environ[mps.PIPES] == "/run/theirs"
    assert os.environ[mps.PIPES] == "/run/theirs"
    with mps.service(Wish.NO):
        pass
    assert not record.exists()


def test_who_wants_it_and_cannot_have_it_is_told(record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin" / mps.CONTROL).write_text("#!/bin/sh\necho no driver >&2\nexit 3\n")
    with (
        pytest.raises(UserError, match=r"^resources.mps: .* ended \(no driver\); expected NVIDIA's"),
        mps.service(Wish.YES),
    ):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=f"no {mps.CONTROL} on the PATH"), mps.service(Wish.YES):
        pass
    assert mps.PIPES not in os.environ


def test_who_can_do_without_it_goes_on_and_is_told(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mps.service(Wish.IF_IT_CAN):
        assert mps.PIPES in os.environ
    assert "Multi-Process Service runs" in capsys.readouterr().err
    (tmp_path / "bin" / mps.CONTROL).write_text("#!/bin/sh\necho no driver >&2\nexit 3\n")
    went_on = False
    with mps.service(Wish.IF_IT_CAN):
        went_on = mps.PIPES not in os.environ
    assert went_on
    assert "take turns. resources.mps: nvidia-cuda-mps-control ended (no driver)" in capsys.readouterr().err
    with pytest.raises(KeyError) as caught, mps.service(Wish.IF_IT_CAN):
        raise KeyError
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("resources", "address", "visible", "expected"),
    [
        (Resources(), None, None, Wish.IF_IT_CAN),
        (Resources(gpus_per_trial=0.5), None, "0,1", Wish.IF_IT_CAN),
        (Resources(gpus_per_trial=1.0), None, None, Wish.NO),
        (Resources(gpus_per_trial=0.0), None, None, Wish.NO),
        (Resources(mps=True, gpus_per_trial=0.0), None, None, Wish.NO),
        (Resources(mps=True, gpus_per_trial=1.0), None, "2,3", Wish.YES),
        (Resources(mps=False), None, None, Wish.NO),
        (Resources(), "auto", None, Wish.NO),
        (Resources(), None, "1", Wish.NO),
        (Resources(), None, "GPU-6f2e", Wish.NO),
    ],
)
def test_who_wants_it(
    record: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    resources: Resources,
    address: str | None,
    visible: str | None,
    expected: Wish,
) -> None:
    monkeypatch.setattr("sweeps.environment.gpus", lambda: ("a GPU",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert wish(resources, address) is expected
    assert ("CUDA_VISIBLE_DEVICES" in capsys.readouterr().err) is (visible in ("1", "GPU-6f2e"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert wish(resources, address) is (expected if expected is Wish.YES else Wish.NO)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel that ties a child's life to its parent's")
def test_it_does_not_outlive_a_killed_driver(record: Path) -> None:
    code = (
        "import time\nfrom sweeps import mps\n"
        "with mps.service(mps.Wish.YES):\n    print('up', flush=True)\n    time.sleep(60)"
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
