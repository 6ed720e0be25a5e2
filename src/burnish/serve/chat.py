"""Talk to a tuned model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.data.heads import Tags
from burnish.data.rows import Turn, Turns
from burnish.errors import CheckpointError
from burnish.model.constrained import Constraint
from burnish.model.load import load_tokenizer
from burnish.model.sample import Sampler
from burnish.model.scores import number, probabilities
from burnish.serve.card import read_head
from burnish.serve.combine import Adapters
from burnish.serve.export import chat_of, load_run


def open_run(folder: str | Path, report: dict[str, Any]) -> Conversation | Classifier:
    """The tuned model of a run: to talk to, or to have texts classified where it has a score head."""
    return Classifier(folder, report) if report["model"].get("head") else Conversation(folder, report)


class Conversation:
    """The tuned model of a run, with its system prompt, and what was said so far."""

    def __init__(self, folder: str | Path, report: dict[str, Any]) -> None:
        folder = Path(folder)
        self.report = report
        self.model = load_run(folder, report)
        self.tokenizer = load_tokenizer(str(folder / "adapter" if (folder / "adapter").is_dir() else folder / "merged"))
        self.chat = chat_of(report, self.tokenizer)
        held = report["task"].get("constrained")  # the schema that answers were held to
        self.constraint = Constraint(held) if held else None
        self.turns: Turns = ()
        self.adapters = Adapters(folder, self.model)

    def add(self, name: str, folder: str | Path) -> None:
        """Load an adapter on the same base beside the run's own, under a name. Raises CheckpointError where that cannot be done."""
        self.adapters.add(name, folder)

    def use(self, *names: str) -> None:
        """Answer with these adapters: "own" is the run's; several are stacked, what they add is added up; "base" is none of them.

        The system prompt becomes that of the first one's run, where it came from a run.
        """
        self.adapters.use(*names)
        report = self.adapters.reports.get(next(iter(names), ""), self.report)
        self.chat = chat_of(report, self.tokenizer)
        held = report["task"].get("constrained")
        self.constraint = Constraint(held) if held else None

    def say(self, text: str, *, max_new_tokens: int = 256) -> str:
        """The model's answer to the next thing said; both are remembered."""
        self.turns = (*self.turns, Turn("user", text))
        sampler = Sampler(self.model, self.tokenizer, self.chat.end_ids, constraint=self.constraint)
        [[completion]] = sampler.sample([self.chat.prompt(self.turns)], max_new_tokens=max_new_tokens)
        self.turns = (*self.turns, Turn("assistant", completion.text))
        return completion.text

    def answers(self, lines: Iterator[str]) -> Iterator[str]:
        """One answer for each line that is not blank; "/new" forgets what was said, "/use NAME" or "/use NAME+NAME" switches adapters."""
        for line in lines:
            if line.strip() == "/new":
                self.turns = ()
            elif line.split()[:1] == ["/use"]:
                try:
                    self.use(*line.strip().removeprefix("/use").strip().split("+"))
                except CheckpointError as error:  # a slip of the fingers does not end the conversation
                    yield f"({error.found}; expected {error.expected})"
            elif line.strip():
                yield self.say(line.strip())


class Classifier:
    """The tuned model of a run that names labels by a score head; it remembers nothing of one text at the next."""

    def __init__(self, folder: str | Path, report: dict[str, Any]) -> None:
        folder = Path(folder)
        self.model = load_run(folder, report).eval()
        head = read_head(report)
        assert head is not None
        self.head = head
        self.chat = chat_of(
            report, load_tokenizer(str(folder / "adapter" if (folder / "adapter").is_dir() else folder / "merged"))
        )

    def add(self, name: str, folder: str | Path) -> None:
        """Raises CheckpointError: a score head belongs to its own adapter."""
        raise CheckpointError(
            "this model names labels, and its head belongs to its own adapter",
            where=f"--adapter {name}={folder}",
            expected="the run of a model that writes",
        )

    def use(self, *names: str) -> None:
        """Raises CheckpointError: there is nothing to switch."""
        raise CheckpointError("this model names labels by its own adapter alone", where=f"--use {'+'.join(names)}")

    def classify(self, text: str) -> list[tuple[str, float]]:
        """Every label with its calibrated probability, the likeliest first."""
        found = probabilities(self.head, self._scores(self.chat.prompt((Turn("user", text),)))).tolist()
        return sorted(zip(self.chat.labels, found, strict=True), key=lambda pair: -pair[1])

    def value(self, text: str) -> float:
        """The number of a text, from a model that was tuned by regression."""
        return number(self.head, self._scores(self.chat.prompt((Turn("user", text),))))

    def tags(self, text: str) -> list[tuple[str, str]]:
        """Each word of a text with its tag, as far as the text is read."""
        assert isinstance(self.chat, Tags)
        words = text.split()
        ids, places = self.chat.places(" ".join(words))
        found = self._scores(ids)[places].argmax(-1).tolist()
        return [(word, self.chat.labels[tag]) for word, tag in zip(words, found, strict=False)]

    @torch.inference_mode()
    def _scores(self, ids: list[int]) -> np.ndarray:
        """(C,) of a text, (T,C) of its tokens."""
        logits = self.model(input_ids=torch.tensor([ids], device=self.model.device), use_cache=False).logits[0]
        scores: np.ndarray = logits.float().cpu().numpy()
        return scores

    def answers(self, lines: Iterator[str]) -> Iterator[str]:
        """For each line that is not blank the likeliest label and its probability, all labels that fit, its number, or its tags."""
        for line in lines:
            if line.strip():
                yield self._said(line.strip())

    def _said(self, text: str) -> str:
        if self.head.kind == "regress":
            return f"{self.value(text):.4g}"
        if self.head.kind == "tag":
            return " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in self.tags(text))
        found = self.classify(text)
        if self.head.kind == "multilabel":
            least = dict(zip(self.head.labels, self.head.thresholds or [0.5] * len(self.head.labels), strict=True))
            return ", ".join(f"{label}  {p:.3f}" for label, p in found if p >= least[label]) or "(none)"
        return "{}  {:.3f}".format(*found[0])
