"""Write the tuned model so that it loads elsewhere, and prove that what was written says the same."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from burnish.data.render import Chat
from burnish.data.rows import Turn
from burnish.errors import CheckpointError
from burnish.folder import read_report
from burnish.heads import chat_of_report
from burnish.model.adapters import is_adapters, merge
from burnish.model.load import HEAD_FILE, Head, head_of, load_config, load_head, load_model, load_tokenizer, quiet
from burnish.model.prompts import learnt_tokens
from burnish.model.quantize import is_quantized, unquantize
from burnish.model.saved import CALIBRATION_FILE, LABELS_FILE
from burnish.model.starts import has_start, take_out_start
from burnish.serve.card import read_head, write_card

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Largest difference of a log-probability between the model that was evaluated and a file of it, both computed in float32. Adding the
# adapter into the weights rounds a little; a model that came in 16 bits is written in 16 bits, which keeps 8 to 11 bits of each weight.
TOLERANCE = {torch.float32: 5e-3, torch.float16: 0.1, torch.bfloat16: 0.25}


def write_adapter(model: Any, tokenizer: Any, folder: Path) -> Path:
    """`adapter/`: what PEFT loads, with the tokenizer and its chat template.

    With a score head, `head.json` beside it says what transformers must know to load the model below (see the card). A config.json would
    say it too, but where there is one transformers no longer looks for an adapter.
    """
    with _whole(folder) as fresh, quiet():
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        if head := head_of(model):
            _write_labels(head, fresh)
            if head.beside:
                _set_head_apart(model, fresh)
    return folder


def _write_labels(head: Head, folder: Path) -> None:
    text = json.dumps(head.as_config(), indent=1, ensure_ascii=False)
    (folder / LABELS_FILE).write_text(text, encoding="utf-8")
    text = json.dumps(asdict(head), indent=1, ensure_ascii=False)
    (folder / CALIBRATION_FILE).write_text(text, encoding="utf-8")


def _write_head(model: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"score.weight": model.score.weight.detach().float().cpu().contiguous()}, folder / HEAD_FILE)


def _set_head_apart(model: Any, folder: Path) -> None:
    """Take a head that stands beside the vocabulary's out of PEFT's files: no model that PEFT puts them on has a place for it."""
    from safetensors.torch import load_file, save_file

    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    found = {name: value for name, value in load_file(weights).items() if not name.endswith("score.weight")}
    save_file(found, weights, metadata={"format": "pt"})
    _write_head(model.get_base_model(), folder)
    said = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(said | {"modules_to_save": None}, indent=1), encoding="utf-8")


def write_merged(model: Any, tokenizer: Any, folder: Path, *, end_ids: Collection[int], dtype: torch.dtype) -> Path:
    """`merged/`: what transformers loads. An adapter is added into the weights, so `model` is no longer the tuned one with a switch.

    A head beside the vocabulary's goes into a file of its own, and is gone from `model`.
    """
    with _whole(folder) as fresh, quiet():
        merged = (merge(model) if hasattr(model, "peft_config") else model).to(dtype)
        if merged.can_generate():
            merged.generation_config.eos_token_id = sorted(end_ids)
            merged.generation_config.pad_token_id = tokenizer.pad_token_id
        if (head := head_of(merged)) and head.beside:
            _write_head(merged, fresh)
            _write_labels(head, fresh)
            del merged.score
        merged.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    return folder


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}-*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield fresh
        fresh.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    except OSError as error:
        raise CheckpointError(f"it could not be written: {error}", where=str(folder)) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def try_adapter(model: Any, folder: Path) -> None:
    """Save the adapter, read it back through PEFT, and compare: the smoke step's look at the export path."""
    from safetensors.torch import load_file

    if not hasattr(model, "peft_config"):
        return
    from peft import PeftConfig, get_peft_model_state_dict

    with quiet():
        model.save_pretrained(folder)
        PeftConfig.from_pretrained(str(folder))
    written = load_file(folder / "adapter_model.safetensors")
    for name, value in get_peft_model_state_dict(model).items():
        if name not in written or not torch.equal(written[name], value.detach().cpu()):
            raise CheckpointError(f"{name} was not written as it is", where="adapter export")


def replay(model: Any, sequences: Sequence[list[int]]) -> list[torch.Tensor]:
    """What parity compares of each sequence: (T-1,) log-probabilities of its tokens; of a score head its scores laid end to end, after
    the former where it stands beside the vocabulary's.

    Scores of one class each, of a text or of its words, are log-probabilities too.
    """
    found = []
    head = head_of(model)
    model.eval()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    beside = head is not None and head.beside
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):  # layers that training compiled
        for ids in sequences:
            tokens = torch.tensor([ids], device=next(model.parameters()).device)
            out = model(input_ids=tokens, use_cache=False, output_hidden_states=beside)
            logits = out.logits.float()[0]  # (T,V) and as many rows more as tokens are learnt, (C,) or (T,C)
            logp = logits if head and head.kind in ("multilabel", "regress") else logits.log_softmax(-1)
            written = head is None or beside
            found.append(
                (logp[-len(ids) : -1].gather(-1, tokens[0, 1:, None])[:, 0] if written else logp.flatten()).cpu()
            )
            if beside:
                scores = inner.score(out.hidden_states[-1][0, -1].to(inner.score.weight.dtype))
                found[-1] = torch.cat([found[-1], scores.float().log_softmax(-1).cpu()])
    return found


def check_parity(
    expected: Sequence[torch.Tensor],
    sequences: Sequence[list[int]],
    loaders: dict[Path, Callable[[], Any]],
    limit: float,
) -> dict[str, Any]:
    """Load each artefact by a plain library and replay the same sequences through it.

    expected: what `replay` gave for the model that was evaluated. loaders: folder -> how it is loaded. Raises CheckpointError where a
    log-probability parts by more than `limit`.
    """
    differences: dict[str, float] = {}
    for folder, load in loaders.items():
        found = replay(load(), sequences)
        difference = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
        if not difference <= limit:
            raise CheckpointError(
                f"it parts from the model that was evaluated: a log-probability differs by {difference:.3g}",
                where=str(folder),
                expected=f"at most {limit}",
            )
        differences[folder.name] = difference
    largest = max(differences.values(), default=0.0)
    return {"prompts": len(sequences), "status": "pass", "differences": differences, "largest_difference": largest}


def load_adapter(folder: Path, source: str, head: Head | None = None) -> Any:
    """The base model with the adapter of a folder, as PEFT loads it, in float32."""
    from peft import PeftModel

    with quiet():
        model = PeftModel.from_pretrained(load_model(source, dtype=torch.float32, head=head), str(folder))
    if head and head.beside:
        load_head(model, folder)
    return model


def restore_base(model: Any, source: str) -> None:
    """Give the frozen weights of a model back the digits that the run's precision took from them, or its start."""
    published = load_model(source, dtype=torch.float32)
    with torch.no_grad():
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        for name, parameter in inner.named_parameters():
            # A score head was never published, and is held in float32.
            if not is_adapters(name) and ".score." not in f".{name}":
                parameter.copy_(published.get_parameter(name.replace(".base_layer", "")))


def _widen(model: Any) -> bool:
    """The model in float32, on the host where its device has no room for that. Returns whether its base was stored in 8 or 4 bits."""
    rounded = is_quantized(model)
    try:
        unquantize(model)
        model.float()
    except torch.OutOfMemoryError:
        model.cpu()
        unquantize(model)
        model.float()
    return rounded


def export(
    model: Any, chat: Chat, source: str, folder: Path, wanted: Collection[str], fixed: Sequence[list[int]]
) -> dict[str, Any]:
    """Write the wanted artefacts and hold each against the model in memory, which is merged afterwards where `merged` was wanted.

    The artefacts stand on the base model as it was published; where the run held it in fewer digits, or its adapter took its start out of
    it, it is brought back to that first.
    fixed: the token ids that are replayed through each. Returns what parity found.
    """
    held = next(p.dtype for name, p in model.named_parameters() if not is_adapters(name))
    saved = _dtype_of(source)  # what the model came in, not what it was held in
    rounded = _widen(model)
    if "merged" in wanted and learnt_tokens(model):
        raise CheckpointError(
            "what was learnt are tokens before the others, which can be added into no weights",
            where="merged",
            expected="adapter",
            hint="--kind adapter   or deploy: {export: [adapter]}",
        )
    begun = has_start(model)
    if rounded or begun or held not in (torch.float32, saved):
        restore_base(model, source)
    if begun:
        take_out_start(model)
    head, expected = head_of(model), replay(model, fixed)
    loaders: dict[Path, Callable[[], Any]] = {}
    if "adapter" in wanted:
        adapter = write_adapter(model, chat.tokenizer, folder / "adapter")
        loaders[adapter] = lambda: load_adapter(adapter, source, head)
    if "merged" in wanted:
        merged = write_merged(model, chat.tokenizer, folder / "merged", end_ids=chat.end_ids, dtype=saved)
        loaders[merged] = lambda: load_model(str(merged), dtype=torch.float32, head=head)
    return check_parity(expected, fixed, loaders, TOLERANCE[saved if "merged" in wanted else torch.float32])


def export_run(run: Path, to: Path, kinds: Collection[str], *, force: bool = False) -> dict[str, Any]:
    """Write the model of a finished run into another folder, with its card, and hold it against the run's own files.

    Raises CheckpointError where the verdict is "stop" and `force` is not given, where `to` holds something, or where the run has no model.
    """
    report = read_report(run)
    refuse_unless_fit(report, force=force)
    if unknown := sorted(set(kinds) - {"adapter", "merged"}):
        raise CheckpointError(f"{unknown[0]!r} is no kind of export", where="--kind", expected="adapter or merged")
    if to.exists() and any(to.iterdir()) and not force:
        raise CheckpointError("the folder is not empty", where=str(to), hint="--force   writes into it")
    model, source = load_run(run, report), report["model"]["source"]
    tokenizer = load_tokenizer(str(run / "adapter" if (run / "adapter").is_dir() else run / "merged"))
    if "adapter" in kinds and not hasattr(model, "peft_config"):
        raise CheckpointError(
            "this run trained the model's own weights, so it has no adapter", where=str(run), hint="--kind merged"
        )
    chat = chat_of(report, tokenizer)
    asked = (
        [example["prompt"] for example in report["evaluation"]["examples"][:4]]
        if report.get("evaluation")
        else ["Hello"]
    )
    parity = export(model, chat, source, to, kinds, [chat.prompt((Turn("user", text),)) for text in asked])
    write_card(report, to, forced=report["verdict"] == "stop")
    return parity


def load_run(run: Path, report: Mapping[str, Any]) -> Any:
    """The tuned model of a run in float32: its adapter on the base model where it has one, else what was merged."""
    made = report.get("artifacts", {})  # what an earlier recipe left in the folder is not this run's
    head = read_head(report)
    if "adapter" in made and (run / "adapter").is_dir():
        return load_adapter(run / "adapter", report["model"]["source"], head)
    if "merged" in made and (run / "merged").is_dir():
        return load_model(str(run / "merged"), dtype=torch.float32, head=head)
    raise CheckpointError(
        "the run has neither adapter/ nor merged/", where=str(run), hint="burnish run RECIPE   makes them"
    )


def chat_of(report: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Chat:
    """What turns text into ids for the model of a run, as it did in training."""
    system, head = report["task"]["system"], read_head(report)
    if head is None or head.beside:
        return Chat(tokenizer, system=system)
    return chat_of_report(report, tokenizer, head)


def refuse_unless_fit(report: Mapping[str, Any], *, force: bool) -> None:
    """Raise CheckpointError where the verdict is "stop" and nobody forces it: such a model is worse than none."""
    if report["verdict"] == "stop" and not force:
        reasons = " ".join(report["reasons"])
        raise CheckpointError(
            f"the verdict of this run is stop: {reasons}", where=report["name"], hint="--force   uses it all the same"
        )


def _dtype_of(source: str) -> torch.dtype:
    found = load_config(source).dtype
    return found if isinstance(found, torch.dtype) else torch.float32
