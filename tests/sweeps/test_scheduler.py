"""The launch as Tune sees it; Tune itself is in tests/faults."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps.outcomes import Outcome
from sweeps.scheduler import LaunchScheduler, LaunchSearcher, LaunchStopper
from sweeps.trial import MESSAGE


class FakeLaunch:
    stopping = ""

    def __init__(self, stop: bool = False) -> None:
        self.stop = stop
        self.messages: list[Any] = []
        self.losses: list[Any] = []
        self.tries = True
        self.nodes: list[bool] = []
        self.epochs: list[int] = []
        self.ledger = SimpleNamespace(state=SimpleNamespace(cells={"k": SimpleNamespace(epochs=4)}))

    def message(self, cell_key: str, message: dict[str, Any]) -> bool:
        self.messages.append((cell_key, message))
        return self.stop

    @property
    def deaths(self) -> FakeLaunch:
        return self

    def again(self, cell_key: str, epochs: int, *, node: bool) -> bool:
        self.nodes.append(node)
        self.epochs.append(epochs)
        return self.tries

    def lost(self, cell_key: str, reason: str, *, outcome: Outcome) -> None:
        self.losses.append((cell_key, reason, outcome))

    def halt(self, reason: str) -> None:
        self.stop = True

    def should_stop(self) -> bool:
        return self.stop


class FakeFeed:
    """Hands over what it is given."""

    def __init__(self, *cells: Any) -> None:
        self.cells = list(cells)
        self.ended: list[str] = []
        self.finished = False

    def next(self) -> Any:
        return self.cells.pop(0) if self.cells else None

    def share(self, cell: Any) -> float:
        return 0.25

    def over(self, cell_key: str) -> None:
        self.ended.append(cell_key)


def searcher(feed: FakeFeed) -> LaunchSearcher:
    return LaunchSearcher(feed)


def trial(error_file: Path | None = None) -> Any:
    path = str(error_file) if error_file else None
    return SimpleNamespace(config={"cell_key": "k"}, trial_id="t", pickled_error_file=path, max_failures=-1)


def adapter(launch: FakeLaunch) -> LaunchScheduler:
    return LaunchScheduler(launch, searcher(FakeFeed()))


@pytest.mark.parametrize(("stop", "decision"), [(True, TrialScheduler.STOP), (False, TrialScheduler.CONTINUE)])
def test_results_go_to_the_launch_and_its_word_is_law(stop: bool, decision: str) -> None:
    launch = FakeLaunch(stop)
    message = {"kind": "epoch", "epoch": 1, "metrics": {}}
    assert adapter(launch).on_trial_result(None, trial(), {MESSAGE: json.dumps(message), "pid": 3}) == decision
    assert launch.messages == [("k", message)]


def test_a_function_that_returns_is_over() -> None:
    launch = FakeLaunch()
    assert adapter(launch).on_trial_result(None, trial(), {"__duplicate__": True}) == TrialScheduler.STOP
    assert launch.messages == []


def test_a_dead_process_is_interrupted_while_the_launch_tries_again_and_an_error_after(tmp_path: Path) -> None:
    file = tmp_path / "error.pkl"
    file.write_bytes(cloudpickle.dumps(ActorDiedError()))
    launch = FakeLaunch()
    retried, given_up = trial(file), trial(file)
    adapter(launch).on_trial_error(None, retried)
    launch.tries = False
    adapter(launch).on_trial_error(None, given_up)
    reason = "ActorDiedError: The actor died unexpectedly before finishing this task."
    assert launch.losses == [("k", reason, Outcome.INTERRUPTED), ("k", reason, Outcome.ERROR)]
    assert (retried.max_failures, given_up.max_failures) == (-1, 0), "or Tune would start it for ever"


@pytest.mark.parametrize(
    ("error", "node"),
    [
        (
            RayActorError(
                "12", "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
            ),
            False,
        ),
        (
            RayActorError(
                "12", "The actor died because its node has died. Node Id: 12 the actor's node was terminated"
            ),
            True,
        ),
        (RayActorError("12", "The actor died unexpectedly.\nThe actor never ran - it was cancelled before"), True),
        (ActorUnavailableError("RPC error: Socket closed", None), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_what_the_cluster_did_is_told_from_what_befell_the_process(
    tmp_path: Path, error: Exception, node: bool
) -> None:
    file = tmp_path / "error.pkl"
    file.write_bytes(cloudpickle.dumps(error))
    launch = FakeLaunch()
    adapter(launch).on_trial_error(None, trial(file))
    assert (launch.nodes, launch.epochs) == ([node], [4])


def test_a_reason_names_what_ray_says_the_process_died_of(tmp_path: Path) -> None:
    cause = "The actor is dead because its worker process has died. Exit: 9"
    said = f"The actor died unexpectedly.\n\tpid: 7\n{cause}\nThe actor x"
    file = tmp_path / "error.pkl"
    file.write_bytes(cloudpickle.dumps(RayActorError("12", said)))
    launch = FakeLaunch()
    adapter(launch).on_trial_error(None, trial(file))
    assert launch.losses == [("k", f"RayActorError: {cause}", Outcome.INTERRUPTED)]


@pytest.mark.parametrize("stopping", ["budget", "interrupted", "halted"])
def test_a_process_that_dies_while_the_launch_ends_is_no_error_of_its_cell(tmp_path: Path, stopping: str) -> None:
    file = tmp_path / "error.pkl"
    file.write_bytes(cloudpickle.dumps(ActorDiedError()))
    launch = FakeLaunch()
    launch.stopping = stopping
    adapter(launch).on_trial_error(None, trial(file))
    assert [outcome for *_, outcome in launch.losses] == [Outcome.INTERRUPTED]


def test_what_killed_the_process_decides_the_outcome(tmp_path: Path) -> None:
    file = tmp_path / "error.pkl"
    file.write_bytes(cloudpickle.dumps(MemoryError("x")))
    launch = FakeLaunch()
    launch.tries = False
    adapter(launch).on_trial_error(None, trial(file))
    assert launch.losses == [("k", "MemoryError: x", Outcome.OOM)]


@pytest.mark.parametrize("content", [None, b"", b"\x80garbage"])
def test_an_error_that_cannot_be_read_is_still_an_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "error.pkl"
    if content is not None:
        file.write_bytes(content)
    launch = FakeLaunch()
    launch.tries = False
    adapter(launch).on_trial_error(None, trial(file))
    adapter(launch).on_trial_error(None, trial(None))
    assert [loss[2] for loss in launch.losses] == [Outcome.ERROR, Outcome.ERROR]


def test_tune_can_pickle_all_three_without_the_launch() -> None:
    launch = FakeLaunch()
    launch.lock = open(__file__)  # noqa: SIM115 - what a real launch cannot pickle
    copy = pickle.loads(pickle.dumps(adapter(launch)))
    assert type(copy) is FIFOScheduler
    pickle.dumps(LaunchStopper(launch))
    feed = FakeFeed()
    feed.lock = launch.lock
    pickle.dumps(searcher(feed))
    launch.lock.close()


def test_the_stopper_asks_the_launch() -> None:
    stopper = LaunchStopper(FakeLaunch(stop=True))
    assert stopper.stop_all()
    assert not stopper("t", {})


def test_no_trial_is_chosen_out_of_turn() -> None:
    assert adapter(FakeLaunch()).choose_trial_to_run(None) is None


def test_the_searcher_passes_on_what_the_feed_says() -> None:
    feed = FakeFeed(SimpleNamespace(cell_key="k"))
    asked = searcher(feed)
    assert asked.suggest("t") == {"cell_key": "k", "gpu_share": 0.25}
    assert asked.suggest("t") is None
    feed.finished = True
    assert asked.suggest("t") == Searcher.FINISHED


def test_a_trial_that_is_over_is_seen_however_it_ended() -> None:
    """A retried one is not, though Tune has called it failed in between."""
    feed = FakeFeed()
    asked = searcher(feed)
    scheduler = LaunchScheduler(FakeLaunch(), asked)
    one = SimpleNamespace(config={"cell_key": "k"}, is_finished=lambda: False)
    scheduler.on_trial_add(None, one)
    scheduler.on_trial_add(None, one)
    asked.suggest("t")
    assert feed.ended == []
    one.is_finished = lambda: True
    asked.suggest("t")
    asked.suggest("t")
    assert feed.ended == ["k"], "once"


def test_a_launch_without_nodes_ends_when_it_has_waited_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = FakeLaunch()
    for name in ("LOOK_S", "PATIENCE_S"):
        monkeypatch.setattr(f"sweeps.nodes.{name}", 0.0)
    assert not LaunchStopper(launch, lambda: True).stop_all()
    assert LaunchStopper(launch, lambda: False).stop_all()
