"""Drains the ledger into MLflow: one parent run a sweep, one child a cell, each exactly once. Sole importer of mlflow.

The ledger is the truth and MLflow a view of it, so nothing here can stop or slow a trial: a thread of the driver reads
the file behind its writer. What gets lost on the way (a crash, a server that is down) is told again from the cursor,
the byte offset up to which MLflow has acknowledged everything; telling again changes nothing, for runs are found by
their tags before any is created, and every value keeps the time of its event.

    tracker     Tracker: the thread, its patience and its lock
    session     the calls to MLflow; the only place that imports it
    records     ledger events -> what each run is to be told
    cursor      how far each store has heard
    links       addresses of stores, ready-made views, links for people
"""

from sweeps.tracking.session import DEAD_LETTERS
from sweeps.tracking.tracker import Tracker, is_tracked

__all__ = ["DEAD_LETTERS", "Tracker", "is_tracked"]
