"""A warm start: training goes on from what an earlier run trained, be it an adapter, all weights, or a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from burnish.errors import RecipeError
from burnish.methods import METHODS
from burnish.model.adapt import layer_of, trained_parameters
from burnish.model.adapters import MARK
from burnish.model.load import Head, head_of, load_config
from burnish.model.saved import head_in, read_json
from burnish.recipe import Adapter

WHERE = "adapter.start"
# What two adapters of one shape may still differ in, and the recipe's key for it.
ALIKE = {
    "r": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "use_rslora": "adapter.method",
    "use_dora": "adapter.method",
}
SIZES = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")


@dataclass(frozen=True)
class Start:
    """Where the trained weights begin. folder: with the files. said: the adapter's or the model's configuration, as it lies there.

    base: the model that they were trained on, "" where nothing says it. head: the score head among them.
    """

    kind: Literal["adapter", "weights", "head"]
    folder: Path
    said: Mapping[str, Any]
    base: str
    head: Head | None

    @property
    def files(self) -> list[str]:
        """All that the weights depend on."""
        return [str(path) for path in sorted(self.folder.glob("*")) if path.suffix in (".safetensors", ".json")]


def find_start(adapter: Adapter, out: Path | None = None) -> Start | None:
    """What `adapter.start` names, None where it names nothing. out: the folder of the run that begins there.

    Raises RecipeError where it is not there, is of another method, or would be overwritten by what begins with it.
    """
    if adapter.start is None:
        return None
    given = Path(adapter.start).expanduser()
    if out and given.resolve().is_relative_to(out.resolve()):
        raise RecipeError(
            "the run would write over what it begins with", where=WHERE, expected="another folder", hint="--out ANOTHER"
        )
    if not given.is_dir():
        raise RecipeError(
            f"there is no folder {adapter.start}",
            where=WHERE,
            expected="the folder of a run, or of an adapter as PEFT saves it",
            hint="burnish runs   lists the runs",
        )
    if METHODS[adapter.method].starts:
        raise RecipeError(
            f"an adapter of the method {adapter.method} begins from the base's own weights",
            where=WHERE,
            expected="another method; what such a run exports is a lora adapter of twice its rank and alpha",
            hint="--set adapter.method=lora",
        )
    whole = not METHODS[adapter.method].beside
    named = "config.json" if whole else "adapter_config.json"
    places = (given / ("merged" if whole else "adapter"), given)
    folder = next((place for place in places if (place / named).is_file()), None)
    if folder is None:
        raise _nothing_there(given, adapter.method)
    said = read_json(folder / named, _damaged)
    told = given / "report.json"
    report = read_json(told, _damaged).get("model", {}) if told.is_file() else {}
    if adapter.method == "head" and report.get("method") != "head":
        raise RecipeError(
            "what is there is no run of a head alone",
            where=f"{WHERE} ({adapter.start})",
            expected="a run with adapter.method=head: its body is the base model's, as this one's is",
            hint=f"--set model={folder}   takes its body too",
        )
    base = str(report.get("source") or said.get("base_model_name_or_path") or "")
    kind: Any = {"full": "weights", "head": "head"}.get(adapter.method, "adapter")
    return Start(kind, folder, said, base, head_in(folder, said, _damaged))


def _nothing_there(given: Path, method: str) -> RecipeError:
    """What a folder holds in place of what the method goes on from."""
    adapters = any((place / "adapter_config.json").is_file() for place in (given, given / "adapter"))
    weights = next((place for place in (given / "merged", given) if (place / "config.json").is_file()), None)
    if method in ("full", "head") and adapters:
        found, hint = "it holds an adapter", "--set adapter.method=lora"
    elif weights:
        found, hint = "it holds whole weights and no adapter", f"--set model={weights}   or --set adapter.method=full"
    else:
        found, hint = "it holds neither an adapter nor weights", "burnish run RECIPE   makes them, or goes on to them"
    wanted = {"full": "the weights of a model (merged/)", "head": "a run of a head alone (merged/)"}
    return RecipeError(
        found,
        where=f"{WHERE} ({given})",
        expected=wanted.get(method, f"an adapter, as the method {method} trains one"),
        hint=hint,
    )


def check_start(start: Start, model: nn.Module, source: str, config: Any, *, trust_remote_code: bool = False) -> None:
    """Raise RecipeError unless the weights fit this adapted model, which may be on the meta device.

    source, config: of the base model. A score head need not fit: where labels or the frame of the texts differ, it begins anew.
    """
    where = f"{WHERE} ({start.folder})"
    if start.base and not _same_model(start.base, source):
        raise RecipeError(
            "it was trained on another model",
            where=where,
            expected=f"one that was trained on {source}",
            hint=f"--set model={start.base}",
        )
    if start.kind == "adapter":
        _check_adapter(start, model, where)
    elif start.kind == "head":
        head = head_of(model)
        if not _same_head(start.head, head):
            raise RecipeError(
                f"its head knows the labels {_few(start.head)}, of texts in the frame {start.head.frame if start.head else 'plain'}",
                where=where,
                expected=f"those of this task: {_few(head)}, in {head.frame if head else 'plain'}",
            )
    else:
        theirs = load_config(str(start.folder), trust_remote_code=trust_remote_code)
        _check_weights(start, model, theirs.get_text_config(), config.get_text_config(), where)


def _check_adapter(start: Start, model: Any, where: str) -> None:
    mine = model.peft_config["default"]
    method = str(start.said.get("peft_type", "")).lower()
    if method != str(mine.peft_type.value).lower():
        raise RecipeError(
            f"it is an adapter of the method {method}",
            where=where,
            expected=f"one of the method {mine.peft_type.value.lower()}",
            hint=f"--set adapter.method={_own_name(start.said)}",
        )
    for name, key in ALIKE.items():
        theirs, ours = start.said.get(name), getattr(mine, name, None)
        if theirs is not None and ours is not None and theirs != ours:
            value = theirs if key != "adapter.method" else _own_name(start.said)
            raise RecipeError(
                f"it has {name} {theirs}",
                where=where,
                expected=f"{ours}, as this recipe has it",
                hint=f"--set {key}={value}",
            )
    found = {name: shape for name, shape in _shapes(start.folder).items() if not _is_head(name)}
    wanted = {name: tuple(value.shape) for name, value in _state_of(model).items() if not _is_head(name)}
    if missing := wanted.keys() - found.keys():
        raise RecipeError(
            f"it has nothing for {_places(missing)}", where=where, expected="an adapter on every part that this recipe trains",
            hint=f"--set adapter.targets=[{', '.join(_modules(found))}]   and freeze.layers as its recipe had it",
        )  # fmt: skip
    if surplus := found.keys() - wanted.keys():
        raise RecipeError(
            f"it also stands on {_places(surplus)}", where=where, expected="an adapter on what this recipe trains alone",
            hint=f"--set adapter.targets=[{', '.join(_modules(found))}]   and freeze.layers as its recipe had it",
        )  # fmt: skip
    if wrong := next((name for name in sorted(wanted) if wanted[name] != found[name]), None):
        raise RecipeError(f"{wrong} is {found[wrong]}", where=where, expected=f"{wanted[wrong]}, as in this model")


def _own_name(said: Mapping[str, Any]) -> str:
    """What we call the method of an adapter's configuration."""
    if said.get("use_dora") or said.get("use_rslora"):
        return "dora" if said.get("use_dora") else "rslora"
    kind = str(said.get("peft_type", "")).lower()
    return {"prompt_tuning": "prompt", "prefix_tuning": "prefix", "ln_tuning": "layernorm"}.get(kind, kind)


def _check_weights(start: Start, model: Any, theirs: Any, ours: Any, where: str) -> None:
    for name in SIZES:
        if getattr(theirs, name, None) != getattr(ours, name, None):
            raise RecipeError(
                f"its {name} is {getattr(theirs, name, None)}",
                where=where,
                expected=f"{getattr(ours, name, None)}, as in this recipe's model",
            )
    if start.head and not start.head.beside and model.get_output_embeddings() is not None:
        raise RecipeError(
            "its model scores labels and cannot write", where=where, expected="weights with a vocabulary head"
        )


def keeps_head(start: Start | None, head: Head | None) -> bool:
    """Whether a score head goes on too: it stands for the same labels in the same order."""
    return bool(start and head and _same_head(start.head, head))


def put_start(start: Start, model: nn.Module, head: Head | None) -> None:
    """Put an adapter, or a head, into a model that is made trainable; whole weights were loaded in the place of the base's."""
    if start.kind == "weights":
        return
    tensors = {
        name: file.get_tensor(name) for file, name in _each(start.folder) if start.kind == "adapter" or _is_head(name)
    }
    if start.kind == "adapter":
        from peft import set_peft_model_state_dict

        own_head = {
            name: value for name, value in _state_of(model).items() if _is_head(name)
        }  # PEFT wants all or nothing
        adapter = {name: value for name, value in tensors.items() if not _is_head(name)}
        set_peft_model_state_dict(model, adapter | own_head)
    if not keeps_head(start, head):
        return
    heads = {name.rsplit(".", 1)[-1]: value for name, value in tensors.items() if _is_head(name)}
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            if _is_head(name):
                parameter.copy_(heads[name.rsplit(".", 1)[-1]])


def start_as_json(start: Start | None, head: Head | None) -> dict[str, Any] | None:
    """What the report says of a warm start."""
    if start is None:
        return None
    gone_on = None if head is None else "goes on" if keeps_head(start, head) else "begins anew"
    return {"kind": start.kind, "folder": str(start.folder), "head": gone_on}


def _is_head(name: str) -> bool:
    return ".score." in f".{name}"


def _state_of(model: Any) -> dict[str, Tensor]:
    """The adapter's tensors by the names that they have in a file."""
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a folder's safetensors files."""
    return {name: tuple(file.get_slice(name).get_shape()) for file, name in _each(folder)}


def _each(folder: Path) -> Any:
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # no mapping
                    yield file, name
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"its weights cannot be read: {error}", where=f"{WHERE} ({folder})") from error


def _same_head(one: Head | None, other: Head | None) -> bool:
    return (
        one is not None
        and other is not None
        and (one.labels, one.kind, one.frame) == (other.labels, other.kind, other.frame)
    )


def _same_model(one: str, other: str) -> bool:
    """By its path or id, or by its last part: a cache or a folder may lie elsewhere on another machine."""
    return one == other or Path(one).name == Path(other).name


def _few(head: Head | None) -> str:
    labels = head.labels if head else ()
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "") or "none"


def _modules(names: Any) -> list[str]:
    """The modules that tensors of an adapter stand on."""
    marked = [(name, mark.start()) for name in names if (mark := MARK.search(name))]
    parts = (name[:place].rsplit(".", 1)[-1] for name, place in marked)
    return sorted(set(parts))


def _places(names: Any) -> str:
    """Parts of a model in words: "layers 0-1: q_proj, v_proj"."""
    layers = sorted({layer for name in names if (layer := layer_of(name)) is not None})
    modules = ", ".join(_modules(names)) or sorted(names)[0]
    if not layers:
        return modules
    return f"{modules} of layers {', '.join(map(str, layers[:8]))}{' and more' if len(layers) > 8 else ''}"


def _damaged(found: str, *, where: str, **said: str) -> RecipeError:
    """What the readers of a folder raise, as a fault of the recipe that names it."""
    return RecipeError(found, where=f"{WHERE} ({where})", **said)
