"""From result files to the marked section of docs/performance.md: a table and a plot for each work."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from measure import percentile
from work import WORKS, Work

BEGIN, END = "<!-- gpu results: begin -->", "<!-- gpu results: end -->"
PAGE = f"# Performance\n\n{BEGIN}\n{END}\n"  # where there is no page yet
Run = dict[str, Any]


# Files --------------------------------------------------------------------------------------------------------------------------------


def read_runs(folder: Path) -> list[Run]:
    """The runs of all works that a folder holds."""
    return [
        run
        for name in WORKS
        if (folder / f"{name}.json").is_file()
        for run in json.loads((folder / f"{name}.json").read_text())
    ]


def add_runs(folder: Path, runs: Iterable[Run], *, replace: bool = False) -> None:
    """Put runs beside those in the folder's files, one file for each work; a run that is there already is not added twice.

    replace: earlier runs of the same arm of the same work go, since the program has changed.
    """
    new = list(runs)
    folder.mkdir(parents=True, exist_ok=True)
    for name in {run["work"] for run in new}:
        here = [run for run in new if run["work"] == name]
        again = {run["arm"] for run in here} if replace else set()
        path = folder / f"{name}.json"
        old = [run for run in json.loads(path.read_text()) if run["arm"] not in again] if path.is_file() else []
        merged = {(run["arm"], run["started"]): run for run in [*old, *here]}
        ordered = sorted(merged.values(), key=lambda run: run["started"])
        fresh = path.with_suffix(".tmp")
        fresh.write_text("[\n" + ",\n".join(json.dumps(run) for run in ordered) + "\n]\n")
        os.replace(fresh, path)  # whole or not at all: the machine may go away at any time


# Numbers ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """An arm over all of its runs on one card. error: why it has no numbers; the rest is then empty."""

    arm: str
    title: str
    side: str
    runs: int
    error: str = ""
    tokens: float = 0.0  # a second, the median of the runs
    least: float = 0.0
    most: float = 0.0
    trained: float = 0.0
    step_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)  # 10th, 50th and 90th percentile of all timed steps
    of_rate: float = 0.0
    of_floor: float = 0.0
    peak: float | None = None
    predicted: float | None = None  # GiB, by burnish's planner
    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    first_step: float = 0.0  # the longest, which is the one that found no cache

    @property
    def floor(self) -> float:
        """Tokens a second at the floor."""
        return self.tokens / self.of_floor


def line_of(runs: Sequence[Run]) -> Line:
    """The runs of one arm as one line. Its errors count only where it has nothing else."""
    good = [run for run in runs if "error" not in run]
    last = (good or list(runs))[-1]
    about = {"arm": last["arm"], "title": last["title"], "side": last["side"], "runs": len(good)}
    if not good:
        return Line(**about, error=last["error"])

    def median(key: str) -> float:
        return statistics.median(run[key] for run in good)

    steps = [1000 * second for run in good for second in run["seconds"][run["warmup"] :]]
    low, middle, high = (percentile(steps, share) for share in (0.1, 0.5, 0.9))
    peaks = [run["peak_gib"] for run in good if run["peak_gib"] is not None]
    return Line(
        **about,
        tokens=median("tokens_per_second"),
        least=min(run["tokens_per_second"] for run in good),
        most=max(run["tokens_per_second"] for run in good),
        trained=median("trained_per_second"),
        step_ms=(low, middle, high),
        of_rate=median("of_rate"),
        of_floor=median("of_floor"),
        peak=max(peaks) if peaks else None,
        predicted=last.get("predicted_gib"),
        losses=tuple(last["losses"]),
        norms=tuple(last["gradient_norms"]),
        first_step=max(run["first_step_seconds"] for run in good),
    )


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """One line for each arm, the fastest first and those without numbers last."""
    by_arm: dict[str, list[Run]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], []).append(run)
    return sorted((line_of(group) for group in by_arm.values()), key=lambda line: -line.tokens)


def best(lines: Sequence[Line], side: str, ceiling: float | None = None) -> Line | None:
    """The fastest arm of a side, of those that keep to the memory allowed."""
    fitting = [line for line in lines if line.side == side and not line.error and _fits(line, ceiling)]
    return max(fitting, key=lambda line: line.tokens, default=None)


def _fits(line: Line, ceiling: float | None) -> bool:
    return ceiling is None or line.peak is None or line.peak <= ceiling


# The page -----------------------------------------------------------------------------------------------------------------------------

HEADER = (
    "arm",
    "tokens/s (least to most)",
    "times the best peer",
    "trained tokens/s",
    "step ms, p10 / p50 / p90",
    "of 798 TFLOP/s",
    "of the floor",
    "peak GiB",
    "predicted (off)",
    "loss, first steps",
    "gradient norm",
    "first step s",
)


def table(lines: Sequence[Line], ceiling: float | None = None) -> str:
    good = [line for line in lines if not line.error]
    peer, own = best(lines, "peer", ceiling), best(lines, "burnish", ceiling)
    rows = ["| " + " | ".join(HEADER) + " |", "| " + " | ".join(["---"] * len(HEADER)) + " |"]
    for line in good:
        title = f"**{line.title}**" if line in (peer, own) else line.title
        cells = [
            title if _fits(line, ceiling) else f"{title} (above {ceiling:g} GiB)",
            f"{line.tokens:,.0f} ({line.least:,.0f} to {line.most:,.0f})" if line.runs > 1 else f"{line.tokens:,.0f}",
            f"{line.tokens / peer.tokens:.2f}" if peer else "",
            f"{line.trained:,.0f}",
            " / ".join(f"{value:,.0f}" for value in line.step_ms),
            f"{line.of_rate:.0%}",
            f"{line.of_floor:.0%}",
            f"{line.peak:.1f}" if line.peak is not None else "",
            f"{line.predicted:.1f} ({line.predicted / line.peak - 1:+.1%})" if line.predicted and line.peak else "",
            ", ".join(f"{loss:.3f}" for loss in line.losses),
            ", ".join(f"{norm:.2g}" for norm in line.norms),
            f"{line.first_step:.0f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def section(work: Work, card: str, runs: Sequence[Run], plot: str) -> str:
    """What the page says of one work on one card."""
    lines = lines_of(runs)
    good = [line for line in lines if not line.error]
    parts = [f"### {work.title}" + (" (two layers on a CPU: a trial of the programs)" if runs[-1]["tiny"] else "")]
    if good:
        parts += [
            _facts(work, card, runs, good),
            f"![{escape(work.title)}: tokens a second of each arm]({plot})",
            table(lines, work.ceiling),
        ]
    if failures := [f"- {line.title}: {line.error}" for line in lines if line.error]:
        parts.append("Without numbers:\n\n" + "\n".join(failures))
    return "\n\n".join(parts)


def _facts(work: Work, card: str, runs: Sequence[Run], good: Sequence[Line]) -> str:
    done = [run for run in runs if "error" not in run]
    last = done[-1]
    timed = sum(len(run["tokens"]) - run["warmup"] for run in done)
    tokens = [count for run in done for count in run["tokens"]]
    share = sum(sum(run["trained"]) for run in done) / sum(tokens)
    versions: dict[str, str] = {}
    for run in done:
        versions |= run["versions"]
    what = {"dense": "random tokens", "packs": "lognormal lengths, random tokens"}.get(
        work.kind, "real rows" if last["real_rows"] else "short lognormal rows of random tokens"
    )
    documents = work.tiny().documents if last["tiny"] else work.documents
    floor = max(line.floor for line in good)
    return (
        f"{card}; {documents} documents a step, the same for every arm ({what}; {min(tokens):,} to {max(tokens):,} tokens, "
        f"{share:.0%} of them trained). The floor is {floor:,.0f} tokens/s. {timed:,} steps timed. "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
    )


def render(folder: Path, page: Path) -> None:
    """Write the plots beside the results and the section between the two comments of the page; the rest of the page stays."""
    parts = []
    runs = read_runs(folder)
    for name, work in WORKS.items():
        of_work = [run for run in runs if run["work"] == name]
        cards = list(dict.fromkeys(run.get("card", "CPU") for run in of_work if "error" not in run)) or (
            ["no card"] if of_work else []
        )
        for number, card in enumerate(cards):
            mine = [run for run in of_work if "error" in run or run.get("card", "CPU") == card]
            plot = folder / (f"{name}-{number + 1}.svg" if number else f"{name}.svg")
            if any("error" not in run for run in mine):
                plot.write_text(bars(work, lines_of(mine)))
            parts.append(section(work, card, mine, os.path.relpath(plot, page.parent)))
    write_section(page, "\n\n".join(parts) or "Nothing is measured yet.")


def write_section(page: Path, text: str) -> None:
    old = page.read_text() if page.is_file() else PAGE
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise ValueError(f"{page} must hold {BEGIN} and then {END}, each once")
    before, after = old[: old.index(BEGIN)], old[old.index(END) :]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{after}")


# The plot -----------------------------------------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, ROW = 900, 330, 180, 26
COLOURS = {"burnish": "#c2410c", "peer": "#64748b"}


def bars(work: Work, lines: Sequence[Line]) -> str:
    """An SVG of horizontal bars, one an arm: tokens a second, with the floor as a line."""
    good = [line for line in lines if not line.error]
    floor = max(line.floor for line in good)
    scale = (WIDTH - LEFT - RIGHT) / max(floor, *(line.tokens for line in good))
    top, height = 40, 40 + ROW * len(lines) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="15" fill="#111827">{escape(work.title)}: tokens a second</text>',
    ]
    for number, line in enumerate(lines):
        y = top + ROW * number
        parts.append(_text(LEFT - 8, y + 17, _short(line.title), "end"))
        if line.error:
            parts.append(_text(LEFT + 4, y + 17, "no numbers", "start", "#9ca3af"))
            continue
        width = scale * line.tokens
        parts.append(
            f'<rect x="{LEFT}" y="{y + 4}" width="{width:.1f}" height="{ROW - 8}" fill="{COLOURS[line.side]}"/>'
        )
        peak = f", {line.peak:.1f} GiB" if line.peak is not None else ""
        parts.append(_text(LEFT + width + 6, y + 17, f"{line.tokens:,.0f}{peak}", "start"))
    x, bottom = LEFT + scale * floor, top + ROW * len(lines)
    parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="#111827" stroke-dasharray="4 3"/>')
    parts.append(_text(x, bottom + 16, f"floor {floor:,.0f}", "middle"))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#111827") -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _short(title: str, most: int = 46) -> str:
    return title if len(title) <= most else title[: most - 1] + "…"
