"""The ways of learning: one file each, tensor arithmetic alone, found by being here.

A file defines `OBJECTIVE`, the class of its objective, a frozen dataclass whose fields are its options; the recipe names it by the
file's name and gives its options as `loss`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from burnish.core import Objective
from burnish.errors import RecipeError

FIXED = {"rows", "needs", "reads", "atom"}  # what an objective is, which is no option


def make_objective(name: str, options: Mapping[str, Any] | None = None) -> Objective:
    """The objective of the file `objectives/<name>.py` with its options.

    Raises RecipeError naming the objectives, or the options of this one, that exist, and for a value that an option cannot have.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known:
        raise RecipeError(f"there is no objective {name!r}", where="objective", expected=f"one of: {', '.join(known)}")
    kind: Any = importlib.import_module(f"{__name__}.{name}").OBJECTIVE
    accepted = [field.name for field in fields(kind) if field.name not in FIXED]
    for option in options or {}:
        if option not in accepted:
            expected = f"one of: {', '.join(accepted)}" if accepted else f"nothing: {name} has no options"
            raise RecipeError(f"the objective {name} has no option {option!r}", where="loss", expected=expected)
    if not options:
        objective: Objective = kind()
        return objective
    try:
        objective = TypeAdapter(kind).validate_python(dict(options))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(["loss", *map(str, problem["loc"][:1])])
        found, said = options.get(str(problem["loc"][0]), options) if problem["loc"] else options, problem["msg"]
        raise RecipeError(f"found {found!r}", where=where, expected=said.removeprefix("Value error, ")) from error
    return objective
