"""`burnish doctor`: it looks at everything, says what to type, and never raises, whatever is broken."""

from __future__ import annotations

import builtins
import importlib.metadata
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from burnish import machine
from burnish.machine import examine

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch):
    """The speed of the machine is not measured anew for each test."""
    monkeypatch.setattr("burnish.train.speed.measured_rate", lambda device, precision: 1e12)


def found() -> dict[str, dict[str, str]]:
    return {finding["name"]: finding for finding in examine()}


def without(*packages: str):
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    return version


def test_each_finding_has_a_status_and_what_is_wrong_has_a_fix():
    findings = examine()
    assert {"python", "accelerator", "memory", "disk here", "disk of cache"} <= {one["name"] for one in findings}
    assert all(one["status"] in ("ok", "warn", "fail") and one["found"] for one in findings)
    assert all(one["fix"] for one in findings if one["status"] != "ok")


def test_here_nothing_fails():
    assert [one for one in examine() if one["status"] == "fail"] == []


def test_a_missing_package_fails_with_what_to_type(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.metadata, "version", without("peft"))
    assert found()["peft"]["status"] == "fail"
    assert found()["peft"]["fix"].startswith("pip install 'peft")


def test_a_package_that_is_too_old_fails(monkeypatch: pytest.MonkeyPatch):
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == "peft" else known(name))
    assert "0.1, but >=" in found()["peft"]["found"]


def test_a_folder_with_the_name_of_a_package_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", without("wandb"))
    assert "wandb" not in found()


def test_a_full_disk_is_warned_of(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(2**40, 2**40, 2**20))
    assert found()["disk here"]["status"] == "warn"


def test_a_machine_without_torch_is_reported(monkeypatch: pytest.MonkeyPatch):
    known = builtins.__import__

    def broken(name: str, *rest):
        if name == "torch":
            raise ImportError("libtorch_cpu.so: cannot open shared object file")
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert found()["torch"]["status"] == "fail"
    assert "libtorch_cpu.so" in found()["torch"]["found"]


@pytest.mark.parametrize("part", ["_python", "_packages", "_torch", "_memory", "_disk", "_weights"])
def test_a_look_that_breaks_down_spares_the_others(monkeypatch: pytest.MonkeyPatch, part: str):
    def broken():
        raise OSError("a device went away")

    broken.__name__ = part
    monkeypatch.setattr(machine, part, broken)
    findings = examine()
    assert [one["found"] for one in findings if one["status"] == "fail"] == ["OSError: a device went away"]
    assert len(findings) > 5
