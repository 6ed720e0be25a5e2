"""The SetFit benchmark without what it needs: it says what to install, and does not take itself for the package."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "bench" / "setfit.py"


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is not None, reason="what it needs is there")
def test_without_its_packages_it_says_what_to_install(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), "--k", "4"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "error: setfit is not usable here" in done.stderr
    assert "pip install setfit" in done.stderr
