"""`burnish doctor`: whether this machine can run, and what to type where it cannot."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

DISK_GIB = 2.0  # a converted small model, its checkpoints and what is exported
MEMORY_GIB = 3.0  # a run of the smallest model
GIB = 2**30

Finding = dict[str, str]


def examine() -> list[Finding]:
    """One record for each thing that a run needs: name, status (ok, warn, fail), found, fix. Never raises."""
    return [finding for look in (_python, _packages, _torch, _memory, _disk, _weights) for finding in _spared(look)]


def _spared(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a look finds; that it breaks down is a finding too, since a broken installation is what it is for."""
    try:
        yield from look()
    except Exception as error:
        fix = "pip install --force-reinstall burnish   puts the packages right"
        yield _finding(look.__name__.strip("_"), "fail", f"{type(error).__name__}: {error}", fix)


def _finding(name: str, status: str, found: str, fix: str = "") -> Finding:
    return {"name": name, "status": status, "found": found, "fix": fix}


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] > (3, 13):
        yield _finding("python", "warn", found, "Python 3.11 to 3.13 is what Burnish is tested with")
    else:
        yield _finding("python", "ok", found)


def _packages() -> Iterator[Finding]:
    """What the package itself declares, against what is installed; the optional ones only where they are asked for."""
    wrong = []
    requirements = [Requirement(text) for text in importlib.metadata.requires("burnish") or ()]
    needed = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in needed:
        version = _version(one.name)
        if version is None:
            wrong.append(one.name)
            yield _finding(one.name, "fail", "not installed", f"pip install '{one}'")
        elif not one.specifier.contains(Version(version), prereleases=True):
            wrong.append(one.name)
            yield _finding(one.name, "fail", f"{version}, but {one.specifier} is needed", f"pip install '{one}'")
    if not wrong:
        yield _finding("packages", "ok", f"all {len(needed)} that are needed")
    for name in ("tensorboard", "wandb", "mlflow", "trackio", "datasets"):
        if version := _version(name):
            yield _finding(name, "ok", f"{version} (optional)")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch() -> Iterator[Finding]:
    import torch

    from burnish.train.memory import device_of_choice, precision_of_choice
    from burnish.train.speed import measured_rate

    device = device_of_choice()
    precision = precision_of_choice("auto", device)
    rate = measured_rate(device, precision) / 1e12
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    yield _finding("accelerator", "ok", f"{device.type} ({name}), {precision}, {rate:.2f} TFLOP/s measured")
    if device.type == "cpu" and shutil.which("nvidia-smi"):
        fix = f"torch {torch.__version__} sees no CUDA device: install a build for your driver"
        yield _finding("accelerator", "warn", "an NVIDIA driver is here, but torch runs on the CPU", fix)


def _memory() -> Iterator[Finding]:
    import torch

    from burnish.train.memory import memory_available

    free = memory_available(torch.device("cpu")) / GIB
    enough = free >= MEMORY_GIB
    fix = "" if enough else "close other programs"
    yield _finding("memory", "ok" if enough else "warn", f"{free:.1f} GiB are free", fix)


def _disk() -> Iterator[Finding]:
    from burnish.model.load import cache_folder

    for name, folder in (("disk here", Path.cwd()), ("disk of cache", cache_folder())):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free / GIB
        if not os.access(there, os.W_OK):
            yield _finding(name, "fail", f"{there} cannot be written to", "--out FOLDER, or set BURNISH_CACHE")
        elif free < DISK_GIB:
            yield _finding(
                name, "warn", f"{free:.1f} GiB are free at {there}", "a run of the smallest model takes about 2 GiB"
            )
        else:
            yield _finding(name, "ok", f"{free:.1f} GiB are free at {there}")


def _weights() -> Iterator[Finding]:
    from burnish.errors import ModelError
    from burnish.model.load import BUILT_IN, packaged_gguf

    name = next(iter(BUILT_IN))
    try:
        file = packaged_gguf(name)
    except ModelError as error:
        yield _finding(name, "warn", error.found, error.hint)
        return
    yield _finding(name, "ok", f"{file.name}, {file.stat().st_size / 2**20:.0f} MiB")
