"""Where trials run: on the cluster's GPUs, in shares by predicted memory, or on CPUs, which is said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from seqrec.errors import UserError
from sweeps import execute
from sweeps.ledger import FILE_NAME, read
from sweeps.outcomes import Outcome
from sweeps.space import Plan
from sweeps.spec import Resources
from tests.sweeps.test_execute import CELLS, PLAN, STATISTICS, FakeRay, events, options, ray as ray, space

assert ray  # the fixture


def test_cells_that_fit_no_gpu_are_not_tried(tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.environment.gpus", lambda: ("a GPU",))
    large = replace(CELLS[0], predicted_bytes=20 * 2**30)
    plan = Plan((large, *CELLS[1:]), 0, (), (), STATISTICS, "x")
    assert execute.run(space(resources=Resources(gpus_per_trial="auto")), plan, options(tmp_path)) == 0
    assert ray.rounds == [[2, 3, 4, 5, 6]]
    assert ray.options["gpu_shares"] == dict.fromkeys((one.cell_key for one in CELLS[1:]), 0.25)
    [end] = [event for event in events(tmp_path, "end") if event["cell_key"] == large.cell_key]
    assert end["outcome"] == Outcome.PREDICTED_OOM


def test_a_machine_without_a_gpu_trains_on_its_cpus_and_says_so(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweeps.environment.gpus", lambda: ())
    assert execute.run(space(resources=Resources()), PLAN, options(tmp_path)) == 0
    assert ray.options["gpu_shares"] == {}
    assert capsys.readouterr().err.count("no GPU is seen on this machine") == 1
    assert execute.run(space(), PLAN, options(tmp_path / "told")) == 0
    assert "no GPU is seen" not in capsys.readouterr().err


def test_the_multi_process_service_runs_while_trials_do(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    @contextmanager
    def service(wanted: bool) -> Iterator[None]:
        asked.append(wanted)
        yield

    monkeypatch.setattr("sweeps.mps.service", service)
    monkeypatch.setattr("sweeps.environment.gpus", lambda: ("a GPU",))
    for place, resources in (("on", Resources(mps=True)), ("off", Resources())):
        execute.run(space(resources=resources), PLAN, options(tmp_path / place))
    execute.run(space(resources=Resources(mps=True, gpus_per_trial=0.0)), PLAN, options(tmp_path / "cpu"))
    assert asked == [True, False, False]
    with pytest.raises(UserError, match=r"^resources.mps: got True; expected false with --address"):
        execute.run(space(resources=Resources(mps=True)), PLAN, options(tmp_path / "far", address="auto"))
    assert list(read(tmp_path / "far" / "s" / FILE_NAME)) == []
