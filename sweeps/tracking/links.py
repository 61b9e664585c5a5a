"""Where MLflow keeps a sweep and how a person opens it: store addresses, ready-made views, links."""

from __future__ import annotations

import json
import shlex
import sqlite3
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from seqrec.errors import UserError, message

UI_ADDRESS = "http://127.0.0.1:5000"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
NETWORK_FILE_SYSTEMS = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "afs",
    "9p",
)


def default_uri(storage: Path) -> str:
    """The embedded store of a storage directory: one SQLite file, by absolute path."""
    return f"sqlite:///{storage.resolve() / 'mlflow.db'}"


def checked_uri(uri: str) -> str:
    """The address, a relative SQLite path made absolute. Raises UserError for a kind of store that MLflow 3 refuses."""
    scheme = uri.partition("://")[0].partition("+")[0]
    if scheme in ("http", "https") or scheme in DATABASES[1:]:
        return uri
    path = sqlite_path(uri)
    if scheme == "sqlite" and path is not None:
        return f"sqlite:///{path}"
    raise UserError(
        message("tracking_uri", safe_uri(uri), "sqlite:///file.db, http(s)://host:port or a database's address")
    )


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a SQLite address' file; None for any other address."""
    prefix = "sqlite:///"
    name = unquote(uri.removeprefix(prefix))
    return Path(name).absolute() if uri.startswith(prefix) and name else None


def artifact_root(uri: str, root: str | Path | None) -> str | None:
    """Where a new experiment's artifacts go: as told, beside a SQLite file, or None: the server's own choice.

    Always absolute: MLflow's default for SQLite is a directory of wherever the process happened to start.
    """
    if isinstance(root, str) and "://" in root:
        return root
    if root is not None:
        return Path(root).resolve().as_uri()
    path = sqlite_path(uri)
    return (path.parent / "mlartifacts").as_uri() if path else None


def safe_uri(uri: str) -> str:
    """The address without a password and without what its query says: for logs, links and tracking.json."""
    try:
        parts = urlsplit(uri)
        secret = parts.password
    except ValueError:
        return uri.partition("://")[0] + "://..."
    if parts.query:
        parts = parts._replace(query="***")
    if secret is not None:
        parts = parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}")
    # urlunsplit takes slashes away from sqlite:////file, so that it is asked only where there is something to hide.
    return urlunsplit(parts) if parts.query or secret is not None else uri


def use_write_ahead_log(path: Path) -> bool:
    """Let readers (the MLflow pages) and the one writer of a SQLite file work side by side; faster commits as well.

    Persistent in the file. Not on a network file system, where it corrupts; False then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if _file_system(path.parent) in NETWORK_FILE_SYSTEMS:
        return False
    connection = sqlite3.connect(path, timeout=20)
    try:
        return bool(connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal")
    finally:
        connection.close()


def _file_system(directory: Path) -> str:
    """Type of the mount that holds the directory, as Linux tells it; empty elsewhere."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in mounts:
        _, point, name, *_ = line.split()
        point = point.replace("\\040", " ")
        inside = point == "/" or directory.resolve().is_relative_to(point)
        if inside and len(point) >= len(best):
            best, kind = point, name
    return kind


def view_key(sweep_id: str) -> str:
    return f"sweep-{sweep_id[:12]}"


def shared_view(parent_run_id: str, measured: bool, parameters: list[str]) -> str:
    """MLflow's own form of a saved view: the sweep's cells, best first, with their memory, and charts.

    Value of the experiment tag `mlflow.sharedViewState.<key>`. The form is MLflow's private one; nothing may depend on
    it.
    """
    memory = "memory/peak_gib" if measured else "memory/predicted_gib"
    quality = "best/ndcg_at_10"
    metrics = [quality, "test/ndcg_at_10", memory, "time/elapsed_s"]
    columns = [f"metrics.`{name}`" for name in metrics]
    columns += [f"params.`{name}`" for name in ("loss.name", "train.seed")]
    columns += ["tags.`sweep.outcome`", "tags.`sweep.front`"]
    section = "sweep"
    charts: list[dict[str, Any]] = [
        {
            "type": "SCATTER",
            "runsCountToCompare": 500,
            "xaxis": {"key": memory, "type": "METRIC"},
            "yaxis": {"key": quality, "type": "METRIC"},
            "displayName": f"{quality} against {memory}",
        },
        {
            "type": "PARALLEL",
            "runsCountToCompare": 500,
            "selectedParams": parameters,
            "selectedMetrics": [memory, quality],
            "showAllRuns": False,
            "displayName": "parameters of the best",
        },
        {
            "type": "LINE",
            "runsCountToCompare": 20,
            "metricKey": "valid/ndcg_at_10",
            "selectedMetricKeys": ["valid/ndcg_at_10"],
            "xAxisKey": "step",
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "lineSmoothness": 0,
            "range": {},
            "displayName": "valid/ndcg_at_10 by epoch",
        },
    ]
    for number, chart in enumerate(charts):
        chart |= {"uuid": f"{section}-{number}", "metricSectionId": section, "deleted": False, "isGenerated": False}
    view = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent_run_id}'",
        "orderByKey": f"metrics.`{quality}`",
        "orderByAsc": False,
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "startTime": "ALL",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": section,
                "name": "memory and quality",
                "display": True,
                "isReordered": False,
                "deleted": False,
                "columns": 2,
                "cardHeight": 440,
            }
        ],
        "isAccordionReordered": True,
        "viewMaximized": False,
        "runListHidden": False,
        "groupBy": None,
        "hideEmptyCharts": True,
    }
    return json.dumps(view)


def links(uri: str, experiment_id: str | None, run_id: str | None, sweep_id: str) -> list[tuple[str, str]]:
    """(what it is, address or command) for the end of a sweep; MLflow's pages only once it knows the sweep."""
    found = []
    base = uri.rstrip("/")
    if not uri.startswith("http"):
        found.append(("open MLflow", open_command(uri)))
        base = UI_ADDRESS
    if experiment_id and run_id:
        page = f"{safe_uri(base)}/#/experiments/{experiment_id}"
        # Without it MLflow 3 opens its pages for language models.
        mode = "workflowType=machine_learning"
        view = f"viewStateShareKey={quote(view_key(sweep_id))}&{mode}"
        found += [
            ("sweep", f"{page}/runs/{run_id}?{mode}"),
            ("cells, best first", f"{page}/runs?{view}&compareRunsMode=TABLE"),
            ("memory and quality", f"{page}/runs?{view}&compareRunsMode=CHART"),
            ("report in MLflow", f"{page}/runs/{run_id}/artifacts/report/pareto.html?{mode}"),
        ]
    return found


def open_command(uri: str) -> str:
    """Serves a database to this machine only; without the job workers, which cost 2 GiB and nothing here uses."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    settings = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true"
    words = [str(python), "-m", "mlflow", "ui", "--backend-store-uri", safe_uri(uri), "--port", "5000"]
    return f"{settings} {shlex.join(words)}"
