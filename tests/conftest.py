"""What every test shares: a closed environment, and the law that a skipped GPU test is not a passed one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from pathlib import Path

import pytest

REQUIRE_GPU = "SEQREC_REQUIRE_GPU"
"""Set to 1: a missing CUDA device fails every gpu test, and a session that executed none fails as a whole."""

FOREIGN = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "RAY_ADDRESS")
"""Would point a test at somebody's server, cluster or run."""

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/version")
"""One of them is there if CUDA can be; asking torch would make every session import it."""

EXECUTED = pytest.StashKey[list[str]]()
"""The gpu tests that ran to a verdict."""

CLOSED = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "GIT_PYTHON_REFRESH": "quiet",
    "MPLBACKEND": "Agg",
    # One thread a process: small tensors gain nothing from more, and the values do not depend on the machine's cores.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def pytest_configure(config: pytest.Config) -> None:
    """Closes the environment before any test module is imported; child processes inherit it."""
    for name in FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(CLOSED)
    # Before any kernel is defined: where there is no GPU, Triton interprets them.
    if not any(Path(path).exists() for path in GPU_DRIVERS):
        os.environ["TRITON_INTERPRET"] = "1"
    # Ray would write a token into the home directory of its first local cluster; given one, it writes none.
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Matplotlib, Triton and Ray keep caches at home. Theirs lie beside pytest's own, and last.
    home = Path(config.rootpath, ".pytest_cache", "home")
    home.mkdir(parents=True, exist_ok=True)
    os.environ["HOME"] = str(home)
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR"):
        os.environ.pop(name, None)
    config.stash[EXECUTED] = []


def gpu_required() -> bool:
    return os.environ.get(REQUIRE_GPU) == "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test marked gpu on a machine without CUDA, before its fixtures; fails it where a GPU is required."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch  # tests that need no GPU do not pay for the import

    if torch.cuda.is_available():
        return
    if gpu_required():
        pytest.fail(f"{REQUIRE_GPU}=1, and this machine shows no CUDA device.", pytrace=False)
    pytest.skip(f"no CUDA device ({REQUIRE_GPU}=1 makes this a failure)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and not report.skipped and item.get_closest_marker("gpu") is not None:
        item.config.stash[EXECUTED].append(item.nodeid)
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if gpu_required() and not session.config.stash[EXECUTED] and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if gpu_required():
        count = len(config.stash[EXECUTED])
        line = f"{REQUIRE_GPU}=1: {count} gpu tests executed"
        terminalreporter.write_line(line if count else f"{line}; expected at least one.", red=not count)
