"""The model card: what the report says of a model, and how it is loaded and asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from burnish.model.load import Head

HOW_TO_SCORE = """
## How it answers

{says} and writes nothing. {asked}

The adapter is loaded with what `head.json` says of the labels:

```python
import json
from pathlib import Path

from peft import PeftModel
from transformers import {loader}

head = json.loads(Path("adapter/head.json").read_text(encoding="utf-8"))
base = {loader}.from_pretrained("THE BASE MODEL", **head)
model = PeftModel.from_pretrained(base, "adapter")
```

What transformers has no name for stands under `burnish` in `merged/config.json`, and in `adapter/calibration.json`.
{calibration}"""
ASKED = {
    "plain": """The text goes in as it is, without a chat template.

```python
from transformers import pipeline

pipeline("{pipeline}", "merged")("some text")
```
""",
    "chat": """The text goes in as the user's turn of the chat template, with the opening of an answer behind it.

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model, tokenizer = (kind.from_pretrained("merged") for kind in (AutoModelForSequenceClassification, AutoTokenizer))
turns = {turns}
asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
scores = model(**asked).logits
```

Where a template has no place for a system prompt, its text stands before the user's, an empty line between them.
""",
}
HOW_TO_DO_BOTH = """
## How it answers

It writes, as `AutoModelForCausalLM` loads it, and it scores {n} labels of a text by a second head, which no class of transformers
has beside the first: its weights lie in `head.safetensors`, what they stand for in `head.json`. The text goes in as it is, without a
chat template.

```python
from safetensors.torch import load_file

hidden = model(**tokenizer("some text", return_tensors="pt"), output_hidden_states=True).hidden_states[-1]
scores = hidden[0, -1].float() @ load_file("merged/head.safetensors")["score.weight"].T
```
"""
SAYS = {
    "classify": "It scores {n} labels",
    "multilabel": "It scores {n} labels, of which any number may fit,",
    "regress": "It names a number",
    "tag": "It scores {n} tags for each word",
}
CALIBRATION = {
    "classify": "Scores are divided by the temperature {temperature:.4g} before the softmax makes them probabilities.\n",
    "multilabel": (
        "Scores are divided by the temperature {temperature:.4g} before the sigmoid makes them probabilities; a label fits from its\n"
        "threshold on.\n"
    ),
    "regress": "The number is {mean:.6g} + {spread:.6g} * score.\n",
    "tag": "The tag of a word is the one at its last token.\n",
}


def read_head(report: Mapping[str, Any]) -> Head | None:
    """The score head of a run's model; None where it writes text."""
    found = report.get("model", {}).get("head") or report.get("model", {}).get("head_beside")
    return Head.restored(found) if found else None


def _lines_of_tasks(evaluation: Mapping[str, Any]) -> str:
    """A line for each of several tasks, under a heading of their own."""
    lines = [
        f"- {name}: {one['metric']} on {one['n']} rows, base {one['base']:.3f}, tuned {one['tuned']:.3f}, gain {one['delta']:+.3f} "
        f"(95% interval {one['ci95'][0]:+.3f} to {one['ci95'][1]:+.3f})."
        for name, one in evaluation.get("tasks", {}).items()
    ]
    return "\n".join(["## Its tasks", "", *lines, "", ""]) if lines else ""


def write_card(report: dict[str, Any], folder: Path, *, forced: bool = False) -> Path:
    """`card.md`: the model card, with the figures of the report and nothing else."""
    evaluation, task, model, training = (report.get(part) or {} for part in ("evaluation", "task", "model", "training"))
    head = read_head(report)
    figures = "Base and tuned were not compared."
    if evaluation:
        low, high = evaluation["ci95"]
        figures = (
            f"{evaluation['metric']} on {evaluation['n']} locked test rows: base {evaluation['base']:.3f}, "
            f"tuned {evaluation['tuned']:.3f}, gain {evaluation['delta']:+.3f} (95% interval {low:+.3f} to {high:+.3f})."
        )
    compared = f" Base is {evaluation['base_is']}." if evaluation.get("base_is") else ""
    guards = "\n".join(
        f"| {guard['n']} | {guard['mistake']} | {guard['status']} | {guard['found']} |" for guard in report["guards"]
    )
    front = {"base_model": model.get("name"), "library_name": "peft", "tags": ["burnish", task.get("kind")]}
    warning = '\n> Exported by force: the verdict of its run is "stop".\n' if forced else ""
    text = f"""---
{json.dumps(front)}
---

# {report["name"]}
{warning}
{report.get("goal") or "Its recipe states no goal."}

- Verdict: **{report["verdict"]}**. {" ".join(report["reasons"])}
- {figures}{compared}
- Tuned with {model.get("method")}: {model.get("trained_parameters", 0):,} of {model.get("parameters", 0):,} parameters,
  {training.get("steps")} steps, peak learning rate {training.get("learning_rate")}.
{_how_to_score(head, task.get("system") or "") if head else ""}
{_lines_of_tasks(evaluation)}## What was checked

| n | mistake | status | found |
| --- | --- | --- | --- |
{guards}

## Limits

The figures hold for data like the test rows. What the guards did not run is unknown, not fine.
"""
    path = folder / "card.md"
    path.write_text(text, encoding="utf-8")
    return path


def _how_to_score(head: Head, system: str) -> str:
    """The part of the card that says how a score head is asked. system: the prompt before the text, where that stands in a chat."""
    if head.beside:
        return HOW_TO_DO_BOTH.format(n=len(head.labels))
    tags = head.kind == "tag"
    turns = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": "some text"}]
    asked = ASKED[head.frame].format(pipeline="token-classification" if tags else "text-classification", turns=turns)
    return HOW_TO_SCORE.format(
        says=SAYS[head.kind].format(n=len(head.labels)),
        asked=asked.rstrip(),
        loader=f"AutoModelFor{'Token' if tags else 'Sequence'}Classification",
        calibration=CALIBRATION[head.kind].format(**asdict(head)),
    )
