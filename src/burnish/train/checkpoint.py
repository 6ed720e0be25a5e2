"""Checkpoints: written whole or not at all, verified before use, and enough to go on bit for bit.

    checkpoints/step-000064/
        weights.safetensors     the trained parameters, nothing else
        optimizer.safetensors   Adam's moments
        state.json              steps, the feed's position, random states, the hooks' memories
        checksums.json          SHA-256 of the three, written last

A folder is filled under a temporary name, flushed to disk, and renamed; a name without `.tmp` is therefore complete. Only safetensors
and JSON are read: nothing in a checkpoint can execute.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.errors import CheckpointError

CHECKSUMS = "checksums.json"
FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """weights, optimizer: tensors by name, on the CPU. state: plain values."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


@dataclass
class Store:
    """The checkpoints of one run. key: what the training depends on; a checkpoint of another key is not of this run.

    keep: how many of the newest stay, beside the best. Two, so that a damaged newest one has one before it.
    """

    folder: Path
    key: str
    keep: int = 2
    notes: list[str] = field(default_factory=list)

    def save(self, checkpoint: Checkpoint, step: int, *, best: int | None) -> Path:
        """Write a checkpoint; older ones go once it stands. Raises CheckpointError, naming the bytes, on a full disk."""
        target = self.folder / f"step-{step:06d}"
        fresh = self.folder / f"step-{step:06d}.tmp"
        self._require_room(checkpoint)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            save_file(_contiguous(checkpoint.weights), fresh / FILES[0])
            save_file(_contiguous(checkpoint.optimizer), fresh / FILES[1])
            (fresh / FILES[2]).write_text(json.dumps(checkpoint.state | {"key": self.key}), encoding="utf-8")
            for name in FILES:
                _flush(fresh / name)
            (fresh / CHECKSUMS).write_bytes(_canonical({name: _digest(fresh / name) for name in FILES}))
            _flush(fresh / CHECKSUMS)
            _flush(fresh)
            if target.exists():  # a damaged one of the same step, found on the way in
                shutil.rmtree(target)
            fresh.rename(target)
            _flush(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise CheckpointError(f"it could not be written: {error}", where=str(target)) from error
        self._forget_old(best)
        return target

    def newest(self) -> tuple[int, Checkpoint] | None:
        """The newest checkpoint of this run that is whole, and its step; damaged ones go, and `notes` says so."""
        for half_written in self.folder.glob("step-*.tmp"):
            shutil.rmtree(half_written, ignore_errors=True)
        for folder in reversed(self._folders()):
            try:
                checkpoint = self.load(folder)
            except CheckpointError as error:
                self.notes.append(f"{folder.name} is damaged ({error.found}); the one before it is used")
                self._forget(folder)
                continue
            if checkpoint.state.get("key") == self.key:
                return _step_of(folder), checkpoint
        return None

    def load_step(self, step: int) -> Checkpoint:
        return self.load(self.folder / f"step-{step:06d}")

    def is_whole(self, step: int) -> bool:
        try:
            verify(self.folder / f"step-{step:06d}")
        except CheckpointError:
            return False
        return True

    def load(self, folder: Path) -> Checkpoint:
        """Read a checkpoint and verify every byte of it. Raises CheckpointError."""
        verify(folder)
        state = json.loads((folder / FILES[2]).read_text(encoding="utf-8"))
        return Checkpoint(load_file(folder / FILES[0]), load_file(folder / FILES[1]), state)

    def _folders(self) -> list[Path]:
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted(path for path in found if path.is_dir() and path.suffix != ".tmp" and path.name[5:].isdigit())

    def _forget_old(self, best: int | None) -> None:
        folders = self._folders()
        for folder in folders[: -self.keep]:
            if _step_of(folder) != best:
                self._forget(folder)

    def _require_room(self, checkpoint: Checkpoint) -> None:
        needed = sum(
            x.numel() * x.element_size() for part in (checkpoint.weights, checkpoint.optimizer) for x in part.values()
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed + 2**20:
            raise CheckpointError(
                f"the disk has {free:,} bytes left and a checkpoint needs {needed:,}",
                where=str(self.folder),
                hint="free some space, then type the same command again: it goes on from the last checkpoint",
            )

    def clear(self) -> None:
        """Forget every checkpoint: none is whole and of this run, so the run begins anew."""
        for folder in self._folders():
            self._forget(folder)

    @staticmethod
    def _forget(folder: Path) -> None:
        """Rename, then remove: a kill in the middle leaves no half of a checkpoint under a good name."""
        doomed = folder.with_suffix(".tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        shutil.rmtree(folder.rename(doomed), ignore_errors=True)


def verify(folder: Path) -> None:
    """Raise CheckpointError unless every file of the folder is, to the bit, what was written."""
    try:
        written = (folder / CHECKSUMS).read_bytes()
        sums = json.loads(written)
        if not isinstance(sums, dict) or set(sums) != set(FILES) or _canonical(sums) != written:
            raise ValueError("its checksums are not as they were written")
        for name in FILES:
            if _digest(folder / name) != sums[name]:
                raise ValueError(f"{name} is not what was written")
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error), where=str(folder)) from error


def random_state() -> dict[str, str]:
    """The states of torch's generators, as text."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()}


def set_random_state(states: Mapping[str, str]) -> None:
    tensors = {
        name: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8) for name, text in states.items()
    }
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(sums: Mapping[str, str]) -> bytes:
    return json.dumps(dict(sorted(sums.items())), indent=1).encode()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _step_of(folder: Path) -> int:
    return int(folder.name[5:])
