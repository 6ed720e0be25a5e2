"""The report of a run as one self-contained page: no script, no file besides itself, nothing fetched.

What a user's data says is never trusted: every text is escaped, marks that are not printed are spelled out, and the page's own policy
forbids scripts and whatever would have to be loaded.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from burnish.evaluate import charts
from burnish.folder import write_text
from burnish.progress import as_time

LONGEST = 20_000  # characters of one text on the page; report.json has the whole of it
FOLDED = 600  # characters from which on a text is folded
COMPARED = 400  # words up to which an answer is held against what was wanted
MISSING = "–"

# Control characters, lone surrogates, bidirectional overrides and isolates: they break a page or turn its text around.
_UNPRINTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

METRICS = {
    "mean_of_tasks": "mean of the tasks' metrics, each task counting the same",
    "token_f1": "how many words an answer shares with the wanted one (F1)",
    "rouge_l": "the longest run of words in the wanted order (ROUGE-L)",
    "exact_match": "share of answers that are exactly the wanted one",
    "contains": "share of answers that contain the wanted one",
    "accuracy": "share of answers that are the right label",
    "macro_f1": "F1 averaged over the labels, so that rare ones count as much as frequent ones",
    "unparsed": "share of answers that are no label at all: less is better",
    "json_fields": "how many fields of the JSON are right (F1 over fields and values)",
    "exact": "share of answers of which every field is right",
    "valid_json": "share of answers that are JSON",
    "schema_valid": "share of answers that fit the JSON schema",
    "micro_f1": "F1 over all pairs of text and label",
    "sample_f1": "F1 over the labels of a text, averaged over texts",
    "closeness": "1 minus the error, in units of the range of the training labels",
    "spearman": "rank correlation with the right numbers, 0 where it is negative",
    "r2": "share of the variance that is explained, 0 where it is negative",
    "span_f1": "F1 over spans, of which one is right where its words and its kind are",
    "tag_accuracy": "share of words with the right tag",
    "inverse_perplexity": "one over the perplexity of the held-out text",
}


def write_html(report: Mapping[str, Any], path: Path) -> None:
    """Write the page of a report, whole or not at all.

    report: what `report.json` holds; of a part that is not there yet the page says so.
    """
    write_text(path, render_html(report))


def render_html(report: Mapping[str, Any]) -> str:
    """The page of a report, as HTML that UTF-8 can encode."""
    shown = printable(report)
    view = {
        "outcome": outcome_of(shown.get("evaluation")),
        "charts": charts_of(shown),
        "examples": example_groups((shown.get("evaluation") or {}).get("examples") or []),
        "fixed_prompts": answers_over_time(shown.get("training") or {}),
        "tally": Counter(guard.get("status") for guard in shown.get("guards") or []),
    }
    return _environment().get_template("report.html.j2").render({**shown, **view})


def render_page(template: str, view: Mapping[str, Any]) -> str:
    """A page of another kind, from its own template and `printable` values."""
    return _environment().get_template(template).render(view)


def printable(value: Any) -> Any:
    """The same value, its texts no longer than a page can bear, and marks that are not printed spelled out: ⟨U+202E⟩."""
    if isinstance(value, str):
        text = _UNPRINTED.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", value[:LONGEST].replace("\r\n", "\n"))
        cut = len(value) - LONGEST
        return f"{text} … ({cut:,} more characters stand in report.json)" if cut > 0 else text
    if isinstance(value, Mapping):
        return {printable(str(key)): printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable(item) for item in value]
    return value


def outcome_of(evaluation: Mapping[str, Any] | None) -> str:
    """What the interval of the gain says: better, worse, unclear; or unmeasured."""
    if not evaluation or not _numbers(evaluation.get("ci95")):
        return "unmeasured"
    low, high = evaluation["ci95"]
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def charts_of(report: Mapping[str, Any]) -> dict[str, Markup]:
    """Every chart of the page whose numbers are there."""
    evaluation, training, data = (report.get(part) or {} for part in ("evaluation", "training", "data"))
    found = training_charts(training)
    if _numbers([evaluation.get("base"), evaluation.get("tuned")]):
        interval = evaluation.get("ci95")
        found["gain"] = charts.gain_chart(
            evaluation["base"], evaluation["tuned"], interval if _numbers(interval) else None
        )
    found["flow"] = data_flow(data)
    lengths = data.get("lengths") or {}
    found["lengths"] = charts.histogram_chart(
        lengths.get("bins") or [], lengths.get("counts") or [], "training sequences by their length in tokens"
    )
    return found


def training_charts(training: Mapping[str, Any]) -> dict[str, Markup]:
    """Loss, metric, learning rate and gradient norm over the steps."""
    curve, looks = training.get("curve") or [], training.get("validations") or []
    best = training.get("best_step") if looks else None
    loss = _column(curve, "loss")
    window = max(3, len(loss) // 15)
    means = charts.smooth([value for _, value in loss], window)
    smoothed = [(step, mean) for (step, _), mean in zip(loss, means, strict=True)]
    lines = [
        charts.Line("raw", loss),
        charts.Line("smooth", smoothed),
        charts.Line("validation", _column(looks, "loss"), dots=True),
    ]
    metric = [charts.Line("metric", _column(looks, "metric"), dots=True)]
    rate = [charts.Line("smooth", _column(curve, "learning_rate"))]
    norm = [charts.Line("smooth", _column(curve, "gradient_norm"))]
    return {
        "loss": charts.line_chart(lines, "loss in training and on the validation rows, by step", best=best),
        "metric": charts.line_chart(metric, "the metric on the validation rows, by step", best=best),
        "rate": charts.line_chart(rate, "learning rate by step", height=180),
        "norm": charts.line_chart(norm, "norm of the gradient by step", height=180),
    }


def data_flow(data: Mapping[str, Any]) -> Markup:
    """Rows read, and where they went; those that were generated were not read."""
    if not data.get("read"):
        return Markup("")
    parts = {name: data.get(name) or 0 for name in ("train", "validation", "test")}
    parts["dropped"] = sum((data.get("dropped") or {}).values())
    parts["left out"] = sum((data.get("left_out") or {}).values())
    parts["train"] -= max(sum(parts.values()) - data["read"], 0)
    branches = [(f"{name} {number:,}", number, name.replace(" ", "-")) for name, number in parts.items()]
    told = ", ".join(label for label, number, _ in branches if number > 0)
    return charts.flow_chart(f"read {data['read']:,}", branches, f"{data['read']:,} rows read: {told}")


def example_groups(examples: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The examples that got better, those that got worse and those whose score is the same, in their order."""

    def side(example: Mapping[str, Any]) -> str:
        change = (example.get("tuned_score") or 0) - (example.get("base_score") or 0)
        return "better" if change > 0 else "worse" if change < 0 else "the same"

    groups = [(name, [one for one in examples if side(one) == name]) for name in ("better", "worse", "the same")]
    return [group for group in groups if group[1]]


def answers_over_time(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each fixed prompt its answers at the validations, an answer that stayed the same told once.

    answers: first step, last step, answer, and whether the step that was kept is among them.
    """
    looks, kept = training.get("validations") or [], training.get("best_step")
    found = []
    for number, prompt in enumerate(training.get("prompts") or []):
        answers = [(look["step"], look["answers"][number]) for look in looks if number < len(look.get("answers") or [])]
        spans = [(answer, [step for step, _ in same]) for answer, same in groupby(answers, key=lambda pair: pair[1])]
        found.append(
            {"prompt": prompt, "answers": [(steps[0], steps[-1], answer, kept in steps) for answer, steps in spans]}
        )
    return [record for record in found if any(answer for _, _, answer, _ in record["answers"])]


# What the template says numbers and texts with ----------------------------------------------------------------------


def number(value: Any) -> str:
    """A count or a measurement: 134,515,008; 0.0013; 2.31."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING if value is None or isinstance(value, jinja2.Undefined) else str(value)
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if isinstance(value, int) or abs(value) >= 1000:
        return _minus(f"{value:,.0f}")
    small = value and abs(value) < 1e-3
    return _minus(f"{value:.1e}" if small else f"{value:.4g}")


def score(value: Any) -> str:
    """A figure of 0..1 to three places."""
    return _minus(f"{value:.3f}") if _numbers([value]) else number(value)


def signed(value: Any) -> str:
    """A change to three places, with its sign."""
    return _minus(f"{value:+.3f}") if _numbers([value]) else number(value)


def percent(part: Any, whole: Any) -> str:
    return f"{part / whole:.0%}" if _numbers([part, whole]) and whole else MISSING


def duration(seconds: Any) -> str:
    if not _numbers([seconds]):
        return number(seconds)
    return f"{seconds:.1f} s" if seconds < 10 else as_time(seconds)


def gigabytes(size: Any) -> str:
    return f"{size / 2**30:.1f} GiB" if _numbers([size]) else number(size)


def moment(text: Any) -> str:
    """ISO 8601 in words: 24 November 2026, 14:22 UTC."""
    try:
        when = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return number(text)
    return f"{when.day} {when:%B %Y, %H:%M} {when.tzname() or ''}".rstrip()


def excerpt(text: Any, length: int = 110) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else f"{line[:length].rpartition(' ')[0] or line[:length]} …"


def sentence(text: Any) -> str:
    """A text with a capital at its beginning; commands and names in it stay as they are."""
    line = str(text)
    return line[:1].upper() + line[1:]


def typed(fix: Any) -> tuple[str, str]:
    """(command, remark) of a fix: what can be typed stands before three spaces, or nothing can and all of it is a remark."""
    command, _, remark = str(fix or "").partition("   ")
    return (command, remark.strip()) if command.startswith(("burnish ", "--", "pip ", "rm ")) else ("", str(fix or ""))


def compared(answer: str, wanted: str) -> Markup:
    """The answer, its words that differ from what was wanted marked; unmarked where little is alike, since then all of it differs."""
    words, others = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (answer, wanted))
    if answer == wanted or max(len(words), len(others)) > 2 * COMPARED:
        return escape(answer)
    matcher = difflib.SequenceMatcher(None, words, others, autojunk=False)
    if matcher.ratio() < 0.6:
        return escape(answer)
    parts = []
    for kind, start, end, _, _ in matcher.get_opcodes():
        text = "".join(words[start:end])
        parts.append(escape(text) if kind == "equal" or not text.strip() else Markup("<mark>{}</mark>").format(text))
    return Markup("").join(parts)


def _minus(text: str) -> str:
    return text.replace("-", "−") if "e" not in text else text


def _numbers(values: Any) -> bool:
    """Whether these are finite numbers, and at least one."""
    if not isinstance(values, list | tuple) or not values:
        return False
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def _column(records: Sequence[Mapping[str, Any]], name: str) -> list[charts.Point]:
    return [(record["step"], record[name]) for record in records if _numbers([record.get("step"), record.get(name)])]


@functools.cache
def _environment() -> jinja2.Environment:
    """Autoescape is on for every template. An absent key prints nothing: the page must come out whatever a failed run left behind."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("burnish.evaluate"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (number, score, signed, percent, duration, gigabytes, moment, excerpt, sentence, typed, compared)
    environment.filters |= {function.__name__: function for function in filters} | {"share_bar": charts.share_bar}
    environment.globals |= {"metrics": METRICS, "folded": FOLDED}
    return environment
