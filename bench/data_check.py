"""Time and memory of `burnish data check` on very many short rows.

    python bench/data_check.py               # one million rows
    python bench/data_check.py 100000

The rows are written by a seeded generator, with the duplicates, near-duplicates, empty answers and broken lines that real files have. The
command runs as a user would run it, as a process of its own. Exit code 1 where it fails or needs 2 GB or more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT = 2_000_000_000  # bytes
SYLLABLES = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]


def lines(count: int, seed: int = 0) -> Iterator[str]:
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(20_000)]
    kept: list[tuple[str, str]] = []
    for number in range(count):
        kind = draw.random()
        prompt, answer = (" ".join(draw.choices(words, k=draw.randint(4, 12))) for _ in range(2))
        if kind < 0.0001:
            yield '{"prompt": "a line that was cut'
            continue
        if kind < 0.001:
            answer = ""
        elif kind < 0.02 and kept:
            prompt, answer = draw.choice(kept)
            if kind < 0.01:
                prompt += " " + draw.choice(words)
        if number % 100 == 0:
            kept.append((prompt, answer))
        yield json.dumps({"prompt": prompt, "completion": answer})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines(options.rows))
        size = path.stat().st_size
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "burnish", "data", "check", str(path), "--json"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)  # the peak of this one process, not of all children together
        seconds = time.perf_counter() - began
    peak, code = usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status)
    print(
        f"{options.rows:,} rows, {size / 1e6:.0f} MB: {seconds:.1f} s, peak memory {peak / 1e9:.2f} GB, exit code {code}"
    )
    if code != 0:
        print("FAIL: the command did not succeed")
        return 1
    found = json.loads(printed)
    print(f"it says: {json.dumps(found)[:300]}")
    passed = peak < LIMIT
    print(f"{'PASS' if passed else 'FAIL'}: the limit is {LIMIT / 1e9:.0f} GB")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
