"""What is in a file of examples and what is wrong with it, without a model; and the two verbs that write files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from burnish.data.augment import Ask, augment, generated, told_apart
from burnish.data.clean import clean_rows
from burnish.data.dedup import (
    NEAR,
    are_labels,
    drop_duplicates,
    find_conflicts,
    find_duplicates,
    recur,
    report_conflicts,
    report_duplicates,
    whole_answer,
)
from burnish.data.ledger import Entry, Ledger
from burnish.data.rows import Labelled, Row
from burnish.data.similar import Index
from burnish.data.sources import read_rows
from burnish.data.split import Splits, guard, split_rows
from burnish.errors import RowError
from burnish.recipe import Augment

LABELS_HELD = 1000  # different answers that are counted before they are surely no labels
FIRST_ROWS = 3

Sources = str | Path | Sequence[str | Path]


@dataclass
class Check:
    """What a look at the files found.

    rows: those that can be used, of which `duplicates` say what another said before. kinds: kind of row -> rows. labels: answer ->
    rows, where answers are a set of labels. words: of prompts and of answers, each with its smallest, middle and largest number of
    words. columns: what is not learnt from -> how many different values the first rows hold. findings: one record for each reason
    of the ledger. first: some rows.
    """

    files: list[str]
    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    words: dict[str, list[int]] = field(default_factory=dict)
    columns: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    first: list[Row] = field(default_factory=list)

    @property
    def dropped(self) -> int:
        return sum(int(finding["count"]) for finding in self.findings if finding["action"] == "dropped")

    def as_json(self) -> dict[str, Any]:
        whole = {name: value for name, value in vars(self).items() if name != "first"}
        return whole | {"kinds": dict(self.kinds), "labels": dict(self.labels.most_common()), "dropped": self.dropped}


def check(sources: Sources, *, columns: Mapping[str, str] | None = None) -> Check:
    """Read, clean and compare the rows of files, and keep only figures and a few rows: a million of them take under 2 GB.

    Raises RowError where a file cannot be used at all.
    """
    files = as_list(sources)
    ledger, found, index = Ledger(), Check(files), Index()
    places: list[tuple[str, int]] = []
    lengths: dict[str, Counter[int]] = {"prompt": Counter(), "answer": Counter()}
    values: dict[str, set[str]] = {}
    graded = False
    for row in clean_rows(read_rows(files, ledger, columns=columns), ledger):
        index.add(row.prompt_text(), whole_answer(row))
        places.append((row.file, row.line))
        found.kinds[row.kind] += 1
        if len(found.first) < FIRST_ROWS:
            found.first.append(row)
        _count(row, found.labels, lengths, values)
        graded = graded or (isinstance(row, Labelled) and isinstance(row.label, float))
    found.rows = len(places)
    found.words = {side: _spread(counts) for side, counts in lengths.items()}
    found.columns = {name: len(seen) for name, seen in values.items()}
    labelled = recur(found.labels) or set(found.kinds) == {Labelled.kind}
    if graded or not labelled or len(found.labels) > LABELS_HELD:
        found.labels.clear()
    duplicates = find_duplicates(index)
    found.duplicates = len(duplicates)
    report_duplicates(duplicates, places, ledger)
    if found.labels:
        report_conflicts(find_conflicts(index), places, ledger)
    found.findings = ledger.findings()
    found.examples = [asdict(entry) for entry in ledger.examples]
    return found


def _count(row: Row, labels: Counter[str], lengths: dict[str, Counter[int]], values: dict[str, set[str]]) -> None:
    answer = row.answer_text()
    lengths["prompt"][len(row.prompt_text().split())] += 1
    lengths["answer"][len(answer.split())] += 1
    if answer and len(labels) <= LABELS_HELD:
        labels[answer[:200]] += 1
    for name, value in row.extra.items():
        seen = values.setdefault(name, set())
        if len(seen) < LABELS_HELD:
            seen.add(str(value)[:200])


def _spread(counts: Counter[int]) -> list[int]:
    """Smallest, middle and largest of counted numbers."""
    if not counts:
        return [0, 0, 0]
    half, passed = counts.total() / 2, 0
    for number in sorted(counts):
        passed += counts[number]
        if passed >= half:
            return [min(counts), number, max(counts)]
    raise AssertionError("the middle lies among the numbers")


def write_clean(
    sources: Sources,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    redact: bool = False,
    near: float = NEAR,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the clean rows as JSON Lines, and beside them `OUT.ledger.jsonl` with every row that was dropped or changed.

    Raises RowError where `out` is there already and `overwrite` is not set, or is one of the sources.
    """
    out = Path(out)
    ledger_path = out.with_suffix(".ledger.jsonl")
    files = as_list(sources)
    _refuse_loss(files, [out, ledger_path], overwrite)
    with _fresh(ledger_path) as fresh, Ledger(fresh) as ledger:
        rows = drop_duplicates(
            clean_rows(read_rows(files, ledger, columns=columns), ledger, redact=redact), ledger, near
        )
    write_rows(out, rows)
    return {
        "read": len(rows) + ledger.gone,
        "written": len(rows),
        "out": str(out),
        "ledger": str(ledger_path),
        "findings": ledger.findings(),
    }


def write_augmented(
    sources: Sources,
    out: str | Path,
    settings: Augment,
    *,
    held_out: Sources = (),
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    ask: Ask | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the clean rows and those generated from them as JSON Lines, and beside them `OUT.ledger.jsonl`.

    held_out: files that no generated row may come near; rows of the sources that stand in them are dropped. ask: who rewrites.
    Rows that an earlier augmentation generated are read but not written again. Raises as `write_clean` and `augment` do.
    """
    out = Path(out)
    ledger_path = out.with_suffix(".ledger.jsonl")
    files, held = as_list(sources), as_list(held_out)
    _refuse_loss([*files, *held], [out, ledger_path], overwrite)
    with _fresh(ledger_path) as fresh, Ledger(fresh) as ledger:
        rows, made = told_apart(clean_rows(read_rows(files, ledger, columns=columns), ledger))
        for row in made:
            ledger.add(Entry(row.file, row.line, "dropped", "generated earlier", row.prompt_text()))
        read = len(rows) + ledger.gone
        tested = list(clean_rows(read_rows(held, Ledger(), columns=columns), Ledger())) if held else []
        guarded = guard(Splits(drop_duplicates(rows, ledger), [], tested), "drop", ledger)
        if not guarded.train:
            raise RowError("no row is left to generate from", where=", ".join(files), expected="some examples")
        guarded = augment(guarded, settings, ledger, seed=seed, ask=ask)
    write_rows(out, guarded.train)
    return {
        "read": read,
        "written": len(guarded.train),
        "generated": generated(guarded.train),
        "out": str(out),
        "ledger": str(ledger_path),
        "findings": ledger.findings(),
    }


def write_split(
    sources: Sources,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    group_by: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write train.jsonl, validation.jsonl and test.jsonl into a folder, so that no group and no near-duplicate straddles two of them.

    A classification keeps each label's share. Raises RowError as `write_clean` does, and RecipeError for sizes that cannot be.
    """
    folder = Path(out)
    paths = {name: folder / f"{name}.jsonl" for name in ("train", "validation", "test")}
    files = as_list(sources)
    _refuse_loss(files, [*paths.values(), folder / "ledger.jsonl"], overwrite)
    with _fresh(folder / "ledger.jsonl") as fresh, Ledger(fresh) as ledger:
        rows = list(read_rows(files, ledger, columns=columns))
        stratify = are_labels(rows)
        splits = split_rows(rows, validation=validation, test=test, group_by=group_by, stratify=stratify, seed=seed)
    for name, path in paths.items():
        write_rows(path, getattr(splits, name))
    return {"rows": {name: len(getattr(splits, name)) for name in paths}, "out": str(folder)}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON Lines in the format that `sources` reads back."""
    with _fresh(path) as fresh, fresh.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row.as_json(), ensure_ascii=False) + "\n" for row in rows)


@contextmanager
def _fresh(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place once all is written, and goes where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.writing")
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def as_list(sources: Sources) -> list[str]:
    return [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]


def _refuse_loss(files: Sequence[str], written: Sequence[Path], overwrite: bool) -> None:
    read = {Path(name).resolve() for file in files for name in (file, file.rpartition("#")[0]) if name}
    for path in written:
        if path.resolve() in read:
            raise RowError("the file to write is the file to read", where=str(path), hint="-o another name")
        if path.exists() and not overwrite:
            raise RowError("there is such a file already", where=str(path), hint="--force   writes over it")
