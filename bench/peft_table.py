"""Every adapter method on the same task: what it trains, the memory, the speed, and how good the model is.

    python bench/peft_table.py                                            # the messages of examples/intents, on whatever device there is
    python bench/peft_table.py --recipe bench/recipes/banking77-ten-shot.yaml --set train.precision=bf16 --methods lora dora ia3
    python bench/peft_table.py --recipe R --at-once 4 --out results.json  # metrics alone: runs side by side slow each other down

Each method is a `burnish run` of the recipe in a process of its own with the method's own defaults and learning rate; `loftq` is run, and
`lora` once more, on a 4-bit base where there is a GPU. A method that fails is a line with its error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from command import report_of

HERE = Path(__file__).resolve().parent
QUANTIZED = "@nf4"  # after a method's name: on a base of 4 bits


def methods_here() -> list[str]:
    """All that the recipe knows; what needs a base of 4 bits, only where there is a GPU to have one on."""
    import torch

    from burnish.methods import METHODS

    gpu = torch.cuda.is_available()
    plain = [name for name in METHODS if name not in ("head", "loftq")]
    return [*plain, *((f"lora{QUANTIZED}", f"loftq{QUANTIZED}") if gpu else ())]


def run(method: str, recipe: Path, folder: Path, keys: list[str]) -> dict[str, Any]:
    """One run: its line of the table, or what it said when it failed."""
    from burnish.methods import KEYS

    name = method.removesuffix(QUANTIZED)
    own = [f"adapter.method={name}", *(f"adapter.{key}=null" for key in KEYS), "deploy.export=[]"]
    own += ["train.precision=nf4"] if method.endswith(QUANTIZED) else []
    report = report_of("run", recipe, folder / method, [*own, *keys])
    return {"method": method, "error": report["error"]} if "error" in report else line_of(method, report)


def line_of(method: str, report: Mapping[str, Any]) -> dict[str, Any]:
    model, training, proof = report["model"], report["training"], report["evaluation"]
    return {
        "method": method,
        "trained": model["trained_parameters"],
        "share": model["trained_parameters"] / model["parameters"],
        "gib": training["peak_memory_bytes"] / 2**30,
        "tokens_per_second": training["tokens_per_second"],
        "rate": training["learning_rate"],
        "metric": proof["metric"],
        "n": proof["n"],
        "base": proof["base"],
        "tuned": proof["tuned"],
        "gain": proof["delta"],
        "ci95": proof["ci95"],
        "device": training["device"],
    }


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as a table in Markdown, with the methods that failed below it."""
    good = [line for line in lines if "error" not in line]
    if not good:
        return "\n".join(f"{line['method']}: {line['error']}" for line in lines)
    metric = f"{good[0]['metric']} on {good[0]['n']} test rows"
    rows = [
        f"| method | trained | share | peak GiB | tokens/s | learning rate | {metric} | gain over the base, 95% |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in good:
        low, high = line["ci95"]
        rows.append(
            f"| {line['method']} | {line['trained']:,} | {line['share']:.3%} | {line['gib']:.2f} | {line['tokens_per_second']:,.0f} | "
            f"{line['rate']:.1e} | {line['tuned']:.3f} | {line['gain']:+.3f} ({low:+.3f} to {high:+.3f}) |"
        )
    failed = [f"\n{line['method']} failed: {line['error']}" for line in lines if "error" in line]
    return "\n".join([*rows, *failed])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=HERE.parent / "examples/intents/recipe.yaml")
    parser.add_argument(
        "--methods", nargs="+", help=f"all by default; {QUANTIZED} after a name puts it on a base of 4 bits"
    )
    parser.add_argument("--set", action="append", default=[], help="a key of the recipe, as `burnish run --set`")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument("--out", type=Path, help="where the lines go as JSON")
    asked = parser.parse_args()
    methods = asked.methods or methods_here()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(asked.at_once) as pool:
        lines = []
        for line in pool.map(lambda method: run(method, asked.recipe, Path(folder), asked.set), methods):
            lines.append(line)
            print(json.dumps(line), file=sys.stderr, flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(lines, indent=1))
    print(table(lines))
    return 0 if all("error" not in line for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
