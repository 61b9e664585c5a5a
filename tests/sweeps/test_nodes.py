"""What a launch does while no node is left to train on."""

from __future__ import annotations

import pytest

from sweeps.nodes import LOOK_S, PATIENCE_S, SAY_S, Nodes


class World:
    """A cluster and a clock, both set by hand."""

    def __init__(self) -> None:
        self.up = True
        self.now_s = 100.0
        self.looks = 0
        self.halts: list[str] = []
        self.nodes = Nodes(self._served, self.halts.append, lambda: self.now_s)

    def _served(self) -> bool:
        self.looks += 1
        return self.up

    def run(self, seconds: float) -> None:
        end = self.now_s + seconds
        while self.now_s < end:
            self.now_s += 0.5
            self.nodes.look()


def test_nothing_is_said_while_a_node_is_up_or_only_away_for_a_moment(capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    world.run(3 * PATIENCE_S)
    world.up = False
    world.run(SAY_S - LOOK_S)
    world.up = True
    world.run(60)
    assert not world.halts
    assert capsys.readouterr().err == ""


def test_it_is_asked_no_more_often_than_need_be() -> None:
    world = World()
    world.run(100)
    assert world.looks == 100 / LOOK_S


def test_that_no_node_is_left_is_said_once_and_so_is_that_one_is_back(capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    for _ in range(2):
        world.up = False
        world.run(PATIENCE_S - 2 * LOOK_S)
        world.up = True
        world.run(60)
    assert not world.halts, "the time away counts from the last sight of a node"
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "no node is up that could run a trial",
        "a node is up again",
    ] * 2


def test_the_launch_ends_when_none_comes(capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    world.up = False
    world.run(PATIENCE_S + LOOK_S)
    assert world.halts
    assert world.halts[0].startswith("no node could run a trial for 15 min. hint: start nodes and run the same command")
