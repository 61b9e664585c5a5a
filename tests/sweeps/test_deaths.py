"""When a cell whose process dies again and again is given up, and when it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sweeps.deaths import NODE_RETRIES, RETRIES, Deaths


def tries(deaths: Deaths, epochs: Callable[[int], int], *, node: bool, most: int = 100) -> int:
    """Attempts until the cell is given up, if its attempt n ends with epochs(n) told; `most` if it is not."""
    return next((n for n in range(1, most) if not deaths.again("a", epochs(n), node=node)), most)


@pytest.mark.parametrize(("node", "retries"), [(False, RETRIES), (True, NODE_RETRIES)])
def test_a_cell_that_gets_nowhere_is_given_up(node: bool, retries: int) -> None:
    assert tries(Deaths(), lambda n: 0, node=node) == retries + 1


@pytest.mark.parametrize("node", [False, True])
def test_a_cell_that_gets_on_is_not(node: bool) -> None:
    assert tries(Deaths(), lambda n: n, node=node) == 100
    assert tries(Deaths(), lambda n: n // 2, node=node) == 100, "an epoch every other attempt is enough"


def test_a_cell_that_always_dies_at_the_same_epoch_is_given_up_after_as_many_tries_as_one_that_never_gets_there() -> (
    None
):
    assert tries(Deaths(), lambda n: 2, node=False) == RETRIES + 1


def test_the_cluster_s_faults_use_up_none_of_the_cell_s_own_tries() -> None:
    deaths = Deaths()
    assert all(deaths.again("a", 1, node=True) for _ in range(NODE_RETRIES))
    assert tries(deaths, lambda n: 1, node=False) == RETRIES + 1


def test_cells_are_counted_apart() -> None:
    deaths = Deaths()
    tries(deaths, lambda n: 0, node=False)
    assert deaths.again("b", 0, node=False)
