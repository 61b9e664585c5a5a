"""The cursor: up to which byte of the ledger one MLflow store has acknowledged everything."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeps.tracking.links import safe_uri

FILE_NAME = "tracking.json"


@dataclass
class Cursor:
    """How far a store has heard a ledger, and under which ids it knows the sweep."""

    sweep_id: str = ""
    offset: int = 0
    experiment_id: str | None = None
    run_id: str | None = None
    dead_letters: int = 0

    @staticmethod
    def load(directory: Path, uri: str) -> Cursor:
        """Where this store stands; the beginning if nobody knows, for telling everything again changes nothing."""
        try:
            return Cursor(**_tree(directory)[safe_uri(uri)])
        except (KeyError, TypeError):
            return Cursor()

    def save(self, directory: Path, uri: str) -> None:
        tree = _tree(directory) | {safe_uri(uri): asdict(self)}
        partial = directory / f"{FILE_NAME}.partial"
        partial.write_text(json.dumps(tree, indent=1), encoding="utf-8")
        partial.replace(directory / FILE_NAME)


def _tree(directory: Path) -> dict[str, Any]:
    try:
        tree = json.loads((directory / FILE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
