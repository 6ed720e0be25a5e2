"""The folder of a run: what each step found, when, and what it may reuse next time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from burnish.data.formats import parse
from burnish.data.rows import Row
from burnish.errors import BurnishError, CheckpointError, Interrupted
from burnish.guards import Evidence
from burnish.progress import Progress

NAMES = ("choose", "clean", "tokenize", "smoke", "set up", "metric", "train", "evaluate", "deploy")


class Run:
    """A run's folder, its nine steps, and the parts of its report.

    Each step's result is kept under a hash of all that it depends on, so that the same recipe goes on where it stopped and a changed one
    repeats only what it must. shared: the folder of what several runs need alike, as the trials of a study do; its own without it.
    """

    def __init__(
        self, folder: Path, progress: Progress, evidence: Evidence, name: str, shared: Path | None = None
    ) -> None:
        self.folder, self.progress, self.evidence, self.name = folder, progress, evidence, name
        self.shared = shared or folder
        self.steps: list[dict[str, Any]] = [
            {"n": n, "name": name, "status": "not_run", "seconds": 0.0, "summary": ""}
            for n, name in enumerate(NAMES, 1)
        ]
        self.parts: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a step and keep its record; the block sets record["summary"] and, where it did nothing anew, record["status"]."""
        record = self.steps[NAMES.index(name)]
        record["status"] = "done"
        self.progress.begin(record["n"], name)
        began = time.perf_counter()
        try:
            yield record
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            record["status"] = "not_run" if stopped else "failed"
            record["summary"] = str(error).split("\n")[0] if isinstance(error, BurnishError) else type(error).__name__
            raise
        finally:
            record["seconds"] = round(time.perf_counter() - began, 2)
            self.progress.end(record)

    def learn(self, **known: Any) -> None:
        """Add to what the guards will be asked about."""
        self.evidence = replace(self.evidence, **known)

    def kept(self, name: str, key: str) -> dict[str, Any] | None:
        """What a step kept under this key, or None."""
        path = self.folder / "steps" / f"{name}.json"
        with contextlib.suppress(OSError, ValueError):
            match json.loads(path.read_text(encoding="utf-8")):
                case {"key": found, "result": dict(result)} if found == key:
                    return result
        return None

    def keep(self, name: str, key: str, result: dict[str, Any]) -> dict[str, Any]:
        write_text(self.folder / "steps" / f"{name}.json", json.dumps({"key": key, "result": result}, indent=1))
        return result

    def forget(self, name: str) -> None:
        """Let go of what a step kept, before what belongs to it is written anew."""
        (self.folder / "steps" / f"{name}.json").unlink(missing_ok=True)

    def write_rows(self, split: str, rows: Sequence[Row]) -> None:
        """Keep the rows of a split with the place that each came from."""
        lines = (json.dumps({"place": [row.file, row.line], "row": row.as_json()}) for row in rows)
        write_text(self.folder / "data" / f"{split}.jsonl", "".join(f"{line}\n" for line in lines))

    def read_rows(self, split: str) -> list[Row]:
        """The rows that `write_rows` kept. Raises CheckpointError where the file was damaged since."""
        path = self.folder / "data" / f"{split}.jsonl"
        try:
            kept = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return [parse(record["row"], *record["place"]) for record in kept]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the kept rows cannot be read: {error}",
                where=str(path),
                hint=f"rm {self.folder / 'steps' / 'clean.json'}   makes them again",
            ) from error


def key_of(*parts: Any) -> str:
    """A hash of plain values, to tell whether anything that a step depends on has changed."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def files_key(paths: Sequence[str]) -> str:
    """A hash of the contents of files; a path that is no file (a hub id) counts by its name."""
    digest = hashlib.sha256()
    for name in paths:
        digest.update(name.encode())
        path = Path(name.partition("#")[0])
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(fresh, 0o644)
        os.replace(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; a process that dies lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cut_back(path: Path, size: int) -> None:
    """Drop what was appended to a file after its first `size` bytes."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_report(folder: str | Path) -> dict[str, Any]:
    """The report.json of a run. Raises CheckpointError that says what is there instead."""
    path = Path(folder) / "report.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(report, dict) or not report.keys() >= {"verdict", "created", "steps"}:
            raise ValueError("this is no report of a run")
        return report
    except OSError as error:
        raise CheckpointError(
            "this is no run", where=str(folder), expected="a folder with report.json", hint="burnish runs   lists them"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"it is damaged: {error}", where=str(path), hint="burnish run RECIPE   writes it again"
        ) from error


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """The reports of the runs in a folder, the newest first; a folder without a readable report is no run."""
    found = []
    for path in folder.glob("*/report.json"):
        with contextlib.suppress(CheckpointError):
            found.append(read_report(path.parent) | {"folder": str(path.parent)})
    return sorted(found, key=lambda report: str(report["created"]), reverse=True)


def runs_table(reports: Sequence[dict[str, Any]]) -> str:
    """One line for each run: when, verdict, metric before and after with the interval of the gain, steps and time."""
    if not reports:
        return "there are no runs here; burnish run RECIPE makes one"
    lines = [("run", "created", "verdict", "metric", "n", "base", "tuned", "gain (95% interval)", "steps", "minutes")]
    for report in reports:
        evaluation, training = report.get("evaluation"), report.get("training") or {}
        figures = ("", "", "", "", "")
        if evaluation:
            low, high = evaluation["ci95"]
            gain = f"{evaluation['delta']:+.3f} ({low:+.3f} to {high:+.3f})"
            figures = (
                evaluation["metric"],
                str(evaluation["n"]),
                f"{evaluation['base']:.3f}",
                f"{evaluation['tuned']:.3f}",
                gain,
            )
        minutes = sum(step["seconds"] for step in report["steps"]) / 60
        made = str(report["created"])[:16].replace("T", " ")
        lines.append(
            (report["folder"], made, report["verdict"], *figures, str(training.get("steps", "")), f"{minutes:.1f}")
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
