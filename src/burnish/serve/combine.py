"""Several adapters on one base: loaded together, switched, stacked, and merged into one.

What is combined are PEFT's adapters of LoRA's kind, by PEFT's own functions. Sources: TIES (Yadav et al. 2023, arXiv 2306.01708), DARE
(Yu et al. 2023, arXiv 2311.03099).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from burnish.errors import CheckpointError
from burnish.folder import read_report
from burnish.model.load import Head, find_model, load_model, quiet
from burnish.model.prompts import learnt_tokens
from burnish.model.saved import CALIBRATION_FILE, LABELS_FILE, head_in, read_json

OWN, BASE = "own", "base"
OWN_IN_PEFT = "default"
MERGED = "default"  # PEFT writes an adapter of this name where its files are looked for
# PEFT's combination types. The first is exact: the weighted sum of what the adapters add. Those without svd work on A and B by themselves.
METHODS = (
    "cat",
    "svd",
    "linear",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_ties",
    "dare_linear_svd",
    "dare_ties_svd",
    "magnitude_prune",
)
SPARSE = ("ties", "dare", "magnitude")  # methods that keep but a share of the numbers
EQUAL_RANKS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")


@dataclass(frozen=True)
class Part:
    """An adapter to combine. run: the run that it came from, None for a bare adapter. said: its adapter_config.json. head: what its score
    head stands for, None where it writes.
    """

    folder: Path
    run: Path | None
    said: dict[str, Any]
    source: str  # the base model
    head: Head | None = None

    @property
    def rank(self) -> int:
        return int(self.said["r"])


def find_part(given: str | Path) -> Part:
    """The adapter of a run's folder, or of a folder as PEFT saves it. Raises CheckpointError where there is none that can be combined."""
    folder = Path(given).expanduser()
    run = folder if (folder / "report.json").is_file() else None
    place = next((one for one in (folder / "adapter", folder) if (one / "adapter_config.json").is_file()), None)
    if place is None:
        raise CheckpointError(
            "there is no adapter",
            where=str(given),
            expected="the folder of a run with adapter/, or of an adapter as PEFT saves it",
        )
    said = read_json(place / "adapter_config.json", CheckpointError)
    kind = str(said.get("peft_type", "")).lower()
    if kind != "lora" or said.get("use_dora"):
        raise CheckpointError(
            f"it is an adapter of the method {'dora' if said.get('use_dora') else kind}",
            where=str(given),
            expected="one that adds a product of two small matrices: lora, rslora, pissa or loftq",
        )
    source = read_report(run)["model"]["source"] if run else str(said.get("base_model_name_or_path") or "")
    return Part(place, run, said, source, _head_to_average(place))


def _head_to_average(place: Path) -> Head | None:
    """The score head that an export wrote beside its adapter. Raises CheckpointError for one that cannot be averaged."""
    if (place / LABELS_FILE).is_file() and not (place / CALIBRATION_FILE).is_file():
        raise CheckpointError(
            "it has a score head, and nothing says what that stands for",
            where=str(place),
            expected=f"{CALIBRATION_FILE} beside {LABELS_FILE}",
            hint="burnish export RUN -o FOLDER   writes both",
        )
    head = head_in(place, {}, CheckpointError)
    if head and head.beside:
        raise CheckpointError(
            "it has a score head beside the vocabulary's, which PEFT does not know of",
            where=str(place),
            expected="adapters of models that write, or that score alone",
            hint="tasks: ...   tunes one model for several tasks",
        )
    return head


def _stands_for(head: Head | None) -> str:
    """What two score heads must share for their mean to mean the same."""
    if head is None:
        return "no score head: it writes"
    frame = ", in a chat" if head.frame == "chat" else ""
    numbers = f"numbers around {head.mean:.6g} by {head.spread:.6g}"
    return f"a score head ({head.kind}{frame}) for {numbers if head.kind == 'regress' else ', '.join(head.labels)}"


def check_parts(parts: Sequence[Part], weights: Sequence[float], method: str, density: float | None) -> None:
    """Raise CheckpointError for what cannot be combined so."""
    if method not in METHODS:
        raise CheckpointError(f"found {method!r}", where="--method", expected=f"one of: {', '.join(METHODS)}")
    if len(parts) < 2:
        raise CheckpointError(f"{len(parts)} adapter to combine", where="burnish merge", expected="two or more")
    if len(weights) != len(parts):
        raise CheckpointError(
            f"{len(weights)} weights for {len(parts)} adapters",
            where="--weights",
            expected="one for each, in their order",
        )
    if not all(map(math.isfinite, weights)):
        raise CheckpointError(f"found {list(weights)}", where="--weights", expected="finite numbers")
    sparse = method.startswith(SPARSE)
    if sparse and density is None:
        raise CheckpointError(
            f"{method} keeps a share of the numbers, and it is not said which", where="--density", hint="--density 0.5"
        )
    if density is not None and (not sparse or not 0 < density <= 1):
        expected = "above 0 and at most 1" if sparse else f"nothing: {method} keeps all numbers"
        raise CheckpointError(f"found {density}", where="--density", expected=expected)
    check_same_base(parts)
    _check_same_head(parts)
    if method in EQUAL_RANKS and len({part.rank for part in parts}) > 1:
        raise CheckpointError(
            f"the ranks are {', '.join(str(part.rank) for part in parts)}",
            where=f"--method {method}",
            expected="equal ranks, or a method that takes any",
            hint="--method cat   or --method svd",
        )


def _check_same_head(parts: Sequence[Part]) -> None:
    """Raise CheckpointError unless all adapters have heads whose mean means the same, read after one prompt, or none has any."""
    first = parts[0].head
    for part in parts[1:]:
        if _stands_for(part.head) != _stands_for(first):
            raise CheckpointError(
                f"it has {_stands_for(part.head)}",
                where=str(part.folder),
                expected=f"the same as the first, which has {_stands_for(first)}",
            )
        if first and part.head and part.head.system != first.system:
            raise CheckpointError(
                f"its score head read texts after the prompt {part.head.system!r}",
                where=str(part.folder),
                expected=f"the prompt of the first, {first.system!r}, since their mean is asked after one",
                hint="burnish run RECIPE --set task.goal=...   tunes it again, with the goal of the first",
            )


def check_same_base(parts: Sequence[Part]) -> None:
    """Raise CheckpointError unless all adapters stand on one base."""
    first = parts[0]
    for part in parts[1:]:
        if _found(part.source) != _found(first.source):
            raise CheckpointError(
                f"it stands on {part.source or 'a base that it does not name'}",
                where=str(part.folder),
                expected=f"the base of the first, {first.source}",
            )


def _found(source: str) -> str:
    place = Path(find_model(source)) if source else Path()
    return str(place.resolve()) if place.is_dir() else source


def load_parts(parts: Sequence[Part], names: Sequence[str]) -> Any:
    """A `PeftModel` on the common base in float32, with each adapter under its name, the first of them switched on.

    Of a score head temperature and thresholds are left behind: those of one adapter do not fit what several make together.
    """
    from peft import PeftModel

    head = replace(parts[0].head, temperature=1.0, thresholds=()) if parts[0].head else None
    with quiet():
        base = load_model(find_model(parts[0].source), dtype=torch.float32, head=head)
        model: Any = PeftModel.from_pretrained(base, str(parts[0].folder), adapter_name=names[0])
        for part, name in zip(parts[1:], names[1:], strict=True):
            model.load_adapter(str(part.folder), adapter_name=name)
    return model.eval()


def switch(model: Any, names: Sequence[str]) -> None:
    """Let these adapters count, and no other. What several add is added up: they are stacked. None: the base as it is."""
    tuner = model.base_model
    if not names:
        tuner.disable_adapter_layers()
        return
    tuner.enable_adapter_layers()
    tuner.set_adapter(list(names), inference_mode=True)
    model.active_adapter = names[0]


def merge_parts(
    model: Any, names: Sequence[str], weights: Sequence[float], method: str, density: float | None, seed: int
) -> None:
    """Put the combination of adapters beside them, under the name MERGED, and switch it on. seed: of what DARE drops.

    Score heads of the same labels become their mean by the weights.
    """
    for name in names:
        _name_layers(model, name)
    from peft.utils import ModulesToSaveWrapper

    options = {} if density is None else {"density": density}
    heads = [part for part in model.modules() if isinstance(part, ModulesToSaveWrapper)]
    with quiet(), _apart(heads, names[1:]), torch.random.fork_rng():
        torch.manual_seed(seed)
        model.base_model.add_weighted_adapter(
            list(names), list(weights), adapter_name=MERGED, combination_type=method, **options
        )
    for head in heads:
        _average(head.modules_to_save, names, weights)
    switch(model, [MERGED])


@contextlib.contextmanager
def _apart(heads: Sequence[Any], names: Sequence[str]) -> Iterator[None]:
    """Without these adapters' heads: PEFT combines no adapters that have one each."""
    taken = [(head.modules_to_save, name, head.modules_to_save.pop(name)) for head in heads for name in names]
    try:
        yield
    finally:
        for kept, name, module in taken:
            kept[name] = module


@torch.no_grad()
def _average(heads: Any, names: Sequence[str], weights: Sequence[float]) -> None:
    """Let the head of MERGED be the mean of the others by their weights; plainly where those add up to nothing."""
    total = sum(weights)
    shares = [weight / total for weight in weights] if total else [1 / len(names)] * len(names)
    for own, value in heads[MERGED].named_parameters():
        value.copy_(sum(share * heads[name].get_parameter(own) for name, share in zip(names, shares, strict=True)))


def _name_layers(model: Any, name: str) -> None:
    """Let an adapter's configuration say just where it stands, since PEFT takes the combination's from the first of them.

    Its frozen layers would be left out of the combination, whatever the others add there, and rsLoRA would scale it once more.
    """
    config = model.peft_config[name]
    config.target_modules = {
        where for where, layer in model.get_base_model().named_modules() if name in getattr(layer, "lora_A", ())
    }
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.use_rslora = False  # the scale of each is known by now; that of the combination is 1, whatever its rank


def keep_merged(model: Any, names: Sequence[str]) -> None:
    """Let go of all adapters but the combination."""
    for name in names:
        model.delete_adapter(name)
    switch(model, [MERGED])


class Adapters:
    """The adapters of a run's model by name: "own" is that of the run, "base" stands for none."""

    def __init__(self, run: Path, model: Any) -> None:
        self.run, self.model = run, model
        self.names = {OWN: OWN_IN_PEFT}
        self.reports: dict[str, dict[str, Any]] = {}  # of the runs that further adapters came from

    def add(self, name: str, folder: str | Path) -> None:
        """Load another one on the same base. Raises CheckpointError for a name that is taken, or what cannot stand beside the run's own."""
        if name in (*self.names, BASE) or not name.isidentifier():
            raise CheckpointError(
                f"found the name {name!r}",
                where="--adapter",
                expected=f"a word of its own, other than {', '.join([*self.names, BASE])}",
            )
        check_same_base([find_part(self.run), part := find_part(folder)])
        if part.head:
            raise CheckpointError(f"it has {_stands_for(part.head)}", where=str(folder), expected="a model that writes")
        with quiet():
            self.model.load_adapter(str(part.folder), adapter_name=name)
        self.model.eval()
        self.names[name] = name
        if part.run:
            self.reports[name] = read_report(part.run)

    def use(self, *names: str) -> None:
        """Let these count; "base" alone is the model without any. Raises CheckpointError for one that was not loaded."""
        if unknown := [name for name in names if name not in self.names and list(names) != [BASE]]:
            raise CheckpointError(
                f"there is no adapter {unknown[0]!r}",
                where="/use",
                expected=f"one of: {', '.join([*self.names, BASE])}, or several joined by +",
                hint=f"--adapter {unknown[0]}=FOLDER   loads it",
            )
        if not hasattr(self.model, "peft_config"):
            raise CheckpointError(
                "this run trained the model's own weights, so there is nothing to switch", where="/use"
            )
        if learnt_tokens(self.model):
            raise CheckpointError("this run learnt tokens before the others, which cannot be switched", where="/use")
        switch(self.model, [] if list(names) == [BASE] else [self.names[name] for name in names])
