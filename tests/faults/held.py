"""`drive.py` with one cell, that of batch size 24, that does not begin its first epoch before <directory>/go exists."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import drive

SLOW = 24


class Trainer(drive.Trainer):
    def __call__(self, run: Any, *, on_epoch: Any, **rest: Any) -> Any:
        while run.train.batch_size == SLOW and not (self.directory / "go").exists():
            time.sleep(0.02)
        return super().__call__(run, on_epoch=on_epoch, **rest)


if __name__ == "__main__":
    drive.Trainer = Trainer
    sys.exit(drive.main())
