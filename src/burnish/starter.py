"""`burnish init`: a recipe for a file of examples, made by looking at it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from burnish.data.check import Check, check
from burnish.data.rows import Labelled, Row, Tagged, Text
from burnish.data.sources import read_rows
from burnish.errors import RecipeError
from burnish.recipe import make_recipe, parse_yaml

LOOKED_AT = 500  # rows whose answers tell the kind of task
SHORT_WORDS = 12  # words up to which half of the answers make the task "generate"
TRAINABLE = {"conversation", "text", "labelled"}
GROUP_WORDS = (
    "customer",
    "user",
    "author",
    "document",
    "doc",
    "source",
    "thread",
    "session",
    "conversation",
    "patient",
    "group",
    "entity",
)


def recipe_for(data: str, *, goal: str = "", model: str = "smollm2-135m", beside: Path = Path()) -> str:
    """The recipe as YAML text with a comment for each choice. beside: the folder that it will stand in.

    Raises RowError where the file cannot be used, RecipeError where no objective learns from its rows.
    """
    from burnish.data.ledger import Ledger

    found = check(data)
    if untrainable := sorted(found.kinds.keys() - TRAINABLE):
        raise RecipeError(
            f"these are {untrainable[0]} rows, and no objective learns from them yet",
            where=data,
            expected=f"rows of the kinds: {', '.join(sorted(TRAINABLE))}",
        )
    rows = list(islice(read_rows(data, Ledger()), LOOKED_AT))
    lines = _lines(found, rows, goal, model, _seen_from(beside, data))
    text = "".join(f"{line:<43} # {why}\n" if why else f"{line}\n" for line, why in lines)
    make_recipe(parse_yaml(text, "recipe.yaml"))
    return text


def _seen_from(folder: Path, data: str) -> str:
    """The path of a data file as a recipe in `folder` names it; an id of the hub stays as it is."""
    if not any(Path(name).exists() for name in (data, data.rpartition("#")[0]) if name):
        return data
    path = os.path.relpath(data, folder)
    return os.path.abspath(data) if path.startswith("..") else path


def write_recipe(
    data: str, out: Path, *, goal: str = "", model: str = "smollm2-135m", force: bool = False
) -> dict[str, Any]:
    """Write the recipe to `out`. Raises RecipeError where there is one already and `force` is not set."""
    from burnish.folder import write_text

    if out.exists() and not force:
        raise RecipeError(
            "there is a recipe already", where=str(out), hint="--force   writes over it, or -o another.yaml"
        )
    text = recipe_for(data, goal=goal, model=model, beside=out.parent)
    write_text(out, text)
    return {"out": str(out), "recipe": text}


def _lines(found: Check, rows: Sequence[Row], goal: str, model: str, path: str) -> Iterator[tuple[str, str]]:
    """(line, why) of the recipe, from its top."""
    kind, why = kind_of(found, rows)
    yield f"model: {_plain(model)}", ""
    yield "task:", ""
    yield f"  kind: {kind}", why
    yield f"  goal: {_plain(goal)}", "" if goal else "one sentence: what is the model for?"
    if kind in ("multilabel", "regress", "tag"):
        yield f"objective: {kind}", "a head that scores, in place of words"
    yield "data:", ""
    yield (
        f"  train: {_plain(path)}",
        f"{found.rows - found.duplicates} rows can be used, {found.dropped} cannot or stand twice",
    )
    yield "  validation: 0.1", ""
    yield f"  test: {0.2 if found.rows < 500 else 0.1}", "locked: base and tuned meet it once, at the end"
    if group := group_of(found):
        yield f"  group_by: {_plain(group)}", f"rows of one {group} stay together"
    private = sum(
        int(one["count"]) for one in found.findings if str(one["kind"]).startswith(("secret", "personal data"))
    )
    if private:  # what is to be extracted must not be replaced
        held = f"{private} findings of personal data or secrets"
        yield f"  redact: {'false' if kind == 'extract' else 'true'}", f"{held}; true replaces them by their kind"
    yield "adapter: {method: lora, rank: 16}", ""
    yield f"train: {{epochs: {5 if found.rows < 150 else 3}}}", ""


def kind_of(found: Check, rows: Sequence[Row]) -> tuple[str, str]:
    """(task.kind, why): from what the answers of some rows look like."""
    if all(isinstance(row, Text) for row in rows):
        return "generate", "plain text"
    if all(isinstance(row, Tagged) for row in rows):
        return "tag", "a tag for each word"
    if all(isinstance(row, Labelled) for row in rows):
        kinds = {type(row.label) for row in rows if isinstance(row, Labelled)}
        if float in kinds:
            return "regress", "the labels are numbers"
        if tuple in kinds:
            return "multilabel", "the labels are lists"
        return "classify", f"{len(found.labels)} labels"
    if found.labels:
        return "classify", f"the answers are {len(found.labels)} labels"
    answers = [row.answer_text() for row in rows]
    if sum(map(_is_object, answers)) > 0.9 * len(answers):
        return "extract", "the answers are JSON objects"
    single = sum(len(getattr(row, "turns", ())) <= 3 for row in rows)
    lengths = Counter(len(answer.split()) <= SHORT_WORDS for answer in answers)
    if single == len(rows) and lengths[True] > lengths[False]:
        return "generate", "the answers are short"
    return "chat", "the answers are sentences"


def group_of(found: Check) -> str:
    """A column that tells whom or what a row is about: named like one, with several rows to a value."""
    for name, values in found.columns.items():
        words = name.lower().replace("-", "_").split("_")
        if any(word in words for word in GROUP_WORDS) and 5 <= values < 0.9 * min(found.rows, 1000):
            return name
    return ""


def _is_object(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _plain(text: str) -> str:
    """A text as YAML writes it on one line."""
    return (
        yaml.safe_dump(text, allow_unicode=True, width=10**6, default_flow_style=True)
        .strip()
        .removesuffix("\n...")
        .strip()
    )
