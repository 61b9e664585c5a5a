"""MLflow's client with the manners that a driver needs, and its many errors as two."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from seqrec import remote
from sweeps.tracking.links import sqlite_path, use_write_ahead_log

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Set unless the user did. MLflow's own retries freeze for minutes and can double runs; the tracker has its own."""

REFUSALS = frozenset(
    {
        "INVALID_PARAMETER_VALUE",
        "RESOURCE_DOES_NOT_EXIST",
        "RESOURCE_ALREADY_EXISTS",
        "ALREADY_EXISTS",
        "BAD_REQUEST",
    }
)
"""MLflow's errors that repeating cannot mend. Missing credentials are not among them: those can be mended."""

REASON_LIMIT = 300


class UnavailableError(Exception):
    """The store cannot be reached or is out of order; the same call may work later."""


class RefusedError(Exception):
    """The store understood and said no; the same call will never work."""


def connect(uri: str) -> Any:
    """An MlflowClient: quiet, without retries of its own, a SQLite file ready for readers beside the writer."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    path = sqlite_path(uri)
    if path:
        use_write_ahead_log(path)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It logs the whole traceback of every failure that it also raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)  # makes the tables of a new file, and shows whether anyone is there
    return client


def call(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """The function's result; a failure of the store as RefusedError or UnavailableError. Others pass: they are ours."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

    try:
        return function(*args, **named)
    except MlflowException as error:
        cause = error.__cause__
        # A database's failures reach us as bad requests, its refusal of a value among them.
        broken = isinstance(cause, SQLAlchemyError) and not isinstance(cause, DataError | IntegrityError)
        if error.error_code in REFUSALS and not broken:
            raise RefusedError(_reason(error)) from error
        raise UnavailableError(_reason(error)) from error
    except (OSError, SQLAlchemyError) as error:
        raise UnavailableError(_reason(error)) from error


def _reason(error: Exception) -> str:
    return remote.scrubbed(str(error).strip().partition("\n")[0])[:REASON_LIMIT]
