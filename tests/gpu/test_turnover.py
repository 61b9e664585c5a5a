"""Cells in turn in one process with a GPU: the tenth finds what the first found, and its peak of memory is the same."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sweeps.test_no_leak import in_one_process, numbers

pytestmark = pytest.mark.gpu

KINDS = ("probe", "other", "exception", "evaluation", "nan", "oom", "stopped", "other", "other", "probe")
MEMORY = ("memory/peak_gib", "memory/state_gib", "memory/evaluation_gib", "memory/reserved_gib")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_one_process(tmp_path_factory.mktemp("in_turn") / "gpu", "cuda", *KINDS)


def test_each_ends_as_it_should(cells: list[dict[str, Any]]) -> None:
    ends = [cell["told"][-1].get("outcome") for cell in cells]
    assert ends == ["done", "done", "error", "error", "diverged", "oom", None, "done", "done", "done"]
    reasons = {cell["kind"]: cell["told"][-1].get("reason", "") for cell in cells}
    assert all("in the middle" in reasons[kind] for kind in ("exception", "evaluation"))


def test_the_first_and_the_tenth_report_the_same_memory_to_the_byte(cells: list[dict[str, Any]]) -> None:
    """What an earlier cell left on the device would count for a later one; what a later one finds ready and does not
    make itself would be missing. Matrix libraries keep workspaces of 32 MiB, and the data stays."""
    first, tenth = (numbers(cells[place]) for place in (0, 9))
    for before, after in zip(first, tenth, strict=True):
        named = [name for name in MEMORY if name in before]
        assert {name: after[name] for name in named} == {name: before[name] for name in named}
    assert set(MEMORY) <= set(first[-1])


def test_the_first_and_the_tenth_learn_the_same(cells: list[dict[str, Any]]) -> None:
    """Weights stand still, so that only sums over an epoch's steps depend on the order of additions."""
    first, tenth = (numbers(cells[place]) for place in (0, 9))
    for before, after in zip(first, tenth, strict=True):
        assert after == pytest.approx(before, rel=1e-6)


def test_the_process_is_as_it_was(cells: list[dict[str, Any]]) -> None:
    before, *after = cells
    for number, cell in enumerate(after, start=2):
        changed = {
            name: (before["state"][name], value)
            for name, value in cell["state"].items()
            if value != before["state"][name]
        }
        if cell["kind"] == "oom":
            assert changed.keys() == {"tensors", "device's memory", "bytes of the data"}, "it keeps nothing"
            assert cell["state"]["tensors"][0] == before["state"]["tensors"][0] - 3
            assert cell["state"]["device's memory"] == [0, 0]
        else:
            assert not changed, f"after cell {number}, {cell['kind']}"


def test_between_cells_the_device_holds_the_data_and_nothing_else(cells: list[dict[str, Any]]) -> None:
    for number, cell in enumerate(cells, start=1):
        allocated, _ = cell["state"]["device's memory"]
        assert allocated == cell["state"]["bytes of the data"], f"after cell {number}, {cell['kind']}"
