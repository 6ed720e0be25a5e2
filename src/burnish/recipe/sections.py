"""What a recipe may say: its sections, their keys, defaults and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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
    frame: Literal["plain", "chat"] = "plain"  # what a score head reads: the text alone, or as in a conversation
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

    def values(self) -> dict[str, Any]:
        """The plain values that the recipe can be made of again, every key spelled out."""
        return self.model_dump(mode="json", exclude=OF_ONE if self.tasks else {"tasks", "mixing"})

    def dump(self) -> str:
        """The same as YAML."""
        values = self.values()
        values["adapter"] = {key: value for key, value in values["adapter"].items() if value is not None}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _with_sample(one: Any, size: Any) -> Any:
    """A task's values with a size of sample, unless they are no section, which is told elsewhere."""
    data = one.get("data") if isinstance(one, Mapping) else None
    return {**one, "data": {**data, "sample": size}} if isinstance(data, Mapping) else one
