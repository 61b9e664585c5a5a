"""The launch as Ray Tune sees it: a searcher that asks `Feed` for the next cell, a scheduler that hands every result to
`Launch`, and a stopper that asks it whether to go on. None of them decides anything.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.tune import Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps import outcomes
from sweeps.feed import Feed
from sweeps.launch import Launch
from sweeps.outcomes import Outcome
from sweeps.trial import MESSAGE

MOST_CHARACTERS = 200
log = logging.getLogger(__name__)


class LaunchSearcher(Searcher):
    """Suggests the next cell of the feed. Tune asks before every event that it handles, ten times a second or more
    often, and as long as nothing runs it waits for a second after every answer that there is nothing yet: the feed
    gives that one only while cells are out."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed
        self.trials: dict[str, Trial] = {}
        """By cell_key, from a cell's suggestion until it is seen that its trial is over."""

    def __reduce__(self) -> Any:
        return Searcher, ()

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        # Tune has ways to give a trial up of which it tells nobody, so its word is not waited for.
        for key in [key for key, trial in self.trials.items() if trial.is_finished()]:
            del self.trials[key]
            self._feed.over(key)
        cell = self._feed.next()
        if cell is None:
            return Searcher.FINISHED if self._feed.finished else None
        return {"cell_key": cell.cell_key, "gpu_share": self._feed.share(cell)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Seen at the next suggestion."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing is ever restored from there."""


class LaunchScheduler(FIFOScheduler):
    """Trials start in the order given; the launch says which of them stop."""

    def __init__(self, launch: Launch, searcher: LaunchSearcher) -> None:
        super().__init__()
        self._launch = launch
        self._searcher = searcher

    def __reduce__(self) -> Any:
        # Tune writes its arguments to a file from which it could restore. Nothing is ever restored from there.
        return FIFOScheduler, ()

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """None: the pending trials are started in order anyway, and the inherited scan is slow for thousands."""
        return None

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Called for every new trial, and again when one is retried."""
        self._searcher.trials[trial.config["cell_key"]] = trial

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if MESSAGE not in result:
            return str(TrialScheduler.STOP)
        stop = self._launch.message(trial.config["cell_key"], json.loads(result[MESSAGE]))
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Called for every failure of a trial's process, those that Tune is going to retry included. A launch that is
        ending leaves the retry to the next one."""
        error = _error_of(trial)
        outcome = Outcome.INTERRUPTED if trial.should_recover() else outcomes.of(error)
        self._launch.lost(trial.config["cell_key"], _reason(error), outcome=outcome)


class LaunchStopper(Stopper):
    """Polled by Tune between events, ten times a second or more often."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    def __reduce__(self) -> Any:
        return Stopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._launch.should_stop()


def _reason(error: BaseException) -> str:
    """Of a dead process only that it died: Ray's text goes on for a page."""
    if isinstance(error, RayActorError):
        said = next((line for line in str(error).splitlines() if line.startswith("The actor")), str(error))
        return f"{type(error).__name__}: {said[:MOST_CHARACTERS]}"
    return outcomes.reason(error)


def _error_of(trial: Trial) -> BaseException:
    """What ended the trial's process, from Tune's local files: its own accessors read a storage not yet written."""
    try:
        with open(trial.pickled_error_file, "rb") as file:
            error = cloudpickle.load(file)
    except (OSError, TypeError, AttributeError, ImportError, EOFError, ValueError):
        log.debug("no error on file for trial %s", trial.trial_id, exc_info=True)
        return RuntimeError("the trial's process ended without saying why")
    return error if isinstance(error, BaseException) else RuntimeError(str(error))
