"""The switch of the tests that nothing waits for the device, on a fake of torch's that warns as torch does."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.waiting import nothing_waits


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The modes that were set, the last one in force; "warn" to begin with. Torch warns behind setting it, once."""
    modes = [1]

    def switch(mode: int | str) -> None:
        modes.append({"default": 0, "warn": 1, "error": 2}[mode] if isinstance(mode, str) else mode)
        if len(modes) == 2:
            warnings.warn(
                "Synchronization debug mode is a prototype feature and does not yet detect all of them",
                UserWarning,
                stacklevel=2,
            )

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", switch)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    return modes


def test_the_first_use_survives_its_warning_and_restores_what_was(modes: list[int]) -> None:
    for _ in range(2):
        with nothing_waits():
            assert modes[-1] == 2
        assert modes[-1] == 1


def test_a_failing_block_restores_it_too(modes: list[int]) -> None:
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"), nothing_waits():
        raise RuntimeError("called a synchronizing CUDA operation")
    assert modes == [1, 2, 1]


def test_any_other_warning_is_the_block_s_own(modes: list[int]) -> None:
    with pytest.raises(UserWarning, match="something else"), nothing_waits():
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert modes == [1, 2, 1]


def test_a_switch_that_fails_behind_setting_the_mode_is_undone(
    modes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = torch.cuda.set_sync_debug_mode

    def failing(mode: int | str) -> None:
        switch(mode)
        if mode == "error":
            raise RuntimeError("no")

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", failing)
    with pytest.raises(RuntimeError, match="no"), nothing_waits():
        pytest.fail("the block began")
    assert modes == [1, 2, 1]
