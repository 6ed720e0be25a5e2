"""A run, told as its nine steps: choose, clean, tokenize, smoke, set up, metric, train, evaluate, deploy.

Read top to bottom. Each step takes what the ones before it made and returns what the next ones need; what is dear is kept in the run's
folder under a hash of all that it depends on.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from burnish import distillation
from burnish.core import Group
from burnish.data.augment import generated, is_generated
from burnish.data.feed import Feed
from burnish.data.ledger import Ledger
from burnish.data.split import Guarded
from burnish.data.together import SPLITS, named, prepare_tasks
from burnish.errors import DataGuardError, TrainingError
from burnish.evaluate.runner import Exam, Sitting
from burnish.evaluate.tasks import compare_all, together, without_scores
from burnish.folder import Run, cut_back, files_key, key_of, write_text
from burnish.guards import Evidence
from burnish.joint import (
    against_alone,
    augmented,
    by_heart,
    check_alone,
    described,
    exams_of,
    files_of,
    joined,
    labelled,
    objective_of,
    place_of,
    restored,
    starts_of,
    tasks_of,
    tokenized_rows,
)
from burnish.methods import METHODS
from burnish.model.adapt import parameter_count, trained_groups, trained_parameters
from burnish.model.depth import as_table
from burnish.model.load import Head, find_model, load_config, load_tokenizer
from burnish.model.net import Net
from burnish.model.quantize import quantize, unquantize
from burnish.model.sample import Sampler
from burnish.model.warm_start import find_start
from burnish.parts import (
    Chosen,
    Tokenized,
    Trained,
    Tried,
    base_of,
    check_export,
    check_head,
    constraint_of,
    expect_training,
    exports_of,
    head_of,
    load_net,
    make_feed,
    make_optimizer,
    plan_of,
    remember_features,
    settle,
    shares,
)
from burnish.progress import Progress, as_time
from burnish.recipe import Recipe
from burnish.reported import counted, finish, gib, histogram, how_trained, indented, sizes_of
from burnish.rewriter import asking_nobody
from burnish.serve.export import export, try_adapter
from burnish.train import memory
from burnish.train.checkpoint import Store
from burnish.train.hooks import Judge, StopSignal
from burnish.train.ladder import Ladder
from burnish.train.loop import check_streams
from burnish.train.optim import Optim, auto_learning_rate
from burnish.train.plan import Plan
from burnish.train.session import Session, load_trained
from burnish.train.smoke import smoke
from burnish.train.trackers import open_trackers

PARITY_ITEMS = 4
# Keys of the recipe that change nothing of what is learnt: the try-out and the training are kept when they change.
UNLEARNT: Any = {"train": {"save_every"}, "mixing": {"compare_alone"}} | dict.fromkeys(
    ("guards", "deploy", "log", "name", "tune", "tuned_by"), True
)
CLEANED = 2  # another number where what is kept of that step changes


def run_recipe(recipe: Recipe, folder: Path, progress: Progress) -> dict[str, Any]:
    """All nine steps; returns the report, which also lies in the folder. A step that fails raises once the report of it is written."""
    run = Run(folder, progress, Evidence(recipe), recipe.name or folder.name)
    stop = StopSignal()
    try:
        with stop.watching():
            chosen = choose(run, recipe)
            guarded = clean(run, recipe, chosen)
            expect_training(recipe)
            tokenized = tokenize(run, recipe, chosen, guarded)
            chosen = distillation.cut_student(run, recipe, chosen, tokenized)
            settings = decide(run, recipe, chosen, tokenized)
            tried = try_out(run, recipe, chosen, tokenized, settings)
            set_up(run, recipe, chosen, tokenized, tried.settings)
            exams = define_metric(run, recipe, chosen, tokenized, guarded)
            trained = train(run, recipe, chosen, tokenized, tried, exams, stop)
            evaluate(run, recipe, chosen, tokenized, trained, exams, stop)
            deploy(run, recipe, chosen, tokenized, trained)
    except torch.OutOfMemoryError as error:  # in training the ladder comes first, and where it ends says so itself
        failed = next((step["name"] for step in run.steps if step["status"] == "failed"), "settings")
        raise TrainingError(
            "the memory of the accelerator is not enough",
            where=f"step {failed}",
            hint="burnish plan RECIPE   says what is needed; typed again, the run goes on from here",
        ) from error
    finally:
        report = finish(run, recipe)
    return report


def plan_recipe(recipe: Recipe) -> Plan:
    """What a run would need: the data are read and tokenized, no weight is loaded, and nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), Progress(quiet=True), Evidence(recipe), "plan")
        recipe = asking_nobody(recipe)
        chosen = choose(run, recipe)
        tokenized = tokenize(run, recipe, replace(chosen, teacher=None), clean(run, recipe, chosen))
        chosen = distillation.planned_student(recipe, chosen)
        return plan_of(recipe, chosen, tokenized, settle(recipe, chosen, tokenized))


def choose(run: Run, recipe: Recipe) -> Chosen:
    """1: the model, its tokenizer, the objective and the files of examples."""
    with run.step("choose") as record:
        source = distillation.source_of_student(recipe) or find_model(recipe.model)
        config = load_config(source, trust_remote_code=recipe.trust_remote_code)
        tokenizer = load_tokenizer(source, trust_remote_code=recipe.trust_remote_code)
        guide = distillation.find_guide(recipe, tokenizer)
        objectives, files = {}, list[str]()
        for name, one in recipe.each.items():
            with named(recipe, name):
                objectives[name] = distillation.taught(objective_of(one), one, guide)
                check_alone(recipe, one)
                if one.adapter.method == "head":
                    check_head(one, objectives[name])
                files += files_of(one)
        check_export(recipe)
        constraint = None if recipe.tasks else constraint_of(recipe)
        parts = [(one.name, one.stat()) for one in sorted(Path(source).glob("*"))]
        made_of = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in parts]
        key = key_of(source, made_of, config.to_dict(), files_key(files), importlib.metadata.version("burnish"))
        key = key_of(key, guide.key) if guide else key
        start = find_start(recipe.adapter, run.folder)
        key = key_of(key, files_key(start.files)) if start else key
        write_text(run.folder / "recipe.yaml", recipe.dump())
        if not recipe.goal:
            run.progress.say(
                "! the recipe has no task.goal: one sentence that says what the model is for helps the model and the reader"
            )
        each = recipe.each.values()
        what = " and ".join(dict.fromkeys(f"{one.task.kind}, {one.objective}" for one in each))
        record["summary"] = f"{recipe.model} for {what}, on {', '.join(Path(name).name for name in files)}"
        mixed = objectives if recipe.tasks else {}
        return Chosen(source, config, tokenizer, next(iter(objectives.values())), key, mixed, guide, constraint)


def clean(run: Run, recipe: Recipe, chosen: Chosen) -> Guarded:
    """2: rows that are whole, clean and told apart into splits that share nothing."""
    with run.step("clean") as record:
        wanted = {name: (one.data.model_dump(), one.task.kind) for name, one in recipe.each.items()}
        key = key_of(CLEANED, chosen.key, wanted, recipe.guards.leakage.action, recipe.train.seed)
        ledger_file = run.folder / "ledger.jsonl"
        kept = run.kept("clean", key)
        if kept is None:
            with Ledger(ledger_file) as ledger:
                control = [one.content for one in chosen.tokenizer.added_tokens_decoder.values() if one.special]
                try:
                    kinds = {name: objective.rows for name, objective in chosen.objectives.items()}
                    prepared = prepare_tasks(recipe, ledger, special_tokens=control, kinds=kinds)
                except DataGuardError as error:
                    run.learn(rows=error.rows, matches=error.matches)
                    raise
                guarded = augmented(prepared.guarded, recipe, chosen, ledger)
            run.forget("clean")  # rows that a kill leaves half written belong to no recipe
            for name, part in guarded.tasks.items():
                for split in SPLITS:
                    run.write_rows(place_of(name, split), getattr(part, split))
            matches = [match.as_json() for match in guarded.matches]
            found = {**counted(prepared.read, ledger), "matches": matches, "ledger_bytes": ledger_file.stat().st_size}
            kept = run.keep("clean", key, found)
        else:
            record["status"] = "reused"
            cut_back(ledger_file, kept["ledger_bytes"])  # tokenizing enters its rows anew
            guarded = restored(run, recipe, kept["matches"])
        rows = {split: len(getattr(guarded, split)) for split in SPLITS}
        made, written = generated(guarded.train), sum(not is_generated(row) for row in guarded.train)
        run.parts["data"] = {**kept["data"], **rows, "generated": made}
        if counts := labelled(recipe, guarded):
            run.parts["data"]["labels"] = dict(counts.most_common())
        labels = labelled(recipe, guarded, with_generated=False)
        run.learn(
            rows=rows | {"train": written},  # what is generated makes small data no larger
            read=kept["data"]["read"],
            labels=labels,
            matches=guarded.matches,
            test_hash=guarded.test_hash,
            **kept["reasons"],
        )
        unwanted = "".join(f", {count} left out by {key}" for key, count in kept["reasons"]["left_out"].items())
        record["summary"] = (
            f"{kept['data']['read']} rows read{unwanted}, {sum(kept['reasons']['dropped'].values())} dropped, "
            f"{sum(kept['reasons']['changed'].values())} mended; "
            f"{rows['train']} to train, {rows['validation']} to validate, {rows['test']} to test"
        )
        if made["rows"]:
            ways = ", ".join(f"{count} by {kind}" for kind, count in made["by"].items())
            record["summary"] += f"; {made['rows']} of those to train ({made['share']:.0%}) are generated: {ways}"
        return guarded


def tokenize(run: Run, recipe: Recipe, chosen: Chosen, guarded: Guarded) -> Tokenized:
    """3: ids and weights through the model's own chat template."""
    with run.step("tokenize") as record:
        parts: dict[str, Tokenized] = {}
        with Ledger(run.folder / "ledger.jsonl", append=True) as ledger:
            for name, one in recipe.each.items():
                with named(recipe, name):
                    parts[name] = tokenized_rows(run, one, chosen.of(name), guarded.tasks[name], ledger)
        tokenized = joined(parts)
        chat, train, validation, test = tokenized.chat, tokenized.train, tokenized.validation, tokenized.test
        counts = {
            "trained": train.trained,
            "all": train.tokens,
            "truncated": train.truncated,
            "sequences": train.sequences,
            "ended": train.ended,
            "labelled": sum(part.train.sequences for part in parts.values() if part.chat.labels),
        }
        lost = ledger.by_reason("dropped")
        rows = {"train": len(train.rows), "validation": len(validation.rows), "test": len(test.rows)}
        written = rows | {"train": sum(not is_generated(row) for row in train.rows)}
        run.learn(tokens=counts, rows=written, dropped={**run.evidence.dropped, **lost})
        run.parts["data"] |= rows | {"dropped": {**run.parts["data"]["dropped"], **lost}}
        kinds = {one.task.kind for one in recipe.each.values()}
        kind = kinds.pop() if len(kinds) == 1 else "several"
        run.parts["task"] = {"kind": kind, "system": chat.system, "max_length": chat.max_length}
        lengths = histogram(train.lengths)
        run.parts["data"] |= {
            "tokens": train.tokens,
            "trained_tokens": train.trained,
            "truncated": train.truncated,
            "lengths": lengths,
        }
        share = train.trained / train.tokens
        learnt = f"{train.trained:,} of them trained ({share:.0%})"
        if chat.labels:
            learnt = "a number for each text" if chat.kind == "regress" else f"{len(chat.labels)} labels"
        record["summary"] = f"{train.tokens:,} tokens, {learnt}, {train.truncated} sequences cut"
        return tokenized


def learnt(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe the trained weights depend on."""
    return recipe.model_dump(mode="json", exclude=UNLEARNT)


def decide(run: Run, recipe: Recipe, chosen: Chosen, tokenized: Tokenized) -> memory.Settings:
    """The settings of the run. Decided once: what memory happens to be free when a run goes on must not make another run of it."""
    train, device = tokenized.train, memory.device_of_choice()
    memory.hold_to(recipe.train.memory_limit, device)
    key = key_of(chosen.key, learnt(recipe), len(train.groups), train.tokens, str(device))
    kept = run.kept("settings", key) or run.keep("settings", key, asdict(settle(recipe, chosen, tokenized)))
    return memory.Settings(**kept)


def try_out(run: Run, recipe: Recipe, chosen: Chosen, tokenized: Tokenized, settings: memory.Settings) -> Tried:
    """4: load the model, make it trainable, and try every part of the run before the run."""
    with run.step("smoke") as record:
        head = head_of(recipe, chosen, tokenized.chat)
        key = key_of(chosen.key, learnt(recipe), asdict(settings))
        kept = run.kept("smoke", key)
        settings = memory.Settings(**kept["settings"]) if kept else settings
        net = net_to_train(recipe, chosen, tokenized, settings, [] if kept else rows_to_round_on(chosen, tokenized))
        if kept is None:
            feed = make_feed(recipe, tokenized, settings)
            ladder = make_ladder(run, recipe, net, settings, feed)
            tasks, longest = tasks_of(recipe, chosen, tokenized), feed.hardest()
            check_streams(tasks, longest)
            groups = {name: part.train.groups for name, part in tokenized.tasks.items()}
            chats = {name: part.chat for name, part in tokenized.tasks.items()}
            learnt_by = {name: (by_heart(one), weight) for name, (one, weight) in tasks.items()}
            rate, method = settings.learning_rate, recipe.adapter.method
            if recipe.adapter.start:  # what is half known already, often at a low rate, takes long to be known by heart
                hidden = chosen.config.get_text_config().hidden_size
                rate = max(rate, auto_learning_rate(hidden, method, settings.steps))
            enough = METHODS[method].learns
            seen = smoke(net, tasks, groups, chats, longest, rate, try_adapter, ladder, learnt_by, enough)
            settings = ladder.settings
            found = {"summary": seen.summary, "settings": asdict(settings), "ladder": ladder.taken}
            kept = run.keep("smoke", key, asdict(seen) | found | {"rounding": net.rounding})
        else:
            record["status"] = "reused"
        run.progress.say(f"  what is trained stands between ⟪ and ⟫:\n{indented(kept['mask'])}")
        run.parts["model"] = {
            "name": recipe.model,
            "source": chosen.source,
            "method": recipe.adapter.method,
            "parameters": parameter_count(net.model),
            "trained_parameters": sum(p.numel() for p in trained_parameters(net.model).values()),
            "trained": trained_groups(net.model),
            **how_trained(recipe, net, settings, head),
            "head": asdict(head) if head and not head.beside else None,
            **({"head_beside": asdict(head)} if head and head.beside else {}),
        }
        record["summary"] = kept["summary"]
        if rounding := kept.get("rounding"):
            before, after = rounding
            run.parts["model"]["rounding"] = {"bf16": before, settings.precision: after}
            record["summary"] += (
                f"; {settings.precision} makes the loss {after:.4f} where bf16 has {before:.4f} ({after / before - 1:+.2%})"
            )
        return Tried(net, settings, kept["ladder"])


def net_to_train(
    recipe: Recipe, chosen: Chosen, tokenized: Tokenized, settings: memory.Settings, rows: Sequence[Group] = ()
) -> Net:
    """The net at its first step, its teacher beside it where there is one. rows: as `load_net` has them."""
    torch.manual_seed(recipe.train.seed)
    net = load_net(recipe, chosen, settings, head_of(recipe, chosen, tokenized.chat), rows)
    distillation.seat_teacher(recipe, chosen, net, tokenized.chat)
    return net


def rows_to_round_on(chosen: Chosen, tokenized: Tokenized, count: int = 32) -> list[Group]:
    """Some rows to see on what the loss becomes when the base loses digits; none where no token is predicted."""
    writing = [tokenized.tasks[name] for name, one in chosen.objectives.items() if "logp" in one.needs]
    return writing[0].train.groups[:count] if writing else []


def make_ladder(
    run: Run, recipe: Recipe, net: Net, settings: memory.Settings, feed: Feed, optim: Optim | None = None
) -> Ladder:
    low_rank = METHODS[recipe.adapter.method].low_rank
    return Ladder(net, settings, feed, low_rank=low_rank, optim=optim, say=run.progress.say)


def set_up(run: Run, recipe: Recipe, chosen: Chosen, tokenized: Tokenized, settings: memory.Settings) -> None:
    """5: what the run will need, said before it begins."""
    with run.step("set up") as record:
        plan = plan_of(recipe, chosen, tokenized, settings)
        run.learn(plan=plan.as_json())
        model = run.parts["model"]
        if start := model.get("start"):
            gone_on = f"; its head {start['head']}" if start["head"] else ""
            run.progress.say(f"  begins with what is in {start['folder']}{gone_on}")
        run.progress.say(f"  what is trained:\n{indented(as_table(model.get('depths') or model['trained']))}")
        if recipe.tasks:
            run.parts["tasks"] = described(recipe, tokenized, make_feed(recipe, tokenized, settings).seen())
        if not plan.fits:
            run.progress.say(
                f"! {gib(plan.memory['total'])} are predicted and {gib(plan.memory_available)} are free; what would fit: {plan.would_fit}"
            )
        record["summary"] = (
            f"{plan.steps} steps of {plan.batch_size} rows, rate {plan.learning_rate:.1e}, "
            f"{plan.trained_parameters:,} of {plan.parameters:,} parameters, "
            f"{plan.precision} on {plan.device}, about {gib(plan.memory['total'])} and {as_time(plan.seconds)}"
        )


def define_metric(run: Run, recipe: Recipe, chosen: Chosen, tokenized: Tokenized, guarded: Guarded) -> dict[str, Exam]:
    """6: what a good answer is, as an exam over the validation rows, one over the locked test rows, and the base model's own."""
    with run.step("metric") as record:
        starts = starts_of(tokenized)
        apart = {
            name: exams_of(one, chosen.of(name), tokenized.tasks[name], guarded.tasks[name], starts[name])
            for name, one in recipe.each.items()
        }
        exams = {
            split: together({name: own[split] for name, own in apart.items()}, shares(recipe, tokenized))
            for split in ("validation", "test", "base")
        }
        metric = exams["test"].metric
        run.parts["task"] |= {"metric": metric}
        if chosen.constraint:
            run.parts["task"] |= {"constrained": dict(chosen.constraint.schema)}
        sizes = f"{len(exams['validation'].items)} questions to validate with"
        if held := exams["test"].items:  # the trials of a study have none
            sizes += f", {len(held)} locked"
        record["summary"] = f"{metric}; {sizes}; {exams['test'].manner}"
        return exams


def train(
    run: Run,
    recipe: Recipe,
    chosen: Chosen,
    tokenized: Tokenized,
    tried: Tried,
    exams: dict[str, Exam],
    stop: StopSignal,
    judge: Judge | None = None,
) -> Trained:
    """7: the loop, from the newest good checkpoint on; the best one by the metric is what it returns.

    judge: who may end it at a validation, as a study does with a trial that falls behind.
    """
    with run.step("train") as record:
        net, settings = tried.net, tried.settings
        key = key_of(chosen.key, learnt(recipe), asdict(settings), exams["validation"].max_new_tokens)
        store = Store(run.folder / "checkpoints", key)
        kept = run.kept("train", key)
        if kept is None or not store.is_whole(kept["best_step"]):
            feed, optim = make_feed(recipe, tokenized, settings), make_optimizer(recipe, net, settings)
            ladder = make_ladder(run, recipe, net, settings, feed, optim)
            ladder.taken += tried.taken
            remember_features(run, net, chosen, tokenized, exams["validation"], recipe.train.max_length)
            feed = ladder.feed = distillation.feed_of_student(run, recipe, chosen, tokenized, net, feed, key)
            session = Session(
                net=net,
                tasks=tasks_of(recipe, chosen, tokenized),
                feed=feed,
                optim=optim,
                exam=exams["validation"].first(recipe.train.validation_items),
                sampler=sampler_of(chosen, net, tokenized),
                store=store,
                settings=recipe.train,
                progress=run.progress,
                stop=stop,
                ladder=ladder,
                judge=judge,
            )
            trackers = open_trackers(recipe.log, run.name, run.folder, recipe.model_dump(mode="json"))
            found = session.run(run.folder / "metrics.jsonl", trackers)
            kept = run.keep("train", key, found | sizes_of(ladder.settings))
        else:
            record["status"] = "reused"
            if kept["precision"] != net.precision:  # the ladder ended there
                quantize(net.model, kept["precision"])
                net.precision = kept["precision"]
        load_trained(net, store.load_step(kept["best_step"]).weights)
        if (
            recipe.adapter.method == "full" and net.precision == "fp8"
        ):  # no weight was rounded, so what is tested is what is deployed
            unquantize(net.model)
            net.precision = "bf16"
        run.parts["training"] = kept
        hidden = chosen.config.get_text_config().hidden_size
        run.learn(training=kept, usual_rate=auto_learning_rate(hidden, recipe.adapter.method, settings.steps))
        looks = kept["validations"]
        metric = next(
            (
                f", {exams['test'].metric} {look['metric']:.3f} on validation"
                for look in looks
                if look["step"] == kept["best_step"]
            ),
            "",
        )
        record["summary"] = (
            f"{kept['steps']} steps at {kept['tokens_per_second']:.0f} tokens/s; "
            f"step {kept['best_step']} is best{metric}; {kept['stopped']}"
        )
        return Trained(net, kept, key)


def evaluate(
    run: Run,
    recipe: Recipe,
    chosen: Chosen,
    tokenized: Tokenized,
    trained: Trained,
    exams: dict[str, Exam],
    stop: StopSignal,
) -> None:
    """8: base and tuned on the locked test rows, the same items and decoding, paired."""
    with run.step("evaluate") as record:
        exam = exams["test"]
        if not exam.items:
            record["summary"] = "there are no test rows, so nothing is proven"
            return
        tasks = [one.task.model_dump(mode="json") for one in recipe.each.values()]
        key = key_of(trained.key, trained.report["best_step"], run.evidence.test_hash, tasks)
        kept = run.kept("evaluate", key)
        if kept is None:
            sampler = sampler_of(chosen, trained.net, tokenized)
            exam = exam.learning_from(exams["validation"], lambda one: sit(run, one, trained.net, sampler, "tuned"))
            tuned = sit(run, exam, trained.net, sampler, "tuned")
            with base_of(recipe, chosen, trained.net) as base_net:
                base = sit(run, exams["base"], base_net, sampler_of(chosen, base_net, tokenized), "base")
            beside = distillation.beside_teacher(run, recipe, chosen, tokenized, exam, trained.net, tuned)
            found = compare_all(exam, base, tuned, seed=recipe.train.seed) | exam.details(tuned) | beside
            if chosen.constraint:
                free = sit(run, exam, trained.net, replace(sampler, constraint=None), "unconstrained")
                found["constrained"] = {"with": exam.figures(tuned), "without": exam.figures(free)}
            kept = run.keep("evaluate", key, found)
        else:
            record["status"] = "reused"
        if recipe.tasks and recipe.mixing.compare_alone:
            seen = make_feed(recipe, tokenized, decide(run, recipe, chosen, tokenized)).seen()
            sit_alone = partial(train_alone, chosen, tokenized, stop)
            kept = kept | {"tasks": against_alone(run, recipe, tokenized, seen, exams, kept["tasks"], key, sit_alone)}
        kept = without_scores(kept)
        if "distillation" in kept:
            run.parts["distillation"] = kept["distillation"]
        run.parts["evaluation"] = kept
        if head := kept.get("head"):  # which now knows its temperature and thresholds
            run.parts["model"]["head"] = head
            Head.restored(head).note(trained.net.language_model.config)
        run.learn(evaluation=kept)
        low, high = kept["ci95"]
        record["summary"] = (
            f"{kept['metric']} {kept['base']:.3f} before, {kept['tuned']:.3f} after on {kept['n']} rows: {kept['delta']:+.3f} "
            f"(95% {low:+.3f} to {high:+.3f})"
        )


def train_alone(
    chosen: Chosen, tokenized: Tokenized, stop: StopSignal, run: Run, recipe: Recipe, task: str, exams: dict[str, Exam]
) -> Sitting:
    """Train a model on one of the tasks alone, in a folder of its own, and let it sit that task's test."""
    chosen, tokenized = chosen.of(task), tokenized.tasks[task]
    tried = try_out(run, recipe, chosen, tokenized, decide(run, recipe, chosen, tokenized))
    trained = train(run, recipe, chosen, tokenized, tried, exams, stop)
    sampler = sampler_of(chosen, trained.net, tokenized)
    return sit(run, exams["test"], trained.net, sampler, "single-task")


def deploy(run: Run, recipe: Recipe, chosen: Chosen, tokenized: Tokenized, trained: Trained) -> None:
    """9: files that load anywhere, held against the model that was evaluated, and a card."""
    with run.step("deploy") as record:
        wanted = exports_of(recipe)
        key = key_of(trained.key, trained.report["best_step"], wanted, run.parts["model"]["head"])
        kept = run.kept("deploy", key)
        if kept is None or not all((run.folder / name).is_dir() for name in wanted):
            parts = tokenized.tasks.values()
            fixed = [group[0].ids for one in parts for group in (one.test.groups or one.train.groups)[:PARITY_ITEMS]]
            for name in {"adapter", "merged"} - set(wanted):  # what another recipe left there is not this model
                shutil.rmtree(run.folder / name, ignore_errors=True)
            parity = export(trained.net.model, tokenized.chat, chosen.source, run.folder, wanted, fixed)
            kept = run.keep("deploy", key, parity)
        else:
            record["status"] = "reused"
        run.parts["deploy"] = {"parity": kept}
        run.parts["artifacts"] = {**{name: name for name in wanted}, "card": "card.md"}
        record["summary"] = (
            f"{', '.join(wanted)}; {kept['prompts']} replayed through each, log-probabilities within {kept['largest_difference']:.1e}"
        )


def sampler_of(chosen: Chosen, net: Net, tokenized: Tokenized) -> Sampler:
    return Sampler(net.model, tokenized.chat.tokenizer, tokenized.chat.end_ids, constraint=chosen.constraint)


def sit(run: Run, exam: Exam, net: Net, sampler: Sampler, who: str) -> Sitting:
    return exam.sit(
        net, sampler, lambda done: run.progress.update(f"the {who} model: {done} of {len(exam.items)} answers")
    )
