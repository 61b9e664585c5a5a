from __future__ import annotations

import pytest

from sweeps import placement

CARD = 80 * 2**30


@pytest.mark.parametrize(
    ("gib", "share"), [(0.0, 0.125), (8.0, 0.125), (9.0, 0.1666), (20.0, 0.3333), (60.0, 1.0), (70.0, None)]
)
def test_the_smallest_share_that_holds_it(gib: float, share: float | None) -> None:
    assert placement.share(int(gib * 2**30), CARD) == share


def test_shares_fill_a_card_and_no_more() -> None:
    for share in placement.SHARES:
        assert int(1 / share) * round(share * 10_000) <= 10_000
