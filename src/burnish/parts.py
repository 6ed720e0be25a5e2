"""What the steps hand on to each other, and what they build from a recipe: settings, net, feed, optimiser, plan."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from burnish.core import Group, Objective
from burnish.data.feed import Feed, total_steps
from burnish.data.mixture import Mixture, shares_of
from burnish.data.render import Chat, Rendered, system_prompt
from burnish.data.split import Guarded
from burnish.errors import RecipeError
from burnish.evaluate.runner import Exam, Item, make_items
from burnish.evaluate.scored import ScoredExam
from burnish.folder import Run, key_of, locked
from burnish.heads import chat_for, labels_of
from burnish.methods import METHODS
from burnish.model.adapt import adapt, trained_parameters
from burnish.model.attention import by_edges
from burnish.model.constrained import Constraint
from burnish.model.depth import Pace, paces
from burnish.model.fast import accelerate, expect_compiling
from burnish.model.features import CachedBody
from burnish.model.likelihood import sequence_logp
from burnish.model.load import Head, empty_model, load_model, on_device
from burnish.model.net import OF_TEACHER, Net
from burnish.model.quantize import quantize
from burnish.model.regularise import drops, set_dropout
from burnish.model.starts import before_tuning
from burnish.model.warm_start import check_start, find_start, keeps_head, put_start
from burnish.recipe import MAIN, Recipe
from burnish.scoring import Scorer
from burnish.train import memory
from burnish.train.optim import Optim, auto_batch_size, auto_learning_rate
from burnish.train.plan import Plan, Workload, choose, make_plan, micro_candidates, suited

if TYPE_CHECKING:
    from burnish.distillation import Guide

TASK = MAIN  # the name of the one task; several tasks are several names in one step


@dataclass(frozen=True)
class Chosen:
    """Step 1. source: the model's folder or hub id. key: all that the model and the data files are. mixed: the objectives of several.

    teacher: whom the model learns from.
    """

    source: str
    config: Any
    tokenizer: Any
    objective: Objective
    key: str
    mixed: dict[str, Objective] = field(default_factory=dict)
    teacher: Guide | None = None
    constraint: Constraint | None = None

    @property
    def objectives(self) -> dict[str, Objective]:
        """The objective of each task by its name."""
        return self.mixed or {TASK: self.objective}

    def of(self, task: str) -> Chosen:
        """The same as if this task were alone."""
        return replace(self, objective=self.objectives[task], mixed={})


@dataclass(frozen=True)
class Tokenized:
    """Step 3. chat: what turns rows into ids, the same for all splits. parts: the same by task, where there are several."""

    chat: Chat
    train: Rendered
    validation: Rendered
    test: Rendered
    parts: dict[str, Tokenized] = field(default_factory=dict)

    @property
    def tasks(self) -> dict[str, Tokenized]:
        """The rows of each task by its name."""
        return self.parts or {TASK: self}


@dataclass(frozen=True)
class Tried:
    """Step 4: the net, and the settings under which the longest rows fit. taken: what was given up for them."""

    net: Net
    settings: memory.Settings
    taken: list[str]


@dataclass(frozen=True)
class Trained:
    """Step 7: the net with its best weights."""

    net: Net
    report: dict[str, Any]
    key: str


def settle(recipe: Recipe, chosen: Chosen, tokenized: Tokenized) -> memory.Settings:
    """Every setting that the recipe leaves to us, from the size of the data, the model and the machine.

    Raises RecipeError for what this machine cannot do.
    """
    device = memory.device_of_choice()
    wanted = suited(recipe.train, recipe.adapter.method)
    rows = len(tokenized.train.groups)
    batch = auto_batch_size(rows) if wanted.batch_size == "auto" else wanted.batch_size
    steps = total_steps(rows, batch, wanted.epochs, wanted.max_steps)
    hidden = chosen.config.get_text_config().hidden_size
    rate = (
        auto_learning_rate(hidden, recipe.adapter.method, steps)
        if wanted.learning_rate == "auto"
        else wanted.learning_rate
    )
    # A compiled layer keeps what its attention dropped, at every level of recomputation.
    compiled_unasked = device.type == "cuda" and not drops(chosen.config.get_text_config(), wanted.dropout)
    settings = memory.Settings(
        batch_size=batch,
        micro_tokens=memory.micro_tokens_of_choice(wanted.micro_tokens, device, wanted.max_length),
        epochs=wanted.epochs,
        steps=steps,
        learning_rate=rate,
        precision=memory.precision_of_choice(wanted.precision, device, recipe.adapter.method),
        device=str(device),
        compile=compiled_unasked if wanted.compile == "auto" else wanted.compile,
        average=wanted.average > 0,
        recomputable=recipe.adapter.method != "prefix",
    )
    empty = empty_net(recipe, chosen, tokenized)
    if start := find_start(recipe.adapter):
        trusted = recipe.trust_remote_code
        check_start(start, empty, chosen.source, chosen.config, trust_remote_code=trusted)
    apart = not METHODS[recipe.adapter.method].prompts  # learnt tokens come before each sequence in a row of its own
    settings = replace(settings, one_row=apart and by_edges(empty, device, settings.precision))
    return choose(wanted, chosen.config, empty, workload(recipe, chosen, tokenized, settings), settings)


def chat_of(recipe: Recipe, chosen: Chosen, guarded: Guarded) -> Chat:
    """What turns rows into ids: a conversation to continue, or a text for a score head to name the class of."""
    labels = labels_of(recipe, guarded.train)
    system = system_prompt(recipe.task.goal, labels)
    if {"score", "token_score"} & chosen.objective.needs:
        how = {"system": system, "max_length": recipe.train.max_length, "frame": recipe.task.frame}
        return chat_for(recipe.task.kind, chosen.tokenizer, labels, guarded.train, **how)
    return Chat(chosen.tokenizer, system=system, max_length=recipe.train.max_length)


def head_of(recipe: Recipe, chosen: Chosen, chat: Chat) -> Head | None:
    """The score head that the rows are rendered for, beside the vocabulary's where a task writes; None where none scores."""
    if not chat.labels:
        return None
    writes = any("logp" in objective.needs for objective in chosen.objectives.values())
    seed, pad = recipe.train.seed, chosen.tokenizer.pad_token_id
    head = Head(chat.labels, pad, seed, writes, chat.kind, mean=chat.mean, spread=chat.spread)
    return replace(head, frame=chat.frame, system=chat.system) if chat.frame == "chat" else head


def expect_training(recipe: Recipe) -> None:
    """Bring up in the background what training takes before its first step, where a GPU will compile the layers."""
    device, method = memory.device_of_choice(), recipe.adapter.method
    if device.type == "cuda" and method != "head" and suited(recipe.train, method).compile is not False:
        expect_compiling(device)


def load_net(
    recipe: Recipe, chosen: Chosen, settings: memory.Settings, head: Head | None = None, rows: Sequence[Group] = ()
) -> Net:
    """The model on its device, made trainable: frozen weights in the precision of the run, trained ones always in float32.

    rows: what the rounding of fp8 and nf4 is measured on, where there is room for the model in bf16; the net's `rounding` says what
    came of it.
    """
    plain = settings.precision == "fp32" or recipe.adapter.method == "full"
    dtype, device = torch.float32 if plain else torch.bfloat16, torch.device(settings.device)
    start = find_start(recipe.adapter)

    def trainable(model: Any) -> nn.Module:
        adapted = adapt(model, recipe.adapter, recipe.freeze)
        if start:
            put_start(start, adapted, head)
        return adapted

    def make() -> Any:
        whole = start if start and start.kind == "weights" else None
        model: Any = load_model(
            str(whole.folder) if whole else chosen.source,
            dtype=dtype,
            trust_remote_code=recipe.trust_remote_code,
            head=head,
            new_head=whole is not None and not keeps_head(whole, head),
        )
        set_dropout(model, recipe.train.dropout)
        if settings.precision in ("fp8", "nf4"):
            room = memory.room(device, recipe.train.memory_limit)
            return _quantized(trainable(model), settings, rows, room)
        kind = CachedBody if reads_once(recipe, chosen.objective) else Net
        return kind(trainable(model.to(device)), precision=settings.precision)

    net: Net = on_device(make, device)
    if isinstance(net, CachedBody):  # one pass for each text is too few to compile for, and nothing of it is kept
        return net
    net.neftune = recipe.train.neftune
    if settings.compile or settings.recompute != "none":
        accelerate(net, compile=settings.compile, recompute=settings.recompute)
    return net


def _quantized(adapted: nn.Module, settings: memory.Settings, rows: Sequence[Group], room: int) -> Net:
    """The net with its frozen base in 8 or 4 bits, and the loss on the rows before and after, in nats a token. room: in bytes."""
    device, kind = torch.device(settings.device), cast(Literal["fp8", "nf4"], settings.precision)
    before = None
    if rows and sum(parameter.nbytes for parameter in adapted.parameters()) < room:
        with contextlib.suppress(torch.OutOfMemoryError):  # what comes after needs less
            before = _nats(Net(adapted.to(device), precision="bf16"), rows)
    if before is None:
        adapted.cpu()
    quantize(adapted, kind, device=device)  # layer by layer, so that what did not lie there in full never does
    net = Net(adapted.to(device), precision=kind)
    if before is not None:
        net.rounding = before, _nats(net, rows)
    return net


def _nats(net: Net, rows: Sequence[Group]) -> float:
    """Nats a trained token."""
    logp, tokens = sequence_logp(net, rows, row_tokens=max(len(seq) for group in rows for seq in group))
    return -float(logp.sum() / max(tokens.sum(), 1))


@contextlib.contextmanager
def base_of(recipe: Recipe, chosen: Chosen, net: Net) -> Iterator[Net]:
    """The model as it was before tuning: an adapter switched off is exactly that; full weights are loaded anew.

    So is the model below a score head: before tuning it has no such head, but it can write.
    """
    if hasattr(net.model, "disable_adapter") and net.language_model.get_output_embeddings() is not None:
        with before_tuning(net.model) as base:
            yield net if base is net.model else Net(base, precision=net.precision)
        return
    dtype = net.language_model.dtype
    base = on_device(
        lambda: load_model(chosen.source, dtype=dtype, trust_remote_code=recipe.trust_remote_code), net.device
    )
    yield Net(base, precision=net.precision)


def make_feed(recipe: Recipe, tokenized: Tokenized, settings: memory.Settings) -> Feed:
    sizes: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "epochs": settings.epochs,
        "row_tokens": None if settings.one_row else recipe.train.max_length,
        "micro_tokens": settings.micro_tokens,
        "seed": recipe.train.seed,
        "max_steps": recipe.train.max_steps,
    }
    if not tokenized.parts:
        return Feed(tokenized.train.groups, task=TASK, **sizes)
    groups = {name: part.train.groups for name, part in tokenized.tasks.items()}
    return Mixture(groups, shares(recipe, tokenized), **sizes)


def shares(recipe: Recipe, tokenized: Tokenized) -> dict[str, float]:
    """The share of each task in the groups of steps, and so in the loss; 1 in all."""
    sizes = {name: len(part.train.groups) for name, part in tokenized.tasks.items()}
    return shares_of(
        sizes, {name: one.weight for name, one in recipe.tasks.items()} or dict.fromkeys(sizes, 1.0), recipe.mixing
    )


def reads_once(recipe: Recipe, objective: Objective) -> bool:
    """Whether a frozen body reads each text once for the whole training: the head alone is learnt, of texts and not of their words."""
    return recipe.adapter.method == "head" and "score" in objective.needs


def check_head(recipe: Recipe, objective: Objective) -> None:
    """Raise RecipeError where a head alone is to be trained and the objective has none."""
    if not {"score", "token_score"} & objective.needs:
        raise RecipeError(
            f"the objective {recipe.objective} writes text, so there is no head that could be trained alone",
            where="adapter.method (head)",
            expected="an objective with a score head",
            hint="--set objective=classify --set task.kind=classify   or --set adapter.method=lora",
        )
    if recipe.freeze.layers or recipe.freeze.modules:
        raise RecipeError(
            "the whole body is frozen already",
            where="freeze",
            expected="no freeze beside adapter.method=head",
            hint="--set freeze.layers='' --set freeze.modules=[]",
        )
    if recipe.train.layer_decay != 1 or recipe.train.gradual_unfreezing:
        key = "layer_decay" if recipe.train.layer_decay != 1 else "gradual_unfreezing"
        raise RecipeError(
            "the head alone is trained, so no layer has a rate or begins later",
            where=f"train.{key}",
            expected="adapter.method lora or full beside it",
            hint=f"--set train.{key}={1 if key == 'layer_decay' else 0}",
        )


def exports_of(recipe: Recipe) -> list[str]:
    """What of `deploy.export` there can be of a model that is tuned so."""
    method = METHODS[recipe.adapter.method]
    can = {"adapter": method.beside, "merged": method.merges}
    return [name for name in recipe.deploy.export if can[name]]


def check_export(recipe: Recipe) -> None:
    """Raise RecipeError where files are asked for and none of them can be written."""
    if recipe.deploy.export and not exports_of(recipe):
        other = "adapter" if METHODS[recipe.adapter.method].beside else "merged"
        raise RecipeError(
            f"the method {recipe.adapter.method} has no {recipe.deploy.export[0]} form",
            where="deploy.export",
            expected=other,
            hint=f"--set deploy.export=[{other}]",
        )


def remember_features(run: Run, net: Net, chosen: Chosen, tokenized: Tokenized, exam: Exam, row_tokens: int) -> None:
    """Where the body is frozen: compute once what it makes of every text to train on and to validate with.

    It is kept in a file, so that a run that goes on, or the next trial of a study, finds it there. A run has use for this one alone, so
    those of other rows or another model go. Those of a study stay: its trials may cut the same rows at other lengths.
    """
    if isinstance(net, CachedBody):
        groups = [*tokenized.train.groups, *(item.group for item in exam.items)]
        ids = [seq.ids for group in groups for seq in group]
        folder = run.shared / "steps"
        file = folder / f"features-{key_of(chosen.key, net.precision, str(net.device), ids)}.safetensors"
        with locked(folder / "features.lock"):  # processes of a study begin together
            if run.shared == run.folder:
                for other in {*folder.glob("features-*")} - {file}:
                    other.unlink()
            net.remember(groups, row_tokens, file)


def make_optimizer(
    recipe: Recipe, net: Net, settings: memory.Settings, schedule: Callable[[int], float] | None = None
) -> Optim:
    trained = trained_parameters(net.model)
    return Optim(
        trained,
        learning_rate=settings.learning_rate,
        total=settings.steps,
        warmup=recipe.train.warmup,
        weight_decay=recipe.train.weight_decay,
        clip=recipe.train.clip,
        kind=settings.optimizer,
        in_backward=settings.in_backward,
        recorded=settings.graph,
        schedule=schedule,
        paces=paces_of(recipe, trained, settings),
    )


def paces_of(recipe: Recipe, trained: Iterable[str], settings: memory.Settings) -> dict[str, Pace]:
    """At which share of the rate, and from which step on, each trained parameter learns."""
    wanted = recipe.train
    return paces(trained, layer_decay=wanted.layer_decay, unfreezing=wanted.gradual_unfreezing, steps=settings.steps)


def plan_of(recipe: Recipe, chosen: Chosen, tokenized: Tokenized, settings: memory.Settings) -> Plan:
    """The plan, from the model's shape on the meta device: no weight is loaded."""
    work = workload(recipe, chosen, tokenized, settings)
    return make_plan(recipe, chosen.config, empty_net(recipe, chosen, tokenized), work, settings)


def empty_net(recipe: Recipe, chosen: Chosen, tokenized: Tokenized) -> Any:
    """The adapted model on the meta device: sizes without weights."""
    head = head_of(recipe, chosen, tokenized.chat)
    empty = empty_model(chosen.config, head)
    set_dropout(empty, recipe.train.dropout)
    return adapt(empty, recipe.adapter, recipe.freeze)


def workload(recipe: Recipe, chosen: Chosen, tokenized: Tokenized, settings: memory.Settings) -> Workload:
    """What the rows ask for, cut into micro-batches of every size that may be chosen."""
    train, held_out = tokenized.train, (tokenized.validation, tokenized.test)
    looks = recipe.train.validations + 1
    shown = sum(min(len(part.validation.rows), recipe.train.validation_items) for part in tokenized.tasks.values())
    asked = [shown * looks, 2 * len(held_out[1].rows)]
    answer = train.trained / max(train.sequences, 1)
    question = train.tokens / max(train.sequences, 1) - answer
    feed, largest = make_feed(recipe, tokenized, settings), {}
    for tokens in micro_candidates(recipe.train.micro_tokens, settings.micro_tokens, feed.longest):
        feed.micro_tokens = tokens
        hardest = feed.hardest()[0]
        largest[tokens] = hardest.ids.numel(), int((hardest.weight != 0).sum())
    return Workload(
        rows=len(train.groups),
        tokens=train.tokens,
        trained=train.trained,
        longest=feed.longest,
        generated=int(sum(asked) * answer),
        prompted=int(sum(asked) * (2 * question + answer)),
        step=feed.largest_step(),
        largest=largest,
        span=sum(length**2 for length in train.lengths) / sum(train.lengths),
        teacher=chosen.teacher.parameters(recipe) if chosen.teacher and chosen.objective.needs & OF_TEACHER else 0,
    )


def make_exams(
    recipe: Recipe, chosen: Chosen, tokenized: Tokenized, scorer: Scorer | None, start: int = 0
) -> dict[str, Exam]:
    """The exam of each held-out split, and `base`, which the base model sits: the test's, or the same questions to be answered in text.

    start: the number of the first of its labels in the score head.
    """
    chat, row_tokens = tokenized.chat, recipe.train.max_length
    said = [row.answer_text() for row in tokenized.train.rows] if chat.labels else []
    longest = max((len(chat.tokenizer(one)["input_ids"]) for one in said), default=tokenized.train.longest_answer)
    head = head_of(recipe, chosen, chat)
    room = recipe.task.max_new_tokens or min(512, longest * 5 // 4 + 8)

    def items_of(split: str, chat: Chat) -> list[Item]:
        return make_items(getattr(tokenized, split).rows, chat, recipe.data.group_by)

    exams: dict[str, Exam] = {}
    for split in ("validation", "test"):
        items = items_of(split, chat)
        exams[split] = (
            ScoredExam(items, scorer, room, row_tokens, head, start) if head else Exam(items, scorer, room, row_tokens)
        )
    if not chat.labels:
        return exams | {"base": exams["test"]}
    writing = Chat(chat.tokenizer, system=chat.system, max_length=row_tokens)
    return exams | {"base": Exam(items_of("test", writing), scorer, room, row_tokens)}


def constraint_of(recipe: Recipe) -> Constraint | None:
    """What answers are held to while they are written. Raises RecipeError where that cannot be done."""
    if not recipe.task.constrained:
        return None
    if recipe.task.kind != "extract":
        raise RecipeError(
            f"the task is {recipe.task.kind}", where="task.constrained", expected="extract, whose answers are JSON"
        )
    constraint = Constraint(read_schema(recipe.task.json_schema) or {"type": "object"})
    assert constraint.grammar
    return constraint


def read_schema(schema: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """The JSON schema of `task.schema`, from its file where it names one."""
    if not isinstance(schema, str):
        return schema
    try:
        found = json.loads(Path(schema).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"the schema cannot be read: {error}", where="task.schema", expected="a file with a JSON schema"
        ) from error
    if not isinstance(found, dict):
        raise RecipeError("the schema is no object", where=schema, expected='such as {"type": "object", ...}')
    return found
