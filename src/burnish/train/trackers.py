"""Optional places that metrics also go to; `metrics.jsonl` is written whether or not there is one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from burnish.errors import RecipeError


class Tracker(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._writer = _package("torch.utils.tensorboard", install="tensorboard").SummaryWriter(
            str(folder / "tensorboard")
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._run = _package("wandb").init(project="burnish", name=name, dir=str(folder), config=dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._mlflow = _package("mlflow")
        self._mlflow.set_experiment("burnish")
        self._mlflow.start_run(run_name=name)
        self._mlflow.log_params({key: str(value)[:250] for key, value in config.items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class Trackio:
    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._trackio = _package("trackio")
        self._trackio.init(project="burnish", name=name, config=dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        self._trackio.finish()


TRACKERS: dict[str, Callable[[str, Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def open_trackers(names: Sequence[str], run: str, folder: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that the recipe's `log` names. Raises RecipeError where a package is missing, before anything is trained."""
    return [TRACKERS[name](run, folder, config) for name in names]


def _package(name: str, *, install: str = "") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = install or name
        raise RecipeError(f"{package} is not installed", where="log", hint=f"pip install {package}") from error
