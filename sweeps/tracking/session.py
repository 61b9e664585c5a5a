"""A connection to MLflow: finds or creates a sweep's runs and delivers batches to them."""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeps import ledger
from sweeps.tracking.client import RefusedError, call
from sweeps.tracking.cursor import Cursor
from sweeps.tracking.links import artifact_root, safe_uri, shared_view, view_key
from sweeps.tracking.records import PARENT, RUNNING, Batch, Records

DEAD_LETTERS = "tracking.dead.jsonl"
CHUNK_EVENTS = 4000
"""Events between two advances of the cursor: what a crash makes MLflow hear twice."""
PAGE_RUNS = 200
"""Runs a search page: bigger ones take longer than the request's timeout on a busy server."""

_log = logging.getLogger(__name__)


class AbandonedError(Exception):
    """Nobody waits for the store any more."""


@dataclass(frozen=True)
class Target:
    """Whose events go where."""

    ledger_path: Path
    uri: str
    artifact_root: str | Path | None
    connect: Callable[[str], Any]

    @property
    def directory(self) -> Path:
        return self.ledger_path.parent


@dataclass(frozen=True)
class Report:
    """What the parent run shows at the end."""

    files: tuple[Path, ...]
    front_keys: frozenset[str]
    verdict: str


class Session:
    """A connection to the store, the runs found in it, and the ledger's state up to the cursor.

    Any call may raise UnavailableError; the session is then thrown away.
    """

    def __init__(self, target: Target, cursor: Cursor, abandoned: threading.Event) -> None:
        self._target = target
        self._cursor = cursor
        self._abandoned = abandoned
        self._records = Records()
        self._runs: dict[str, str] = {}
        """cell_key (PARENT: the sweep's own) -> run id."""
        self._view = ""
        self._client = call(target.connect, target.uri)
        self._ready = False

    def drain(self) -> bool:
        """Tell MLflow the next chunk of events; True when that was all there is."""
        if not self._ready and not self._find_parent():
            return True
        chunk = list(itertools.islice(ledger.read(self._target.ledger_path, self._cursor.offset), CHUNK_EVENTS))
        if not chunk:
            return True
        for batch in self._records.batches(event for event, _ in chunk):
            self._deliver(batch)
        self._offer_view()
        self._cursor.offset = chunk[-1][1]
        self._cursor.save(self._target.directory, self._target.uri)
        return len(chunk) < CHUNK_EVENTS

    def attach(self, report: Report) -> None:
        """Files under report/, tags on the front's runs, the verdict as the parent's note."""
        if PARENT not in self._runs:
            return
        parent = self._runs[PARENT]
        for path in report.files:
            self._attempt("report", {"file": path.name}, self._client.log_artifact, parent, str(path), "report")
        wanted = {self._runs[key] for key in report.front_keys if key in self._runs}
        former = {
            run.info.run_id
            for run in self._search(f"{self._of_sweep()} and tags.`sweep.front` = 'true'")
            if run.info.run_id not in wanted
        }
        for run_id in sorted(wanted | former):
            value = "true" if run_id in wanted else "false"
            self._attempt("front", {"run_id": run_id}, self._client.set_tag, run_id, "sweep.front", value)
        note = f"{report.verdict}\n\nThe whole report: Artifacts, `report/pareto.html`."
        self._attempt("note", {"note": note}, self._client.set_tag, parent, "mlflow.note.content", note)

    # ------------------------------------------------------------------------------------------ finding, creating

    def _find_parent(self) -> bool:
        """Adopt or create experiment and parent run, adopt the children; False while the ledger has no first event."""
        first = next(iter(ledger.read(self._target.ledger_path)), None)
        if first is None:
            return False
        header = first[0]
        size = self._target.ledger_path.stat().st_size
        if self._cursor.sweep_id != header["sweep_id"] or self._cursor.offset > size:
            self._cursor.sweep_id, self._cursor.offset = header["sweep_id"], 0
        self._records.header = header
        for event, end in ledger.read(self._target.ledger_path):
            if end > self._cursor.offset:
                break
            self._records.skip(event)
        self._cursor.experiment_id = self._experiment(header["name"])
        self._adopt()
        if PARENT not in self._runs:
            # A new store, or one that was emptied: it hears everything from the start.
            self._cursor.offset = 0
            self._records = Records()
            self._records.header = header
            batch = self._records.parent()
            self._runs[PARENT] = self._create(batch)
        self._cursor.run_id = self._runs[PARENT]
        self._ready = True
        return True

    def _experiment(self, name: str) -> str:
        root = artifact_root(self._target.uri, self._target.artifact_root)
        found = call(self._client.get_experiment_by_name, name)
        if found is not None and found.lifecycle_stage != "active":
            # Deleted by hand; its name stays taken until it is purged.
            name = f"{name}-{self._records.header['sweep_id'][:8]}"
            found = call(self._client.get_experiment_by_name, name)
        if found is not None:
            return str(found.experiment_id)
        location = f"{root}/{self._records.header['sweep_id']}" if root else None
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(call(self._client.create_experiment, name, artifact_location=location, tags=tags))

    def _adopt(self) -> None:
        """The runs that MLflow has of this sweep. Of two for one cell (an answer that got lost after the run was made)
        the fuller is kept, and an empty one deleted."""
        found = self._search(self._of_sweep())
        children = Counter(run.data.tags.get("mlflow.parentRunId") for run in found)
        for run in sorted(found, key=lambda run: (children[run.info.run_id], len(run.data.metrics)), reverse=True):
            key = run.data.tags.get("sweep.cell_key", PARENT)
            if key not in self._runs:
                self._runs[key] = run.info.run_id
            elif not run.data.metrics and not children[run.info.run_id]:
                call(self._client.delete_run, run.info.run_id)

    def _of_sweep(self) -> str:
        return f"tags.`sweep.sweep_id` = '{self._records.header['sweep_id']}'"

    def _search(self, condition: str) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = call(
                self._client.search_runs,
                [self._cursor.experiment_id],
                condition,
                max_results=PAGE_RUNS,
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                return found

    def _create(self, batch: Batch) -> str:
        tags = dict(batch.identity)
        if batch.key != PARENT:
            tags["mlflow.parentRunId"] = self._runs[PARENT]
        run = call(
            self._client.create_run,
            self._cursor.experiment_id,
            start_time=batch.start_ms,
            run_name=batch.name,
            tags=tags,
        )
        return str(run.info.run_id)

    # ------------------------------------------------------------------------------------------------- delivering

    def _deliver(self, batch: Batch) -> None:
        if self._abandoned.is_set():
            raise AbandonedError
        new = batch.key not in self._runs
        if new:
            try:
                self._runs[batch.key] = self._create(batch)
            except RefusedError as refusal:
                self._bury("run", asdict(batch), refusal)
                return
        run_id = self._runs[batch.key]
        self._log(run_id, batch)
        if batch.status == RUNNING:
            if not new:
                self._attempt("status", {"run_id": run_id}, self._client.update_run, run_id, RUNNING)
        elif batch.status is not None:
            payload = {"run_id": run_id, "status": batch.status}
            self._attempt("status", payload, self._client.set_terminated, run_id, batch.status, batch.end_ms)
        if batch.key == PARENT and "sweep.launch" in batch.tags:
            self._describe(run_id)

    def _log(self, run_id: str, batch: Batch) -> None:
        """Metrics, parameters and tags in one call; part by part if that is refused, so that a bad value costs only its
        kind."""
        from mlflow.entities import Metric, Param, RunTag

        parts: dict[str, list[Any]] = {
            "metrics": [Metric(*point) for point in batch.metrics],
            "params": [Param(*item) for item in batch.params.items()],
            "tags": [RunTag(*item) for item in batch.tags.items()],
        }
        parts = {name: entities for name, entities in parts.items() if entities}
        if not parts:
            return
        try:
            call(self._client.log_batch, run_id, **parts)
        except RefusedError:
            for name, entities in parts.items():
                payload = {"run_id": run_id, name: asdict(batch)[name]}
                self._attempt(name, payload, self._client.log_batch, run_id, **{name: entities})

    def _describe(self, run_id: str) -> None:
        """What the parent says of the whole sweep: the data set and the search space's text."""
        from mlflow.entities import Dataset, DatasetInput

        plan = self._records.plan
        data = plan.get("data", {})
        if data:
            digest = str(data.get("digest", ""))[:36]
            source = json.dumps({"uri": str(data.get("path", ""))})
            numbers = {key: value for key, value in data.items() if isinstance(value, int | float)}
            dataset = Dataset(str(data.get("name", "data")), digest, "local", source, profile=json.dumps(numbers))
            self._attempt("dataset", data, self._client.log_inputs, run_id, [DatasetInput(dataset)])
        if plan.get("spec"):
            self._attempt("spec", {}, self._client.log_text, run_id, plan["spec"], "search_space.yaml")

    def _offer_view(self) -> None:
        """Keep the ready-made view of the cells in step with what they are made of."""
        view = shared_view(self._runs[PARENT], self._records.measured, self._records.swept())
        if view != self._view:
            tag = f"mlflow.sharedViewState.{view_key(self._cursor.sweep_id)}"
            self._attempt("view", {}, self._client.set_experiment_tag, self._cursor.experiment_id, tag, view)
            self._view = view

    def _attempt(self, part: str, payload: Any, function: Callable[..., Any], *args: Any, **named: Any) -> None:
        """Call the function; if it is refused for good, the payload goes to the dead letters and the rest goes on."""
        try:
            call(function, *args, **named)
        except RefusedError as refusal:
            self._bury(part, payload, refusal)

    def _bury(self, part: str, payload: Any, refusal: RefusedError) -> None:
        if not self._cursor.dead_letters:
            _log.warning("MLflow refused %s (%s); such go to %s.", part, refusal, self._target.directory / DEAD_LETTERS)
        line = {"uri": safe_uri(self._target.uri), "part": part, "error": str(refusal), "payload": payload}
        with (self._target.directory / DEAD_LETTERS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
        self._cursor.dead_letters += 1
