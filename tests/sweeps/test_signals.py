"""Signals reach the driver after Ray has started, which sets handlers of its own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.sweeps.test_execute import FakeRay, ray as ray
from tests.sweeps.test_reuse import run, told

assert ray  # the fixture


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ray_s_own_handlers_do_not_outlive_its_start(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def starts(self: FakeRay) -> None:
        signal.signal(number, lambda *_: sys.exit(15))

    before = signal.getsignal(number)
    monkeypatch.setattr(FakeRay, "__enter__", starts)
    ray.before_fit = lambda launch: os.kill(os.getpid(), number)
    assert run(tmp_path, "s", 1) == 130
    assert [event["reason"] for event in told(tmp_path, "s", "close")] == ["interrupted"]
    assert signal.getsignal(number) is before
