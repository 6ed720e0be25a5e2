"""The recipe: one YAML file that says what to train, on what, and what to make of it.

Every key has a default but `data.train`, which each of several `tasks` brings for itself. Unknown keys fail and name the nearest one;
`--set a.b=c` overrides any key. Where a key means the same as one of Hugging Face's `TrainingArguments` or PEFT's `LoraConfig`, their
name is accepted too.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from burnish.errors import RecipeError
from burnish.methods import METHODS, keys_of, refused_keys

Kind = Literal["chat", "generate", "classify", "extract", "multilabel", "regress", "tag"]
Precision = Literal["auto", "fp32", "bf16", "fp8", "nf4"]
Recompute = Literal["auto", "none", "elementwise", "mlp", "all", "offload"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_8bit": "adamw8bit",
    "adamw_bnb_8bit": "adamw8bit",
}


def _own_optimizer(value: Any) -> Any:
    """Our name of an optimiser from that of transformers."""
    return OPTIMIZERS.get(value, value) if isinstance(value, str) else value


Optimizer = Annotated[Literal["auto", "adamw", "adamw8bit"], BeforeValidator(_own_optimizer)]
Paths = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list)]
Share = Annotated[float, Field(ge=0, lt=1)]
MAIN = "main"  # the name of the task of a recipe without `tasks`
OF_ONE = {"data", "task", "objective", "loss"}  # keys that each of several tasks has for itself


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Task(Section):
    """What the model is for, and how an answer is scored."""

    kind: Kind = "chat"
    goal: str = ""  # one sentence; becomes the system prompt where the data has none
    metric: str | None = None  # None: the main one of the kind
    json_schema: dict[str, Any] | str | None = Field(None, alias="schema")  # for extract: a JSON schema, or its file
    constrained: bool = False  # for extract: an answer can be nothing but JSON that fits the schema
    labels: list[str] = []  # for classify, multilabel, tag: the set of labels; empty: those of the training data
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None  # None: a little more than the longest training answer


Slip = Literal["typo", "swap", "letter", "case", "word"]
Ratio = Annotated[float, Field(ge=0)]


class Noise(Section):
    """Rows with slips of the fingers in their prompts (EDA, arXiv 1901.11196)."""

    share: Ratio = 0.0  # generated rows for each row
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1  # share of a prompt's words that are changed, one at the least
    kinds: Annotated[list[Slip], Field(min_length=1)] = ["typo", "swap", "letter", "case", "word"]


class Service(Section):
    """A model behind an OpenAI-compatible endpoint."""

    url: str = ""  # such as http://localhost:8000/v1; empty: the recipe's own model rewrites
    model: str = ""  # what the endpoint calls it
    key_env: str = ""  # the environment variable that holds the API key
    timeout: Annotated[float, Field(gt=0)] = 60.0  # seconds
    retries: Annotated[int, Field(ge=0)] = 4
    at_once: Annotated[int, Field(ge=1, le=256)] = 4  # questions under way at a time


class Rewriting(Section):
    """Rows whose prompt a model has said in another language or manner, and back again."""

    share: Ratio = 0.0  # generated rows for each row
    via: str = "French"
    back: str = "English"
    temperature: Annotated[float, Field(ge=0)] = 0.7
    length: Annotated[float, Field(ge=1)] = 2.0  # a text is kept up to so many times as long, or as short
    max_failures: Annotated[float, Field(ge=0, le=1)] = 0.5  # share of the questions that may come to nothing
    endpoint: Service = Service()


class Augment(Section):
    """Rows generated from those of the training split alone."""

    noise: Noise = Noise()
    rewrite: Rewriting = Rewriting()
    # Bring each label to this ratio of the most frequent one by repeating its rows; 0 is off, 1 is balanced.
    oversample: Annotated[float, Field(ge=0, le=1)] = 0.0


class Data(Section):
    """Files of examples. A share, a number of rows or files stand for validation and test."""

    train: Annotated[Paths, Field(min_length=1)]
    validation: Share | Annotated[int, Field(ge=1)] | Paths = 0.1
    test: Share | Annotated[int, Field(ge=1)] | Paths = 0.1
    group_by: str | None = None  # rows with the same value of this column stay in one split
    columns: dict[str, str] = {}  # what a format calls it: what your file calls it
    only: dict[str, list[str]] = {}  # column: the values to keep, such as a few classes for a first try
    sample: Annotated[int, Field(ge=8)] | None = None  # train on this many rows, drawn by the seed
    per_class: Annotated[int, Field(ge=1)] | None = None  # train on this many rows of each label, drawn by the seed
    take_fewer: bool = False  # with per_class: a label that has fewer rows gives all of them, instead of an error
    near_duplicates: Annotated[float, Field(gt=0, le=1)] = 0.8  # Jaccard of character 5-grams at which rows are one
    redact: bool = False  # replace personal data and secrets by their kind
    augment: Augment = Augment()


class Adapter(Section):
    """What is trained: an adapter, all weights (full), or the score head alone on a frozen body (head). `methods` says which keys each
    method takes; those of others are None.
    """

    method: Literal[
        "lora",
        "rslora",
        "dora",
        "pissa",
        "loftq",
        "ia3",
        "oft",
        "vera",
        "layernorm",
        "prompt",
        "prefix",
        "full",
        "head",
    ] = "lora"
    rank: Annotated[int | None, Field(ge=1, alias="r")] = None
    alpha: Annotated[float | None, Field(gt=0, alias="lora_alpha")] = None
    dropout: Annotated[float | None, Field(ge=0, lt=1, alias="lora_dropout")] = None
    block: Annotated[int | None, Field(ge=2, alias="oft_block_size")] = None  # of oft: numbers turned together
    tokens: Annotated[int | None, Field(ge=1, alias="num_virtual_tokens")] = None  # of prompt and prefix
    targets: Annotated[Paths | None, Field(alias="target_modules")] = None
    # A run, an adapter's folder or (full) a model's folder to go on from; all else of the training begins anew.
    start: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_its_method(cls, values: Any) -> Any:
        """The method's own defaults for what is not given."""
        method = values.get("method", "lora") if isinstance(values, Mapping) else None
        if not isinstance(method, str) or method not in METHODS:
            return values
        names = {field.alias: name for name, field in cls.model_fields.items()}
        given = {names.get(key, key): value for key, value in values.items() if value is not None}
        if refused := refused_keys(method, given):
            raise ValueError(f"the method {method} takes {keys_of(method)}, not {refused[0]}")
        return {**METHODS[method].defaults, **given}


class Freeze(Section):
    """What stays as it is: layers by range ("0-19", "0-3,8"), modules by a part of their name."""

    layers: str = ""
    modules: Paths = []


class Train(Section):
    """How it is trained."""

    epochs: Annotated[float, Field(gt=0, alias="num_train_epochs")] = 3
    max_steps: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"  # rows in one optimiser step
    max_length: Annotated[int, Field(ge=16)] = (
        1024  # tokens of a sequence; a longer one loses its end, and the ledger says so
    )
    micro_tokens: Annotated[int, Field(ge=16)] | Literal["auto"] = "auto"  # tokens that go through the net at once
    warmup: Annotated[float, Field(ge=0, lt=1, alias="warmup_ratio")] = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # each layer's rate is that of the one above times this
    gradual_unfreezing: Share = 0.0  # share of the run over which layers begin to train, from the top down
    weight_decay: Annotated[float, Field(ge=0)] = 0.01  # of matrices alone, adapters' among them
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = (
        None  # of the model's own layers; None: as its configuration has it
    )
    neftune: Annotated[float, Field(ge=0, alias="neftune_noise_alpha")] = (
        0.0  # noise on embeddings, usually 5; 0 is off
    )
    average: Annotated[float, Field(ge=0, lt=1)] = (
        0.0  # of the weights over steps: what a step keeps of it, usually 0.99; it is validated and kept; 0 is off
    )
    clip: Annotated[float, Field(gt=0, alias="max_grad_norm")] = 1.0
    validations: Annotated[int, Field(ge=1)] = 6  # over the whole run
    validation_items: Annotated[int, Field(ge=1)] = 32  # answers generated at each of them
    patience: Annotated[int, Field(ge=1)] = 3  # validations without a better metric before the run stops
    save_every: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"  # steps; auto: about once a minute
    precision: Precision = "auto"  # of the products; fp8 and nf4 store the frozen weights in 8 and 4 bits
    recompute: Recompute = "auto"  # what the backward pass computes again to save memory; auto: as little as fits
    # auto: 8-bit moments only where memory asks for them
    optimizer: Annotated[Optimizer, Field(alias="optim")] = "auto"
    compile: Annotated[bool | Literal["auto"], Field(alias="torch_compile")] = "auto"  # auto: on an accelerator
    graph: bool | Literal["auto"] = "auto"  # CUDA graphs; auto: where the host would be the limit, as with small models
    memory_limit: Annotated[float, Field(gt=0)] | None = None  # GiB that training may use of the accelerator
    seed: int = 0


class Student(Section):
    """A student cut from the teacher. Without `layers`, `keep` and `mlp` the student is the recipe's `model`."""

    layers: Annotated[int, Field(ge=1)] | None = None  # how many layers stay
    keep: str = ""  # or which: "0-3,8"
    by: Literal["even", "similarity"] = (
        "even"  # which layers stay: at even distances, or those that change their input most
    )
    mlp: Annotated[float, Field(gt=0, le=1)] | None = None  # share of the MLP channels that stay, the most active ones


class Distill(Section):
    """Learning from a teacher; without `teacher` nothing of it happens."""

    teacher: str = ""  # a model's name, folder or run, or the address of an OpenAI-compatible endpoint
    on: Literal["answers", "probabilities", "samples"] = (
        "probabilities"  # of the teacher, or on the student's own samples
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of jsd: near 0 like forward_kl, near 1 like reverse_kl
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of both distributions
    alpha: Share = 0.0  # share of the plain loss; with samples, of the rows that keep their written answer
    top_k: Annotated[int, Field(ge=1, le=256)] | None = None  # write so many probabilities once, and let the teacher go
    student: Student = Student()
    every: Annotated[int, Field(ge=1)] = 8  # steps between two drawings of samples
    sample_temperature: Annotated[float, Field(ge=0)] = 1.0
    min_score: Annotated[float, Field(ge=0, le=1)] = (
        0.1  # answers that score less by the task's metric are not learnt, where there is a reference
    )
    endpoint_model: str = ""  # what the endpoint calls the teacher
    key_variable: str = "OPENAI_API_KEY"  # the environment variable with the endpoint's key
    timeout: Annotated[float, Field(gt=0)] = 60.0  # seconds for one answer
    retries: Annotated[int, Field(ge=0)] = 5
    parallel: Annotated[int, Field(ge=1)] = 4  # requests at once
    time_prompts: Annotated[int, Field(ge=1)] = 24  # prompts that teacher and student answer against the clock


class Leakage(Section):
    action: Literal["block", "drop"] = "block"  # stop the run, or drop the training rows that stand in a held-out split


class Guards(Section):
    """The limits of the guards."""

    min_rows: Annotated[int, Field(ge=1)] = 100  # fewer training rows are called small
    min_rows_per_label: Annotated[int, Field(ge=1)] = 8
    max_truncated: Share = 0.01
    max_gap: Annotated[float, Field(gt=0)] = 1.0  # validation loss minus training loss, nats a token
    leakage: Leakage = Leakage()


class OneTask(Section):
    """One of several tasks that a model learns at once: what it is, what it learns from, and how much it weighs."""

    data: Data
    task: Task = Task.model_validate({})
    objective: str = "sft"
    loss: dict[str, Any] = {}  # as a recipe of one task has it
    weight: Annotated[float, Field(gt=0)] = 1.0  # times its share by the mixing


class Mixing(Section):
    """How much of a step each task gets (arXiv 1910.10683, 3.5.2): its rows, these to the power 1/temperature, or its weight alone."""

    by: Literal["size", "temperature", "weights"] = "temperature"
    temperature: Annotated[float, Field(ge=1)] = 2.0  # 1 is by size; the higher, the more alike are the shares
    cap: Annotated[int, Field(ge=1)] | None = None  # rows from which on a task counts as no larger
    compare_alone: bool = False  # also train each task alone, to see which one the others help or hurt


class Deploy(Section):
    export: list[Literal["adapter", "merged"]] = ["adapter", "merged"]


class Tune(Section):
    """What `burnish tune` tries, and for how long."""

    space: dict[str, Any] = {}  # key: [low, high], [low, high, log] or {choices: [...]}; empty: the usual ones
    budget: str | Annotated[int, Field(ge=1)] = 20  # trials, or a time such as 20m or 2h, over the whole study
    seeds: Annotated[int, Field(ge=1)] = 3  # the best recipe is trained with so many
    prune: bool = True  # a trial that falls behind ends early


class TunedBy(Section):
    """Where the values of a recipe come from; `burnish tune` writes it into best.yaml. rows: those that the trials trained on."""

    study: str
    trials: int
    rows: int
    metric: str
    default: float | None  # the metric on validation of the recipe that the study began with, and of this one
    best: float
    values: dict[str, Any]


class Recipe(Section):
    """A whole recipe."""

    model: str = "smollm2-135m"
    name: str = ""
    task: Task = Task.model_validate({})
    data: Data
    objective: str = "sft"
    loss: dict[str, Any] = {}  # options of the objective, such as label_smoothing; one that it has not is refused
    adapter: Adapter = Adapter()
    freeze: Freeze = Freeze()
    train: Train = Train()
    distill: Distill = Distill()
    guards: Guards = Guards()
    deploy: Deploy = Deploy()
    tasks: dict[Annotated[str, Field(pattern=r"^\w+$")], OneTask] = {}  # several, in place of data, task and objective
    mixing: Mixing = Mixing()
    tune: Tune = Tune()
    tuned_by: TunedBy | None = None
    log: list[Tracker] = []
    trust_remote_code: bool = False  # runs Python that the model's author wrote, on this machine

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, values: Any) -> Any:
        """Several tasks bring their own data; only `data.sample`, of a first try, is said once for all of them."""
        tasks = values.get("tasks") if isinstance(values, Mapping) else None
        if not isinstance(tasks, Mapping) or not tasks:
            return values
        size = data.get("sample") if isinstance(data := values.get("data"), Mapping) else None
        if size is not None:
            tasks = {name: _with_sample(one, size) for name, one in tasks.items()}
        return {**values, "tasks": tasks, "data": Data.model_construct(train=[], sample=size)}

    @property
    def each(self) -> dict[str, Recipe]:
        """The recipe of each task by its name, as if it were alone; a recipe without `tasks` is that of its one task."""
        if not self.tasks:
            return {MAIN: self}
        return {
            name: self.model_copy(
                update={**{key: getattr(one, key) for key in OF_ONE}, "tasks": {}, "mixing": Mixing()},
            )
            for name, one in self.tasks.items()
        }

    @property
    def goal(self) -> str:
        """What the model is for."""
        return " ".join(filter(None, (one.task.goal.strip() for one in self.each.values())))

    def dump(self) -> str:
        """The recipe as YAML, every key spelled out."""
        unused = OF_ONE if self.tasks else {"tasks", "mixing"}
        values = self.model_dump(mode="json", by_alias=False, exclude=unused)
        values["adapter"] = {key: value for key, value in values["adapter"].items() if value is not None}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _with_sample(one: Any, size: Any) -> Any:
    """A task's values with a size of sample, unless they are no section, which is told elsewhere."""
    data = one.get("data") if isinstance(one, Mapping) else None
    return {**one, "data": {**data, "sample": size}} if isinstance(data, Mapping) else one


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
            hint="adapter: {method: lora}, train: {precision: nf4}",
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
