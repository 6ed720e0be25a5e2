"""From a YAML file, plain values and overrides to a checked recipe, and what is said of one that is wrong."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from burnish.errors import RecipeError
from burnish.methods import METHODS, keys_of, refused_keys
from burnish.recipe.sections import OF_ONE, OneTask, Recipe, Section

_SECTIONS = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def _own_paths() -> dict[tuple[str, ...], tuple[str, str]]:
    """Path by a name of another trainer -> path by ours. Keys of `train` and `adapter` may stand at the top, as theirs do."""
    paths: dict[tuple[str, ...], tuple[str, str]] = {}
    for section, model in _SECTIONS.items():
        for name, field in model.model_fields.items():
            for known in {name, field.alias or name}:
                paths[section, known] = (section, name)
                if section in ("train", "adapter") and known not in Recipe.model_fields:
                    paths.setdefault((known,), (section, name))  # `dropout` alone is the adapter's
    return paths


_OWN_PATHS = _own_paths()


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-4 is a number, and a key may stand only once."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if not isinstance(key, str | int | float | bool):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", node.start_mark)
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)


def parse_yaml(text: str, where: str) -> Any:
    """Plain values of a YAML text. Raises RecipeError with the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        raise RecipeError(f"this is no YAML: {getattr(error, 'problem', None) or error}", where=place) from error


def load_recipe(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read a recipe file.

    overrides: "a.b=value" texts, whose values are read as YAML, or a mapping from dotted keys to values.
    Paths of data files are looked for beside the recipe first, then where the command runs.
    Raises RecipeError naming the file, the key, what stood there, what was expected and the nearest key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "this is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error))
        hint = "burnish init DATA_FILE   writes a recipe from your examples"
        raise RecipeError(f"the recipe cannot be read: {reason}", where=str(path), hint=hint) from error
    values = parse_yaml(text, str(path)) or {}
    if not isinstance(values, dict):
        raise RecipeError(f"found {_brief(values)}", where=str(path), expected="keys and values, such as `model: ...`")
    return make_recipe(with_overrides(values, overrides, where=str(path)), where=str(path), folder=path.parent)


def with_overrides(
    values: Mapping[str, Any], overrides: Iterable[str] | Mapping[str, Any], *, where: str = "recipe"
) -> dict[str, Any]:
    """Plain values of a recipe with some keys put in; `values` stays as it is. Raises RecipeError for a malformed override."""
    changed = own_names(copy.deepcopy(dict(values)), where)
    for key, value in _pairs(overrides):
        _assign(changed, key, value)
    return changed


def own_names(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same values by our own names and in their sections: `num_train_epochs` is `train.epochs`, `r` is `adapter.rank`.

    Raises RecipeError where one key stands by two names.
    """
    named: dict[str, Any] = {}
    for key, value in values.items():
        inside = key in _SECTIONS and isinstance(value, Mapping)
        if inside:
            named.setdefault(key, {})
        for path, inner in [((key, name), inner) for name, inner in value.items()] if inside else [((key,), value)]:
            own = _OWN_PATHS.get(path, path)
            if not _put(named, own, inner):
                raise RecipeError(f"the key `{'.'.join(map(str, own))}` stands twice, by two names", where=where)
    return named


def own_key(dotted: str) -> str:
    """A dotted key by our own name: `train.num_train_epochs` and `num_train_epochs` are `train.epochs`."""
    given = tuple(dotted.split("."))
    return ".".join(_OWN_PATHS.get(given, given))


def _put(values: dict[str, Any], path: tuple[Any, ...], value: Any) -> bool:
    """Put a value under a path of one or two keys; False where something stands there."""
    *section, name = path
    if section and values.get(section[0]) is None:
        values[section[0]] = {}
    target = values[section[0]] if section else values
    if not isinstance(target, dict) or target.get(name) is not None:
        return False
    target[name] = value
    return True


def make_recipe(values: Mapping[str, Any], *, where: str = "recipe", folder: Path | None = None) -> Recipe:
    """A checked recipe from plain values. Raises RecipeError as `load_recipe` does."""
    values = own_names(values, where)
    check_tasks(values, where)
    check_adapter(values.get("adapter"), where)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise _explained(error, where) from error
    if folder is None:
        return recipe
    model = _beside(folder, recipe.model) if recipe.model.endswith(".gguf") else recipe.model
    tasks = {name: one.model_copy(update=_found(folder, one)) for name, one in recipe.tasks.items()}
    distill = recipe.distill
    if distill.teacher:
        distill = distill.model_copy(update={"teacher": _beside(folder, distill.teacher)})
    adapter = recipe.adapter
    if adapter.start:
        adapter = adapter.model_copy(update={"start": _beside(folder, adapter.start)})
    changed = {**_found(folder, recipe), "tasks": tasks, "model": model, "distill": distill, "adapter": adapter}
    return recipe.model_copy(update=changed)


def check_adapter(values: Any, where: str) -> None:
    """Raise RecipeError where `adapter` has a key that its method does not take, or names a method by another name."""
    method = values.get("method", "lora") if isinstance(values, Mapping) else None
    if method == "qlora":
        raise RecipeError(
            "`adapter.method` is 'qlora'",
            where=where,
            expected="lora on a base whose weights have 4 bits",
            hint="--set adapter.method=lora --set train.precision=nf4",
        )
    if isinstance(method, str) and method in METHODS and (refused := refused_keys(method, values)):
        raise RecipeError(
            f"the method {method} takes no `adapter.{refused[0]}`",
            where=where,
            expected=f"one of: {keys_of(method)}",
            hint=f"--set adapter.{refused[0]}=null   takes it out of the recipe",
        )


def check_tasks(values: Mapping[str, Any], where: str) -> None:
    """Raise RecipeError where `tasks` stands beside what it takes the place of, or holds fewer than two."""
    tasks = values.get("tasks")
    if tasks is None or (tasks == {} and "data" in values):  # as a recipe of one task is spelled out
        return
    if not isinstance(tasks, Mapping) or len(tasks) < 2:
        raise RecipeError(
            f"`tasks` is {_brief(tasks)}",
            where=where,
            expected="two or more names, each with its own data, task and objective",
            hint="data: {train: examples.jsonl}   at the top, for one task",
        )
    data = values.get("data")
    sample_alone = isinstance(data, Mapping) and set(data) == {"sample"}
    if beside := sorted(key for key in OF_ONE & values.keys() if not (key == "data" and sample_alone)):
        key = beside[0]
        raise RecipeError(
            f"the key `{key}` stands beside `tasks`",
            where=where,
            expected=f"`{key}` within each task",
            hint=f"tasks: {{{next(iter(tasks))}: {{{key}: ...}}}}",
        )


def _found(folder: Path, one: Recipe | OneTask) -> dict[str, Any]:
    """The sections of a task that name files, with their paths."""
    data, schema = one.data, one.task.json_schema
    splits = {
        split: files for split in ("train", "validation", "test") if isinstance(files := getattr(data, split), list)
    }
    found = {split: [_beside(folder, name) for name in files] for split, files in splits.items()}
    schema = _beside(folder, schema) if isinstance(schema, str) else schema
    return {"data": data.model_copy(update=found), "task": one.task.model_copy(update={"json_schema": schema})}


def _beside(folder: Path, name: str) -> str:
    """The path beside the recipe where there is one; `file#500` keeps its number."""
    path, mark, count = name.partition("#")
    beside = folder / path
    return f"{beside}{mark}{count}" if beside.exists() else name


def _pairs(overrides: Iterable[str] | Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        yield from overrides.items()
        return
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RecipeError(f"found {text!r}", where="--set", expected="a.b=value", hint="--set train.epochs=2")
        # A shell leaves nothing of '', which is the empty text; no value is `null`.
        yield key.strip(), parse_yaml(value, f"--set {key}") if value.strip() else ""


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    given = tuple(dotted.split("."))
    *path, last = _OWN_PATHS.get(given, given)
    for name in path:
        inner = values.setdefault(name, {})
        if inner is None:
            inner = values[name] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{name!r} holds {_brief(inner)}", where=f"--set {dotted}", expected="a section of keys")
        values = inner
    values[last] = value


def _explained(error: ValidationError, where: str) -> RecipeError:
    """The first problem that pydantic found, in our words."""
    problem = error.errors(include_url=False)[0]
    keys = [str(part) for part in problem["loc"] if isinstance(part, int) or not _is_union_tag(str(part))]
    dotted = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5) or difflib.get_close_matches(
            keys[-1], sorted(known, key=len), n=1, cutoff=0.3
        )
        expected = f"one of: {', '.join(known)}"
        hint = f"did you mean `{near[0]}`?" if near else ""
        return RecipeError(f"unknown key `{dotted}`", where=where, expected=expected, hint=hint)
    hint = "data: {train: examples.jsonl}" if dotted in ("data", "data.train", "data.train.0") else ""
    if problem["type"] == "missing":
        return RecipeError(f"the key `{dotted}` is missing", where=where, hint=hint)
    if problem["type"] == "model_type":
        expected = f"a section with some of: {', '.join(_known_keys(keys))}"
    elif dotted == "data.train":
        expected = "one or more files of examples"
    else:
        expected = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return RecipeError(f"`{dotted}` is {_brief(problem['input'])}", where=where, expected=expected, hint=hint)


def _is_union_tag(part: str) -> bool:
    """Whether pydantic put the member of a union, not a key, into the place of an error."""
    return part in {"float", "int", "str", "constrained-str"} or any(mark in part for mark in "[(-")


def _known_keys(path: list[str]) -> list[str]:
    section: type[BaseModel]
    if path[:1] == ["tasks"]:  # the next is a name
        section, path = (OneTask, path[2:]) if len(path) > 1 else (Recipe, [])
    else:
        section = Recipe
    for name in path:
        annotation = section.model_fields[name].annotation if name in section.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return list(section.model_fields)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
