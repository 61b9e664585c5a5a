"""The launch as Ray Tune sees it: a searcher that asks `Feed` for the next cell, a scheduler that hands every result to
`Launch`, and a stopper that asks it whether to go on. None of them decides anything.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from ray import cloudpickle
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.tune import Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps import outcomes
from sweeps.feed import Feed
from sweeps.launch import Launch
from sweeps.nodes import Nodes
from sweeps.outcomes import Outcome
from sweeps.trial import MESSAGE

MOST_CHARACTERS = 200
NODE_LOST = ("its node has died", "node was terminated", "The actor never ran")
"""In Ray's text of an actor that died with its node, or before it had begun."""
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
        """Called for every failure of a trial's process. Tune starts it again in any case, unless it did so for a cell
        that had been given up; that one is told to stop at its first message. A launch that is ending leaves the retry
        to the next one."""
        error, key = _error_of(trial), trial.config["cell_key"]
        state = self._launch.ledger.state.cells.get(key)
        again = self._launch.deaths.again(key, state.epochs if state else 0, node=is_cluster_fault(error))
        if not again:
            trial.max_failures = 0
        self._launch.lost(key, _reason(error), outcome=Outcome.INTERRUPTED if again else outcomes.of(error))


class LaunchStopper(Stopper):
    """Polled by Tune between events, ten times a second or more often."""

    def __init__(self, launch: Launch, served: Callable[[], bool] = lambda: True) -> None:
        """served: whether any node of the cluster can run a trial now."""
        self._launch = launch
        self._nodes = Nodes(served, launch.halt)

    def __reduce__(self) -> Any:
        return Stopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self._nodes.look()
        return self._launch.should_stop()


def is_cluster_fault(error: BaseException) -> bool:
    """Whether a node was lost or out of reach, and not the trial's process alone. Ray has no class for the first."""
    return isinstance(error, ActorUnavailableError) or (
        isinstance(error, RayActorError) and any(text in str(error) for text in NODE_LOST)
    )


def _reason(error: BaseException) -> str:
    """Of a dead process only that it died, and of what: Ray's text goes on for a page. Its first line is always the
    same, the next one of its kind names the cause."""
    if isinstance(error, RayActorError):
        verdicts = [line for line in str(error).splitlines() if line.startswith("The actor")]
        said = (verdicts[1:] or verdicts or [str(error)])[0]
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
