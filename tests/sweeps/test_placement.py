from __future__ import annotations

import pytest

from sweeps import cluster, environment, placement
from sweeps.spec import Resources

CARD = 80 * 2**30


@pytest.mark.parametrize(
    ("gib", "share"), [(0.0, 0.125), (8.0, 0.125), (9.0, 0.1666), (20.0, 0.3333), (60.0, 1.0), (70.0, None)]
)
def test_the_smallest_share_that_holds_it(gib: float, share: float | None) -> None:
    assert placement.share(int(gib * 2**30), CARD) == share


def test_shares_fill_a_card_and_no_more() -> None:
    for share in placement.SHARES:
        assert int(1 / share) * round(share * 10_000) <= 10_000


@pytest.mark.parametrize(
    ("asked", "address", "gpus", "found"),
    [
        ("auto", None, (), False),
        ("auto", None, ("H100",), True),
        ("auto", "auto", (), True),
        (0.0, "auto", ("H100",), False),
        (0.5, None, (), True),
    ],
)
def test_where_trials_run(
    asked: float | str, address: str | None, gpus: tuple[str, ...], found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: gpus)
    assert placement.on_gpus(Resources.model_validate({"gpus_per_trial": asked}), address) is found


@pytest.mark.parametrize(
    ("asked", "address", "here", "there", "found"),
    [
        ("auto", None, False, True, False),
        ("auto", None, True, False, True),
        ("auto", "auto", True, False, False),
        ("auto", "auto", False, True, True),
        (0.0, "auto", True, True, False),
        (0.5, "auto", True, False, True),  # as stated: such a cluster is refused, not trained on by other means
    ],
)
def test_where_trials_run_once_the_cluster_can_be_asked(
    asked: float | str, address: str | None, here: bool, there: bool, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"GPU": 1.0}}]
    nodes += [{"Alive": True, "Resources": {"GPU": 1.0}}] if there else []
    monkeypatch.setattr(environment, "gpus", lambda: ("H100",) if here else ())
    monkeypatch.setattr(cluster.ray, "nodes", lambda: nodes)
    assert cluster.on_gpus(Resources.model_validate({"gpus_per_trial": asked}), address) is found


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden_are_none(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_output", lambda *command: "NVIDIA H100 80GB HBM3\nNVIDIA H100 80GB HBM3")
    environment.gpus.cache_clear()
    assert len(environment.gpus()) == 2
    environment.gpus.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert environment.gpus() == ()
    environment.gpus.cache_clear()
