"""The ways of learning: one file each, tensor arithmetic alone, found by being here.

A file defines `OBJECTIVE`, the class of its objective; the recipe names it by the file's name.
"""

from __future__ import annotations

import importlib
import pkgutil

from burnish.core import Objective
from burnish.errors import RecipeError


def make_objective(name: str) -> Objective:
    """The objective of the file `objectives/<name>.py`. Raises RecipeError naming the ones that exist."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known:
        raise RecipeError(f"there is no objective {name!r}", where="objective", expected=f"one of: {', '.join(known)}")
    objective: Objective = importlib.import_module(f"{__name__}.{name}").OBJECTIVE()
    return objective
