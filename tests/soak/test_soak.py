"""A thousand short cells while something breaks every few seconds, drivers included: each ends once, as if undisturbed.

SEQREC_SOAK_CELLS=200 SEQREC_SOAK_SEED=7 python -m pytest -m soak tests/soak/test_soak.py -s
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
sys.path.insert(0, str(Path(__file__).parent))

import drive
import hosts
import record
import stores
from aftermath import ClusterSweep, check
from plague import Plague

pytestmark = pytest.mark.soak

CELLS = int(os.environ.get("SEQREC_SOAK_CELLS", "1000"))
SEED = int(os.environ.get("SEQREC_SOAK_SEED", "1"))
MINUTES = float(os.environ.get("SEQREC_SOAK_MINUTES", "inf"))
"""How long faults go on, if the cells have not all ended before; then the rest may end in peace."""
EPOCHS = 3
MOST_S = 3600.0
WORKERS = 3
ALLOWED = (
    "MLflow at .* does not answer",
    "MLflow lacks",
    "No space left",
    "no node is up that could run a trial",
)
"""What may be said of trouble: one line each."""


def test_a_thousand_cells_under_a_fault_every_few_seconds(tmp_path: Path) -> None:
    if why := hosts.without_namespaces():
        pytest.skip(why)
    (tmp_path / "sweep").mkdir()
    with (
        stores.full(tmp_path / "sweep", 128) as filler,
        hosts.cluster(tmp_path, separate=True, workers=WORKERS, quick_detection=True) as cluster,
        stores.Store(tmp_path, cluster.network.gateway, cluster.network.name) as store,
    ):
        sweep = ClusterSweep(tmp_path / "sweep", cluster, store)
        try:
            _soak(sweep, filler)
        finally:
            sweep.kill()


def _soak(sweep: ClusterSweep, filler: Path) -> None:
    seeds = -(-CELLS // len(drive.SIZES))
    command = (f"--epochs={EPOCHS}", f"--seeds={seeds}", "--epoch-s=0.05")
    plague, begun = Plague(sweep, filler, SEED), time.monotonic()
    exits: Counter[int] = Counter()
    code, shown, struck = None, 0.0, 0
    while code != 0:
        sweep.start(*command)
        assert sweep.process
        while sweep.process.poll() is None:
            elapsed = time.monotonic() - begun
            if sweep.is_launched() and elapsed < 60 * MINUTES:
                plague.tick()
                struck = len(sweep.final()) if elapsed - shown >= 30 else struck
            else:
                plague.mend()
            assert elapsed < MOST_S, f"not over after {MOST_S:.0f} s: {plague.counts}"
            if elapsed - shown >= 30:
                shown = elapsed
                print(f"{elapsed:5.0f} s: {len(sweep.final())} ends, {plague.counts.total()} faults", flush=True)
            time.sleep(0.5)
        code, text = sweep.finish()
        exits[code] += 1
        # -2, -15: struck when all was written down and it was about to leave.
        assert code in (0, 1, 130, -9, -2, -15), text
        if code == 1:
            assert "No space left" in text, text
        filler.unlink(missing_ok=True)
    spent = time.monotonic() - begun
    plague.mend(all_now=True)
    code, text = sweep.run(*command)  # MLflow may have been down when the last launch ended
    assert code == 0, text
    assert "MLflow lacks" not in text
    counts = ", ".join(f"{count} x {kind}" for kind, count in plague.counts.most_common())
    codes = ", ".join(f"{count} x {code}" for code, count in sorted(exits.items()))
    said = [f"seed {SEED}, {spent / 60:.0f} min, {plague.counts.total()} faults: {counts}", f"exit codes: {codes}"]
    if spent > 60 * MINUTES:
        said.append(f"faults went on for {MINUTES:.0f} min; by then at least {struck} cells had ended")
    record.drill(f"a soak of {CELLS:,} cells", sweep, said, check(sweep, EPOCHS, ALLOWED, sweep.cluster.workers))
