"""How a cell was timed follows from the attempts whose epochs its times are made of, and from nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.timing import AGAIN, ALONE, NONE, SHARED, UNKNOWN, Timings

ON_GPU = {"memory/peak_gib": 1.0}


class Story:
    """A ledger told in short."""

    def __init__(self) -> None:
        self.timings = Timings()
        self.attempts: dict[str, int] = {}

    def tell(self, type: str, **fields: Any) -> None:
        self.timings.add({"type": type, **fields})

    def start(self, key: str, share: float | None = 0.0, from_epoch: int = 0, node: str = "n") -> None:
        self.attempts[key] = self.attempts.get(key, 0) + 1
        given = {} if share is None else {"gpu_share": share}
        self.tell("start", cell_key=key, attempt=self.attempts[key], node=node, from_epoch=from_epoch, **given)

    def epochs(self, key: str, *numbers: int, metrics: Any = None) -> None:
        for number in numbers:
            self.tell("epoch", cell_key=key, attempt=self.attempts[key], epoch=number, metrics=metrics or {})

    def end(self, key: str, epochs: int, outcome: str = "done", metrics: Any = None) -> None:
        fields = {"attempt": self.attempts.get(key, 1), "outcome": outcome, "epochs": epochs}
        self.tell("end", cell_key=key, metrics=metrics or {}, **fields)

    def of(self, key: str) -> str:
        return self.timings.of(key)


@pytest.mark.parametrize(
    ("share", "kind"), [(0.125, SHARED), (0.9999, SHARED), (1.0, ALONE), (2.0, ALONE), (0.0, ALONE)]
)
def test_a_part_of_a_gpu_is_shared(share: float, kind: str) -> None:
    story = Story()
    story.start("a", share)
    story.epochs("a", 1)
    assert story.of("a") == kind
    story.end("a", 1)
    assert story.of("a") == kind


def test_without_an_epoch_there_is_no_time() -> None:
    story = Story()
    assert story.of("a") == NONE
    story.start("a", 0.5)
    story.end("a", 0, "oom")
    assert story.of("a") == NONE


def test_what_went_on_from_a_shared_attempt_is_shared() -> None:
    story = Story()
    story.start("a", 0.5)
    story.epochs("a", 1, 2)
    story.end("a", 2, "interrupted")
    story.start("a", 1.0, from_epoch=2)
    story.epochs("a", 3)
    story.end("a", 3)
    assert story.of("a") == SHARED


def test_what_began_anew_alone_is_alone() -> None:
    """Out of memory on a part of a GPU, then trained whole on all of it: the end's times are the second attempt's."""
    story = Story()
    story.start("a", 0.25)
    story.epochs("a", 1)
    story.end("a", 1, "oom")
    story.tell("retry", cell_key="a", outcome="oom")
    story.start("a", 1.0, from_epoch=0)
    assert story.of("a") == SHARED, "the only epoch on record is the first attempt's"
    story.epochs("a", 2)
    story.end("a", 2)
    assert story.of("a") == ALONE


def test_an_attempt_that_reported_nothing_does_not_count() -> None:
    story = Story()
    story.start("a", 0.5)
    story.end("a", 0, "interrupted")
    story.start("a", 1.0)
    story.epochs("a", 1)
    story.end("a", 1, "stopped")
    assert story.of("a") == ALONE


def test_an_attempt_that_only_tested_does_not_count() -> None:
    """The driver was killed between the last epoch and the test: all epochs are in the checkpoint."""
    story = Story()
    story.start("a", 1.0)
    story.epochs("a", 1, 2)
    story.start("a", 0.5, from_epoch=2)
    story.end("a", 2)
    assert story.of("a") == ALONE


def test_old_ledgers_of_gpus_do_not_know() -> None:
    story = Story()
    for key in ("a", "b"):
        story.start(key, None)
    story.epochs("a", 1, metrics=ON_GPU)
    story.epochs("b", 1)
    story.end("a", 1, metrics=ON_GPU)
    story.end("b", 1)
    assert story.of("a") == UNKNOWN
    assert story.of("b") == SHARED, "a CPU has no shares, and the two ran beside each other"


def test_on_a_cpu_trials_of_one_machine_share_it() -> None:
    story = Story()
    story.start("a", node="one")
    story.start("b", node="two")
    story.epochs("a", 1)
    story.epochs("b", 1)
    story.end("b", 1)
    story.start("c", node="one")
    story.epochs("c", 1)
    story.end("a", 1)
    story.end("c", 1)
    story.start("d", node="one")
    story.epochs("d", 1)
    story.end("d", 1)
    assert {key: story.of(key) for key in "abcd"} == {"a": SHARED, "b": ALONE, "c": SHARED, "d": ALONE}


@pytest.mark.parametrize("kind", ["plan", "close"])
def test_what_a_launch_left_running_runs_no_more(kind: str) -> None:
    story = Story()
    story.start("a")
    story.tell(kind)
    story.start("b")
    story.epochs("b", 1)
    assert story.of("b") == ALONE


def test_beside_others_a_whole_gpu_is_still_alone() -> None:
    story = Story()
    story.start("a", 1.0)
    story.start("b", 1.0)
    story.epochs("a", 1)
    assert story.of("a") == ALONE


def test_a_second_timing_wins() -> None:
    story = Story()
    story.start("a", 0.5)
    story.epochs("a", 1)
    story.end("a", 1)
    story.tell("timing", cell_key="a", epochs=3, metrics={"time/epoch_s": 1.0}, node="n", gpu="g")
    assert story.of("a") == AGAIN
    assert story.timings.of_training("a") == SHARED, "of the elapsed time, say"


def test_what_was_taken_over_is_as_its_ledger_said() -> None:
    story = Story()
    story.tell("reuse", cell_key="a", source={"name": "other", "timing": ALONE})
    story.tell("reuse", cell_key="b", source={"name": "older"})
    for key in "ab":
        story.tell("epoch", cell_key=key, attempt=1, epoch=1, metrics=ON_GPU)
        story.end(key, 1, metrics=ON_GPU)
    assert (story.of("a"), story.of("b")) == (ALONE, UNKNOWN)
