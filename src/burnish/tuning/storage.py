"""Where the trials of a study are kept, and how a trial whose process died is told from one that still runs."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from burnish.errors import RecipeError
from burnish.folder import locked
from burnish.tuning.space import Choices, Space, as_text

BEAT = 30.0  # seconds between two signs of life of a trial
SILENT = 300.0  # seconds without one after which a trial on another machine counts as dead
STARTING = 60.0  # seconds that a trial may have no process named yet

optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_storage(storage: str | None, folder: Path) -> Any:
    """Optuna's storage: a journal in the study's folder, a journal elsewhere, or a database such as sqlite:///studies.db.

    Raises RecipeError where it cannot be opened.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls parts that it has had for years experimental
            if storage and "://" in storage:
                return optuna.storages.RDBStorage(storage, engine_kwargs=_patience(storage))
            journal = storage or str(folder / "journal.log")
            backend = JournalFileBackend(journal, lock_obj=KernelLock(Path(f"{journal}.held")))  # type: ignore[arg-type]
            return optuna.storages.JournalStorage(backend)
    except Exception as error:  # a driver that is missing, a file that is no database, a server that is away
        raise RecipeError(
            f"the storage cannot be opened: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where="--storage",
            expected="a file, or the URL of a database",
            hint="--storage sqlite:///studies.db",
        ) from error


class KernelLock:
    """Held on a journal by one process at a time. The kernel lets go of it with its process, where a file that stands for a lock stays."""

    def __init__(self, path: Path) -> None:
        self._path, self._held = path, contextlib.ExitStack()

    def acquire(self) -> bool:
        held = contextlib.ExitStack()
        held.enter_context(locked(self._path))
        self._held = held
        return True

    def release(self) -> None:
        self._held.close()


def _patience(url: str) -> dict[str, Any]:
    """SQLite waits for another process to end its write."""
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in Optuna's words; a choice is kept as the JSON text of its value."""
    found: dict[str, BaseDistribution] = {}
    for key, one in space.items():
        if isinstance(one, Choices):
            found[key] = CategoricalDistribution([as_text(value) for value in one.values])
        elif one.whole:
            found[key] = IntDistribution(int(one.low), int(one.high), log=one.log)
        else:
            found[key] = FloatDistribution(one.low, one.high, log=one.log)
    return found


class Numbered(optuna.samplers.BaseSampler):
    """TPE (Bergstra et al. 2011; multivariate: Falkner et al. 2018, arXiv 1807.01774), its draws seeded by the trial's number.

    So a study that went on draws what it would have drawn, and two processes never draw the same.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._inner = self._of(0)

    def _of(self, number: int) -> optuna.samplers.TPESampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seed = (self._seed * 100_003 + number) % 2**32
            return optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._inner = self._of(trial.number)
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> Any:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._inner.after_trial(study, trial, state, values)


def this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}


def is_dead(trial: FrozenTrial, now: float | None = None) -> bool:
    """Whether a trial that is kept as running is run by nobody: its process is gone, or on another machine has been silent for long."""
    now = time.time() if now is None else now
    process, beat = trial.user_attrs.get("process"), trial.user_attrs.get("beat")
    started = trial.datetime_start.timestamp() if trial.datetime_start else now
    if process is None:
        return now - started > STARTING
    if process["host"] == socket.gethostname():
        return not _lives(process)
    return now - (beat or started) > SILENT


def _lives(process: Mapping[str, Any]) -> bool:
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _began(process["pid"]) == process["began"]


def _began(pid: int) -> str:
    """When a process began, in the kernel's ticks: the number of a process is used again. Empty where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if fields[0] == "Z" else fields[19]


@contextlib.contextmanager
def beating(trial: Trial, every: float = BEAT) -> Iterator[None]:
    """Give signs of life of a trial until the block ends."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(every):
            with contextlib.suppress(Exception):  # a storage that is away for a moment ends no trial
                trial.set_user_attr("beat", time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def tell_once(tell: Callable[[], Any]) -> bool:
    """Whether it was this process that ended the trial; False where another was quicker."""
    try:
        tell()
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        return False
    return True
