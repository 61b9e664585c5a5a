from __future__ import annotations

import pytest

from sweeps import environment


@pytest.mark.parametrize(
    ("head", "changes", "told", "commit"),
    [
        ("abc", "", "other", "abc"),
        ("abc", " M a.py", "other", "abc+"),
        ("", "", "other", "other"),
        ("", "", None, None),
    ],
)
def test_the_commit(
    head: str, changes: str, told: str | None, commit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"rev-parse": head, "status": changes}
    monkeypatch.setattr(environment, "_output", lambda *command: said.get(command[1], ""))
    monkeypatch.delenv("SEQREC_COMMIT", raising=False)
    if told:
        monkeypatch.setenv("SEQREC_COMMIT", told)
    assert environment.describe().get("git_commit") == commit
