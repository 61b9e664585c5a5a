"""What failed is tried again on request, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps import results
from sweeps.ledger import Ledger
from sweeps.outcomes import Outcome
from tests.sweeps.test_execute import CELLS, FakeRay, ray as ray
from tests.sweeps.test_reuse import run, told

assert ray  # the fixture


@pytest.mark.parametrize("outcomes", [(Outcome.OOM,), (Outcome.OOM, Outcome.ERROR)])
def test_a_retry_runs_those_outcomes_again(tmp_path: Path, ray: FakeRay, outcomes: tuple[Outcome, ...]) -> None:
    ray.outcomes = {1: "oom", 2: "error", 3: "diverged", 4: "done"}
    run(tmp_path, "s", 1, 2, 3, 4)
    ray.outcomes = dict.fromkeys(range(1, 5), "done")
    run(tmp_path, "s", 1, 2, 3, 4)
    assert ray.rounds[1:] == []
    run(tmp_path, "s", 1, 2, 3, 4, retry=outcomes)
    assert ray.rounds[1:] == [[1, 2][: len(outcomes)]]
    table = results.table(tmp_path / "s").set_index("cell_key")
    assert list(table["outcome"]) == ["done", "done" if len(outcomes) == 2 else "error", "diverged", "done"]
    assert table["attempt"].iloc[0] == 2
    assert [event["outcome"] for event in told(tmp_path, "s", "retry")] == [outcome.value for outcome in outcomes]
    run(tmp_path, "s", 1, 2, 3, 4, retry=outcomes)
    assert len(ray.rounds) == 2, "done now"


def test_a_retry_that_a_limit_cuts_leaves_the_rest_as_it_was(tmp_path: Path, ray: FakeRay) -> None:
    ray.outcomes = {1: "oom", 2: "oom"}
    run(tmp_path, "s", 1, 2)
    run(tmp_path, "s", 1, 2, retry=(Outcome.OOM,), limit_trials=1)
    assert ray.rounds[1:] == [[1]]
    assert list(results.table(tmp_path / "s")["outcome"]) == ["oom", "oom"]


def test_only_failures_are_opened_again(tmp_path: Path, ray: FakeRay) -> None:
    run(tmp_path, "s", 1)
    with Ledger(tmp_path / "s") as ledger:
        assert ledger.append("retry", cell_key=CELLS[0].cell_key, outcome="done") is None
        assert ledger.append("reuse", cell_key=CELLS[0].cell_key, source={"name": "x"}) is None
