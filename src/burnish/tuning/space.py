"""What a study may vary: keys of the recipe with a range or a list of choices, and how much may be spent on it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.errors import RecipeError
from burnish.joint import objective_of
from burnish.methods import KEYS, METHODS, used_keys
from burnish.parts import check_head, reads_once
from burnish.recipe import Recipe, make_recipe, own_key, parse_yaml, with_overrides

RANGE = "[low, high], [low, high, log] or {choices: [...]}"
# What these say must be the same for all trials, or their figures could not be compared.
FIXED = {
    "model": "two models are two studies",
    "objective": "two objectives are two studies",
    "task": "all trials are judged by the same task",
    "data": "all trials are judged on the same rows",
    "train.seed": "the winner is trained with several seeds afterwards",
    "train.validations": "all trials are judged as often",
    "train.validation_items": "all trials are judged on the same rows",
    "distill.teacher": "two teachers are two studies",
    "distill.student": "two students are two studies",
} | dict.fromkeys(
    ("guards", "deploy", "log", "name", "tune", "tuned_by", "trust_remote_code", "train.save_every", "mixing.compare_alone"),
    "it changes nothing of what is learnt",
)  # fmt: skip


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both among them. log: as likely in each decade. whole: integers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def as_json(self) -> dict[str, Any]:
        return vars(self)


@dataclass(frozen=True)
class Choices:
    """Some values, in no order."""

    values: tuple[Any, ...]

    def as_json(self) -> dict[str, Any]:
        return {"choices": list(self.values)}


Space = dict[str, Range | Choices]


@dataclass(frozen=True)
class Budget:
    """What the whole study may take, all its processes together: trials, or seconds of training."""

    trials: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        return f"{self.trials} trials" if self.trials else f"{(self.seconds or 0) / 60:g} minutes"


def read_budget(text: str | int) -> Budget:
    """20 is a number of trials; 90s, 20m and 2h are times. Raises RecipeError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(text).strip())
    amount = float(found[1]) if found else 0.0
    if not found or amount <= 0 or (not found[2] and amount != round(amount)):
        raise RecipeError(f"found {str(text)!r}", where="budget", expected="a number of trials, or a time: 20, 45m, 2h")
    if not found[2]:
        return Budget(trials=round(amount))
    return Budget(seconds=amount * {"s": 1, "m": 60, "h": 3600}[found[2]])


def read_space(recipe: Recipe, ranges: Iterable[str] = (), choices: Iterable[str] = ()) -> Space:
    """The space of the recipe's `tune.space` and of the command's --range and --choices; a key of the command replaces the recipe's.

    ranges: "key=low:high" or "key=low:high:log". choices: "key=a,b". Empty where neither names a key.
    Raises RecipeError naming the key: unknown, fixed, without effect, a range the wrong way round, or a value that the recipe refuses.
    """
    written = {own_key(key): (f"tune.space.{key}", value) for key, value in recipe.tune.space.items()}
    for text in ranges:
        key, value = _pair(text, "--range", "train.learning_rate=1e-5:1e-3:log")
        low, _, rest = value.partition(":")
        high, _, scale = rest.partition(":")
        parts = [parse_yaml(part, f"--range {key}") for part in (low, high, scale) if part]
        written[own_key(key)] = (f"--range {key}", parts)
    for text in choices:
        key, value = _pair(text, "--choices", "adapter.rank=8,16,32")
        parts = parse_yaml(f"[{value}]", f"--choices {key}")
        written[own_key(key)] = (f"--choices {key}", {"choices": parts})
    read = {key: _read(value, where) for key, (where, value) in written.items()}
    for key, (where, _) in written.items():
        _check_tunable(recipe, key, read.get("adapter.method"), where)
    return {key: _checked(recipe, key, one, written[key][0]) for key, one in read.items()}


def usual_space(recipe: Recipe, rows: int, start: Mapping[str, Any]) -> Space:
    """What is tried where the user names nothing: rate, batch, epochs, rank, dropout, weight decay and warm-up.

    rows: training rows. start: what the recipe has for each key, "auto" resolved.
    """
    rate, batch = start["train.learning_rate"], start["train.batch_size"]
    sizes = [size for size in (4, 8, 16, 32, 64) if size * 8 <= rows]
    space: Space = {
        "train.learning_rate": Range(rate / 8, rate * 8, log=True),
        "train.batch_size": Choices(tuple(sorted({*sizes, batch}))),
        "train.weight_decay": Range(0.0, 0.2),
        "train.warmup": Range(0.0, 0.2),
    }
    if recipe.train.max_steps is None:
        space["train.epochs"] = Range(1.0, max(6.0, 2.0 * recipe.train.epochs))
    if "alpha" in used_keys(recipe.adapter.method):  # LoRA and its kin
        if not recipe.adapter.start:  # which has a rank already
            space["adapter.rank"] = Choices(tuple(sorted({8, 16, 32, 64, recipe.adapter.rank or 16})))
        space["adapter.dropout"] = Range(0.0, 0.2)
    return space


def starting_values(recipe: Recipe, space: Iterable[str], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe itself has for each key. resolved: what stands for "auto" and for a limit of steps that is not given.

    Raises RecipeError where a key has no value to begin with.
    """
    values: dict[str, Any] = {}
    for key in space:
        found: Any = recipe.model_dump(mode="json")
        for name in key.split("."):
            found = found[name]
        if found in ("auto", None):
            found = resolved.get(key)
        if found is None:
            raise RecipeError(
                f"`{key}` is left open, so a study has no value to begin with", where=key, hint=f"--set {key}=..."
            )
        values[key] = found
    return values


def with_start(space: Space, start: Mapping[str, Any]) -> Space:
    """The space with the recipe's own value among the choices of each key that has choices."""
    return {
        key: Choices((start[key], *one.values)) if isinstance(one, Choices) and start[key] not in one.values else one
        for key, one in space.items()
    }


def recipe_with(recipe: Recipe, values: Mapping[str, Any], where: str = "trial") -> Recipe:
    """The recipe with other values. Raises RecipeError where it refuses them."""
    return make_recipe(with_overrides(recipe.values(), values), where=where)


def as_text(value: Any) -> str:
    """A choice as the storage keeps it, which knows no lists."""
    return json.dumps(value, default=str)


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and key.strip() and value.strip()):
        raise RecipeError(f"found {text!r}", where=option, expected=example)
    return key.strip(), value.strip()


def _read(value: Any, where: str) -> Range | Choices:
    match value:
        case {"choices": list(values), **rest} if not rest:
            distinct = {as_text(one): one for one in values}
            if len(distinct) < 2:
                raise RecipeError(f"found {values}", where=where, expected="two different choices or more")
            return Choices(tuple(distinct.values()))
        case [low, high, *scale] if scale in ([], ["log"]) and _numbers(low, high):
            if not low < high:
                raise RecipeError(
                    f"the range goes from {low:g} to {high:g}",
                    where=where,
                    expected="the lower end first, and a higher one after it",
                    hint=f"{high:g} to {low:g}" if low > high else "",
                )
            if scale and low <= 0:
                raise RecipeError(
                    f"the range begins at {low:g}, which has no logarithm",
                    where=where,
                    expected="a lower end above 0, or a range without log",
                )
            return Range(low, high, log=bool(scale))
    raise RecipeError(f"found {value!r}", where=where, expected=RANGE)


def _check_tunable(recipe: Recipe, key: str, tried: Range | Choices | None, where: str) -> None:
    """Raise RecipeError for a key that all trials must share, or that none has a use for. tried: further methods, where these vary too."""
    if why := next((why for fixed, why in FIXED.items() if f"{key}.".startswith(f"{fixed}.")), None):
        raise RecipeError(f"`{key}` cannot be tuned: {why}", where=where)
    methods = [one for one in METHODS if one in (recipe.adapter.method, *getattr(tried, "values", ()))]
    who, remedy = _without_use(recipe, key, methods)
    if who:
        used = [f"adapter.{one}" for one in used_keys(recipe.adapter.method)] if key.startswith("adapter.") else []
        raise RecipeError(
            f"`{key}` cannot be tuned: {who} has no use for it",
            where=where,
            expected=f"of `adapter` one of: {', '.join(used)}" if used else "another key, such as train.learning_rate",
            hint=f"{remedy}   uses it",
        )


def _without_use(recipe: Recipe, key: str, methods: Sequence[str]) -> tuple[str, str]:
    """(who has no use for a key, what to set so that it has one); nothing where it can change what is learnt."""
    section, _, name = key.partition(".")
    if section == "adapter" and name in KEYS and not any(name in used_keys(one) for one in methods):
        user = next(one for one in METHODS if name in used_keys(one))
        return f"the method {' or '.join(methods)}", f"--set adapter.method={user}"
    if methods == ["head"] and key in ("train.neftune", "train.dropout"):
        task = next(iter(recipe.each.values()))
        # With a teacher beside it the body reads each text at each step, so that it drops something at least.
        if reads_once(task, objective_of(task)) and not (key == "train.dropout" and recipe.distill.teacher):
            return "the method head", "--set adapter.method=lora"
    if section == "distill" and not recipe.distill.teacher:
        return "a recipe without a teacher", "--set distill.teacher=NAME"
    if section == "mixing" and not recipe.tasks:
        return "a recipe of one task", "tasks: ..."
    return "", ""


def _checked(recipe: Recipe, key: str, one: Range | Choices, where: str) -> Range | Choices:
    """The same, once the recipe has taken both ends or each choice; a range of a key that takes only integers is one of integers."""
    for value in (one.low, one.high) if isinstance(one, Range) else one.values:
        tried = recipe_with(recipe, {key: value}, where)
        if tried.adapter.method == "head":  # a run would refuse it later
            for task in tried.each.values():
                check_head(task, objective_of(task))
    if isinstance(one, Choices):
        return one
    try:
        recipe_with(recipe, {key: math.floor(one.low) + 0.5})
    except RecipeError:
        whole = one.low == round(one.low) and one.high == round(one.high)
        return Range(round(one.low), round(one.high), one.log, whole=True) if whole else one
    return one


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) and all(
        map(math.isfinite, values)
    )
