"""`burnish data check`: what is in the files, what is wrong with it, and rows as the model will see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.data.check import Check, check
from burnish.data.rows import Row, Text
from burnish.data.sources import read_rows
from burnish.errors import BurnishError

LENGTH_ROWS = 2000  # rows that are tokenized to know the lengths
SHOWN_LABELS = 12
SHOWN_PLACES = 3


@dataclass(frozen=True)
class Inspection:
    """A check, and the first rows rendered by a model's chat template.

    rendered: one text for each of the first rows, trained tokens between ⟪ and ⟫. tokens: smallest, middle and largest length of a
    sequence. note: why nothing is rendered, where nothing is.
    """

    check: Check
    rendered: list[str]
    tokens: list[int]
    note: str

    def as_json(self) -> dict[str, Any]:
        return self.check.as_json() | {"rendered": self.rendered, "tokens": self.tokens, "note": self.note}

    def as_text(self) -> str:
        found = self.check
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.kinds.items())
        lines = [
            f"{', '.join(found.files)}: {found.rows:,} rows ({kinds}), of which {found.duplicates:,} were there before; "
            f"{found.dropped - found.duplicates:,} more cannot be used"
        ]
        for side, (least, middle, most) in found.words.items():
            lines.append(f"  words of {side:<8} {least} to {most}, half of them up to {middle}")
        if self.tokens:
            least, middle, most = self.tokens
            lines.append(f"  tokens of a row  {least} to {most}, half of them up to {middle}")
        if found.labels:
            most_common = found.labels.most_common()
            shown = ", ".join(f"{label} {count}" for label, count in most_common[:SHOWN_LABELS])
            rest = (
                f" and {len(most_common) - SHOWN_LABELS} more, down to {most_common[-1][1]} rows"
                if len(most_common) > SHOWN_LABELS
                else ""
            )
            lines.append(f"  {len(most_common)} labels: {shown}{rest}")
        if found.columns:
            columns = ", ".join(f"{name} ({count} values)" for name, count in found.columns.items())
            lines.append(f"  other columns: {columns}; they serve as group_by")
        lines += ["findings"] if found.findings else ["findings: none"]
        for finding in found.findings:
            places = ", ".join(finding["where"][:SHOWN_PLACES]) + (", ..." if finding["count"] > SHOWN_PLACES else "")
            lines.append(f"  {finding['action']:<8} {finding['count']:>7,}  {finding['kind']}: {places}")
            lines.append(f"  {'':16}  {finding['fix']}")
        for row, text in zip(found.first, self.rendered, strict=False):
            lines += [f"{row.where} as the model sees it, what is trained between ⟪ and ⟫"]
            lines += [f"    {line}" for line in text.splitlines()]
        return "\n".join([*lines, *([self.note] if self.note else [])])


def inspect(files: Sequence[str], *, columns: Mapping[str, str] | None = None, model: str = "") -> Inspection:
    """Check files and render their first rows for a model; without a model, or where it is not there, only check them."""
    found = check(list(files), columns=columns)
    if not model:
        return Inspection(found, [], [], "")
    try:
        rendered, tokens = _render(found.first, files, columns, model)
    except BurnishError as error:
        return Inspection(found, [], [], f"not rendered: {error}")
    return Inspection(found, rendered, tokens, "")


def _render(
    first: Sequence[Row], files: Sequence[str], columns: Mapping[str, str] | None, model: str
) -> tuple[list[str], list[int]]:
    from itertools import islice

    from burnish.data.ledger import Ledger
    from burnish.data.render import Chat, conversation_of, render_rows
    from burnish.model.load import find_model, load_tokenizer

    for row in first:
        if not isinstance(row, Text):
            conversation_of(row)  # what has no answer to imitate cannot be rendered
    chat = Chat(load_tokenizer(find_model(model)), max_length=1 << 20)
    some = islice(read_rows(list(files), Ledger(), columns=columns), LENGTH_ROWS)
    lengths = sorted(render_rows(some, chat, Ledger()).lengths) or [0]
    return [chat.show(chat.render(row)[0]) for row in first], [lengths[0], lengths[len(lengths) // 2], lengths[-1]]
