"""A launch without nodes: noticed, said, waited for, and in the end given up. No ray: execution says what there is.

Tune would wait for a node in silence and for ever.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

LOOK_S = 5.0
SAY_S = 30.0
"""How long no node may be there before anything is said: schedulers of clusters replace them."""
PATIENCE_S = 900.0
"""How long until the launch ends; the same command goes on."""


class Nodes:
    """Watches whether any node can run a trial.

    served: whether one can, just now. halt: ends the launch for the reason it is given. clock: seconds.
    """

    def __init__(
        self, served: Callable[[], bool], halt: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._served, self._halt, self._clock = served, halt, clock
        self._looked = self._last_seen = clock()
        self._said = False

    def look(self) -> None:
        """Cheap; to be called often."""
        now = self._clock()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        if self._served():
            if self._said:
                print("a node is up again; the sweep goes on", file=sys.stderr)
            self._last_seen, self._said = now, False
            return
        away = now - self._last_seen
        if away >= PATIENCE_S:
            self._halt(
                f"no node could run a trial for {PATIENCE_S / 60:.0f} min. "
                "hint: start nodes and run the same command again, it goes on from there."
            )
        elif away >= SAY_S and not self._said:
            self._said = True
            print(
                f"no node is up that could run a trial; the sweep waits for one, up to {PATIENCE_S / 60:.0f} min",
                file=sys.stderr,
            )
