"""The study: one trial after another until the budget is spent, over a storage that several processes may share.

Trial 0 is the recipe as it stands. A trial whose process died is marked failed and enqueued again; it goes on from its last checkpoint.
"""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from burnish.errors import BurnishError, CheckpointError, Interrupted, RecipeError, TrainingError
from burnish.folder import locked
from burnish.progress import Progress, as_time
from burnish.recipe import Recipe
from burnish.train.hooks import Judge, StopSignal, Validation
from burnish.train.ladder import is_out_of_memory, release
from burnish.tuning.space import Budget, Choices, Space, as_text, recipe_with
from burnish.tuning.storage import (
    Numbered,
    beating,
    distributions,
    is_dead,
    open_storage,
    tell_once,
    this_process,
)
from burnish.tuning.trial import PRUNED, Material, run_trial

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
SPENT = "the budget is spent"
NONSENSE = "the figures on validation are no finite numbers"
DEATHS = 3  # times that a process may end in the middle of a trial before the trial counts as failed
HOPELESS = 5  # failed trials, and none that ended well, after which a study gives up


@dataclass
class Search:
    """The study as one process sees it. space: what varies. start: what the recipe itself has for each key of it."""

    name: str
    folder: Path
    recipe: Recipe
    material: Material
    space: Space
    start: Mapping[str, Any]
    budget: Budget
    key: str
    stop: StopSignal
    progress: Progress
    storage: str | None = None

    def __post_init__(self) -> None:
        self._distributions = distributions(self.space)
        # A third of the looks go by before a trial is compared; from then on, at twice the looks each time, the better half stays.
        looks = self.recipe.train.validations
        pruner: Any = optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, looks // 3), reduction_factor=2)
        with locked(self.folder / "lock"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.study = optuna.create_study(
                storage=open_storage(self.storage, self.folder),
                study_name=self.name if self.storage else "study",  # a folder holds one, whatever its recipe is called
                direction="maximize",
                load_if_exists=True,
                sampler=Numbered(self.recipe.train.seed),
                pruner=pruner if self.recipe.tune.prune else optuna.pruners.NopPruner(),
            )
            known = self.study.user_attrs.get("key")
            if known not in (None, self.key):
                raise RecipeError(
                    "the study here is of another recipe, other data or another space",
                    where=str(self.folder),
                    hint="--out ANOTHER   begins a new one",
                )
            self.study.set_user_attr("key", self.key)
            if not self.study.get_trials(deepcopy=False):
                self._enqueue(self.start, {"default": True})

    # Trials ----------------------------------------------------------------------------------------------------------

    def run(self, after: Callable[[], Any] = lambda: None) -> None:
        """Trials until the budget is spent. after: called at the end of each.

        Raises Interrupted, with the running trial enqueued again, on a signal to stop.
        """
        while (trial := self._claim()) is not None:
            self._one(trial)
            after()
            self._give_up_where_all_fail()

    def trials(self) -> list[FrozenTrial]:
        """Those that count: complete, pruned, failed by themselves, or running. One that died is a trial of its second try."""
        every = self.study.get_trials(deepcopy=False)
        lost = {trial.user_attrs.get("again") for trial in every}
        return [trial for trial in every if trial.state != TrialState.WAITING and trial.number not in lost]

    def running(self) -> list[FrozenTrial]:
        return self.ended(TrialState.RUNNING)

    def ended(self, state: TrialState = TrialState.COMPLETE) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state == state]

    @property
    def default(self) -> FrozenTrial | None:
        """The trial of the recipe as it stands, once it has ended."""
        return next((trial for trial in self.ended() if trial.user_attrs.get("default")), None)

    @property
    def best(self) -> FrozenTrial | None:
        """The trial with the best metric; of those within its noise, and not below the default's, the one of least error."""
        ended = self.ended()
        if not ended:
            return None
        top = max(ended, key=lambda trial: look_of(trial).value)
        floor = look_of(self.default).metric if self.default else -math.inf
        level = [one for one in ended if one is top or _level(look_of(one), look_of(top))]
        able = [one for one in level if look_of(one).metric >= floor] or [top]
        return min(able, key=lambda trial: (look_of(trial).error, trial.number))

    def values_of(self, trial: FrozenTrial | Trial) -> dict[str, Any]:
        """The recipe's keys that a trial set, a choice as the value that it stands for."""
        named = {
            key: {as_text(value): value for value in one.values}
            for key, one in self.space.items()
            if isinstance(one, Choices)
        }
        return {key: named[key][value] if key in named else value for key, value in trial.params.items()}

    def recipe_of(self, trial: FrozenTrial | Trial) -> Recipe:
        if trial.user_attrs.get("default"):
            return self.recipe
        return recipe_with(self.recipe, self.values_of(trial), f"trial {trial.number}")

    def folder_of(self, trial: FrozenTrial | Trial) -> Path:
        return self.folder / "trials" / trial.user_attrs.get("folder", f"{trial.number:04d}")

    @property
    def seconds(self) -> float:
        """What the trials have taken so far, all processes together."""
        now = time.time()
        spent = 0.0
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and trial.datetime_start:
                spent += now - trial.datetime_start.timestamp()
            spent += result_of(trial).get("seconds", 0.0)
        return spent

    def is_spent(self) -> bool:
        if self.budget.trials:
            return len(self.trials()) >= self.budget.trials
        return self.seconds >= (self.budget.seconds or 0)

    # One trial -------------------------------------------------------------------------------------------------------

    def _claim(self) -> Trial | None:
        """The next trial, or None where the budget is spent. One process asks at a time, so that no trial is too many."""
        with locked(self.folder / "lock"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the recipe's own values may lie outside of the range that the user gave
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if is_dead(trial):
                    self._give_back(trial, deaths=1)
            if self.is_spent():
                return None
            asked = self.study.ask(fixed_distributions=self._distributions)
            asked.set_user_attr("process", this_process())
            return asked

    def _one(self, trial: Trial) -> None:
        first, folder, began = bool(trial.user_attrs.get("default")), self.folder_of(trial), time.monotonic()
        self.progress.begin(trial.number, "trial")
        result: dict[str, Any] = {"reason": ""}
        value = None
        with self._given_back_unless_told(trial), beating(trial):
            try:
                recipe = self.recipe_of(trial)
                changed = {} if first else self.values_of(trial)
                judge = None if first else self._judge(trial, recipe)
                outcome = run_trial(
                    folder, recipe, self.material, changed=changed, stop=self.stop, judge=judge, first=first
                )
                result = {
                    "best": _kept(outcome.best),
                    "looks": [[look.step, look.metric, look.loss] for look in outcome.looks],
                    "steps": outcome.trained.report["steps"],
                    "reason": outcome.pruned,
                }
                if not all(map(math.isfinite, (outcome.best.metric, outcome.best.loss))):
                    raise TrainingError(NONSENSE, where="validation")
                state = TrialState.PRUNED if outcome.pruned else TrialState.COMPLETE
                value = None if outcome.pruned else outcome.best.value
                del outcome
            except (Interrupted, CheckpointError):
                raise
            except BurnishError as error:
                result, state = {"reason": str(error).split("\n")[0]}, TrialState.FAIL
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                result["reason"], state = "the memory is not enough", TrialState.FAIL
            trial.set_user_attr("result", result | {"seconds": round(time.monotonic() - began, 1)})
            self.study.tell(trial, value, state=state)
        release()
        self._tidy()
        self.progress.say(self._line(trial.number))

    def _judge(self, trial: Trial, recipe: Recipe) -> Judge:
        """Who ends a trial that falls behind (successive halving; Li et al. 2018, arXiv 1810.05934), or that outlasts the budget."""

        def judge(history: Sequence[Validation]) -> str | None:
            looks = [look for look in history if look.step > 0]
            self.progress.update(f"look {len(looks)} of {recipe.train.validations}")
            if not looks or len(looks) >= recipe.train.validations:
                return None
            if not all(map(math.isfinite, (looks[-1].metric, looks[-1].loss))):
                return f"{PRUNED}{NONSENSE}"
            value = max(look.value for look in looks)
            trial.report(value, len(looks))
            if trial.should_prune():
                return f"{PRUNED}behind the other trials at look {len(looks)}"
            over = self.budget.seconds is not None and self.seconds >= self.budget.seconds
            return f"{PRUNED}{SPENT}" if over else None

        return judge

    @contextmanager
    def _given_back_unless_told(self, trial: Trial) -> Iterator[None]:
        """Whatever ends the process in the middle of a trial, the trial is enqueued again."""
        try:
            yield
        except BaseException:
            found = next(one for one in self.study.get_trials(deepcopy=False) if one.number == trial.number)
            self._give_back(found)
            raise

    def _give_back(self, trial: FrozenTrial, deaths: int = 0) -> None:
        """End a trial that nobody runs any more, and enqueue its values; its folder goes along.

        deaths: how often its process ended with it just now. A trial that takes its process along each time is not begun for ever.
        """
        deaths += trial.user_attrs.get("deaths", 0)
        if tell_once(lambda: self.study.tell(trial.number, state=TrialState.FAIL)) and deaths < DEATHS:
            first = bool(trial.user_attrs.get("default"))
            values = self.start if first else self.values_of(trial)
            known = {"default": first, "folder": self.folder_of(trial).name}
            self._enqueue(values, {"again": trial.number, "deaths": deaths, **known})

    def _enqueue(self, values: Mapping[str, Any], attributes: dict[str, Any]) -> None:
        texts = {
            key: as_text(value) if isinstance(self.space[key], Choices) else value for key, value in values.items()
        }
        self.study.enqueue_trial(texts, user_attrs=attributes)

    def _give_up_where_all_fail(self) -> None:
        failed = self.ended(TrialState.FAIL)
        if len(failed) >= HOPELESS and not self.ended() and not self.ended(TrialState.PRUNED):
            raise TrainingError(
                f"the first {len(failed)} trials failed, the last one since: {reason_of(failed[-1])}",
                where="tune",
                hint="burnish run RECIPE   shows the whole of it",
            )

    def _tidy(self) -> None:
        """Remove the checkpoints of a trial that ended, unless it is the default's or the best's; those of the best before it too."""
        best, every = self.best, self.trials()
        keep = {trial.number for trial in (best, self.default) if trial}
        for trial in every:
            if trial.state != TrialState.RUNNING and trial.number not in keep:
                shutil.rmtree(self.folder_of(trial) / "checkpoints", ignore_errors=True)

    def _line(self, number: int) -> str:
        trial = next(one for one in self.study.get_trials(deepcopy=False) if one.number == number)
        values = ", ".join(f"{key} {brief(value)}" for key, value in self.values_of(trial).items())
        took = as_time(result_of(trial).get("seconds", 0))
        if trial.state == TrialState.FAIL:
            told = f"failed: {reason_of(trial)}"
        else:
            look = look_of(trial)
            told = f"metric {look.metric:.3f}, loss {look.loss:.3f}"
            told += f"; {reason_of(trial)}" if trial.state == TrialState.PRUNED else ""
        what = "the recipe as it stands" if trial.user_attrs.get("default") else values
        return f"  trial {number:>3}  {told}  ({took})  {what}"


def result_of(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial came to: reason, seconds and, unless it failed, best, looks and steps; empty while it runs."""
    return trial.user_attrs.get("result", {})


def look_of(trial: FrozenTrial) -> Validation:
    """The best look of a trial that ended."""
    return Validation(**result_of(trial)["best"], metrics={}, answers=[])


def reason_of(trial: FrozenTrial) -> str:
    """Why a trial was pruned or failed."""
    return result_of(trial).get("reason", f"its process ended {DEATHS} times")


def brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _kept(look: Validation) -> dict[str, Any]:
    return {"step": look.step, "loss": look.loss, "metric": look.metric, "scores": look.scores, "brier": look.brier}


def _level(one: Validation, other: Validation) -> bool:
    """Whether two looks cannot be told apart by the metric; those on unlike items can only be ranked."""
    return len(one.scores) == len(other.scores) and one.is_level_with(other)
