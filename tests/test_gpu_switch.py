"""The law of tests/conftest.py, on a machine with and without CUDA: a skip is not a pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
INI = "[pytest]\nmarkers = gpu\naddopts = -p no:cacheprovider\n"
FAKE_TORCH = "class cuda:\n    is_available = staticmethod(lambda: {cuda})\n"
GPU_TEST = "import pytest\n\n@pytest.mark.gpu\ndef test_on_gpu():\n    pass\n"
SKIPS_ITSELF = "import pytest\n\n@pytest.mark.gpu\ndef test_on_gpu():\n    pytest.skip('no reason')\n"
OTHER_TEST = "\ndef test_elsewhere():\n    pass\n"


@pytest.mark.parametrize(
    ("cuda", "require", "tests", "code", "said"),
    [
        (False, "0", GPU_TEST + OTHER_TEST, 0, "1 passed, 1 skipped"),
        (False, "1", GPU_TEST + OTHER_TEST, 1, "this machine shows no CUDA device"),
        (True, "0", GPU_TEST, 0, "1 passed"),
        (True, "1", GPU_TEST, 0, "1 gpu tests executed"),
        (True, "1", OTHER_TEST, 1, "0 gpu tests executed; expected at least one"),
        (True, "1", SKIPS_ITSELF + OTHER_TEST, 1, "0 gpu tests executed; expected at least one"),
    ],
    ids=["skipped", "missing", "optional", "executed", "none-selected", "none-ran"],
)
def test_gpu_switch(tmp_path: Path, cuda: bool, require: str, tests: str, code: int, said: str) -> None:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "pytest.ini").write_text(INI)
    (tmp_path / "torch.py").write_text(FAKE_TORCH.format(cuda=cuda))
    (tmp_path / "test_it.py").write_text(tests)
    result = subprocess.run(
        [sys.executable, "-m", "pytest"],
        cwd=tmp_path,
        env=os.environ
        | {"SEQREC_REQUIRE_GPU": require, "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said in result.stdout, result.stdout + result.stderr
    assert result.returncode == code, result.stdout
