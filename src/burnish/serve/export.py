"""Write the tuned model so that it loads elsewhere, and prove that what was written says the same."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from burnish.data.render import Chat
from burnish.errors import CheckpointError
from burnish.model.load import load_model, quiet

# Largest difference of a log-probability between the model that was evaluated and a file of it. Merging adds the adapter into the
# weights, which rounds: float32 keeps it near 1e-4 over 30 layers, a base held in bfloat16 keeps 8 bits of each weight.
TOLERANCE = {"fp32": 5e-3, "bf16": 0.25}


def write_adapter(model: Any, tokenizer: Any, folder: Path) -> Path:
    """`adapter/`: what PEFT loads, with the tokenizer and its chat template."""
    with _whole(folder) as fresh, quiet():
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    return folder


def write_merged(model: Any, tokenizer: Any, folder: Path, *, end_ids: Collection[int]) -> Path:
    """`merged/`: what transformers loads. An adapter is added into the weights, so `model` is no longer the tuned one with a switch."""
    with _whole(folder) as fresh, quiet():
        merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        merged.generation_config.eos_token_id = sorted(end_ids)
        merged.generation_config.pad_token_id = tokenizer.pad_token_id
        merged.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    return folder


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
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
        PeftConfig.from_pretrained(folder)
    written = load_file(folder / "adapter_model.safetensors")
    for name, value in get_peft_model_state_dict(model).items():
        if name not in written or not torch.equal(written[name], value.detach().cpu()):
            raise CheckpointError(f"{name} was not written as it is", where="adapter export")


def replay(model: Any, sequences: Sequence[list[int]]) -> list[torch.Tensor]:
    """Log-probabilities (T-1,) of each token of each sequence: what parity compares."""
    found = []
    model.eval()
    with torch.inference_mode():
        for ids in sequences:
            tokens = torch.tensor([ids], device=next(model.parameters()).device)
            logits = model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)[0, :-1]
            found.append(logits.gather(-1, tokens[0, 1:, None])[:, 0].cpu())
    return found


def check_parity(
    expected: Sequence[torch.Tensor],
    sequences: Sequence[list[int]],
    artifacts: dict[str, Path],
    source: str,
    precision: str,
) -> dict[str, Any]:
    """Load each artefact in a plain library and replay the same sequences through it.

    expected: what `replay` gave for the model that was evaluated. source: the base model's folder or hub id. Raises CheckpointError where
    a log-probability parts by more than rounding allows.
    """
    differences: dict[str, float] = {}
    for name, folder in artifacts.items():
        loaded = _load_plainly(name, folder, source)
        found = replay(loaded, sequences)
        differences[name] = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
        del loaded
        if not differences[name] <= TOLERANCE[precision]:
            raise CheckpointError(
                f"it parts from the model that was evaluated: a log-probability differs by {differences[name]:.3g}",
                where=str(folder),
                expected=f"at most {TOLERANCE[precision]}",
            )
    return {
        "prompts": len(sequences),
        "status": "pass",
        "differences": differences,
        "largest_difference": max(differences.values(), default=0.0),
    }


def _load_plainly(name: str, folder: Path, source: str) -> Any:
    if name == "merged":
        return load_model(str(folder), dtype=torch.float32)
    from peft import PeftModel

    with quiet():
        return PeftModel.from_pretrained(load_model(source, dtype=torch.float32), str(folder))


def export(
    model: Any,
    chat: Chat,
    source: str,
    folder: Path,
    wanted: Collection[str],
    fixed: Sequence[list[int]],
    precision: str,
) -> dict[str, Any]:
    """Write the wanted artefacts and hold each against the model in memory, which is merged afterwards where `merged` was wanted."""
    expected = replay(model, fixed)
    written: dict[str, Path] = {}
    if "adapter" in wanted:
        written["adapter"] = write_adapter(model, chat.tokenizer, folder / "adapter")
    if "merged" in wanted:
        written["merged"] = write_merged(model, chat.tokenizer, folder / "merged", end_ids=chat.end_ids)
    return check_parity(expected, fixed, written, source, precision)


def write_card(report: dict[str, Any], folder: Path, *, forced: bool = False) -> Path:
    """`card.md`: the model card, with the figures of the report and nothing else."""
    evaluation, task, model, training = (report.get(part) or {} for part in ("evaluation", "task", "model", "training"))
    low, high = evaluation.get("ci95", (float("nan"), float("nan")))
    guards = "\n".join(
        f"| {guard['n']} | {guard['mistake']} | {guard['status']} | {guard['found']} |" for guard in report["guards"]
    )
    front = {"base_model": model.get("name"), "library_name": "peft", "tags": ["burnish", task.get("kind")]}
    warning = '\n> Exported by force: the verdict of its run is not "ship".\n' if forced else ""
    text = f"""---
{json.dumps(front)}
---

# {report["name"]}
{warning}
{report.get("goal") or "Its recipe states no goal."}

- Verdict: **{report["verdict"]}**. {" ".join(report["reasons"])}
- {evaluation.get("metric", "metric")} on {evaluation.get("n", 0)} locked test rows: base {evaluation.get("base", float("nan")):.3f},
  tuned {evaluation.get("tuned", float("nan")):.3f}, gain {evaluation.get("delta", float("nan")):+.3f} (95% interval {low:+.3f} to {high:+.3f}).
- Tuned with {model.get("method")}: {model.get("trained_parameters", 0):,} of {model.get("parameters", 0):,} parameters, {training.get("steps")} steps,
  peak learning rate {training.get("learning_rate")}.

## What was checked

| n | mistake | status | found |
| --- | --- | --- | --- |
{guards}

## Limits

The figures hold for data like the test rows. What the guards did not run is unknown, not fine.
"""
    path = folder / "card.md"
    path.write_text(text, encoding="utf-8")
    return path
