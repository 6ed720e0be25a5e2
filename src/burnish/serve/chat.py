"""Talk to a tuned model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from burnish.data.rows import Turn, Turns
from burnish.model.load import load_tokenizer
from burnish.model.sample import Sampler
from burnish.serve.export import chat_of, load_run


def open_run(folder: str | Path, report: dict[str, Any]) -> Conversation | Classifier:
    """The tuned model of a run: to talk to, or to have texts classified where it has a score head."""
    return Classifier(folder, report) if report["model"].get("head") else Conversation(folder, report)


class Conversation:
    """The tuned model of a run, with its system prompt, and what was said so far."""

    def __init__(self, folder: str | Path, report: dict[str, Any]) -> None:
        folder = Path(folder)
        self.model = load_run(folder, report)
        self.tokenizer = load_tokenizer(str(folder / "adapter" if (folder / "adapter").is_dir() else folder / "merged"))
        self.chat = chat_of(report, self.tokenizer)
        self.turns: Turns = ()

    def say(self, text: str, *, max_new_tokens: int = 256) -> str:
        """The model's answer to the next thing said; both are remembered."""
        self.turns = (*self.turns, Turn("user", text))
        sampler = Sampler(self.model, self.tokenizer, self.chat.end_ids)
        [[completion]] = sampler.sample([self.chat.prompt(self.turns)], max_new_tokens=max_new_tokens)
        self.turns = (*self.turns, Turn("assistant", completion.text))
        return completion.text

    def answers(self, lines: Iterator[str]) -> Iterator[str]:
        """One answer for each line that is not blank; "/new" forgets what was said."""
        for line in lines:
            if line.strip() == "/new":
                self.turns = ()
            elif line.strip():
                yield self.say(line.strip())


class Classifier:
    """The tuned model of a run that names labels by a score head; it remembers nothing of one text at the next."""

    def __init__(self, folder: str | Path, report: dict[str, Any]) -> None:
        folder = Path(folder)
        self.model = load_run(folder, report).eval()
        self.chat = chat_of(
            report, load_tokenizer(str(folder / "adapter" if (folder / "adapter").is_dir() else folder / "merged"))
        )

    @torch.inference_mode()
    def classify(self, text: str) -> list[tuple[str, float]]:
        """Every label with its probability, the likeliest first."""
        ids = torch.tensor([self.chat.prompt((Turn("user", text),))], device=self.model.device)
        probabilities = self.model(input_ids=ids, use_cache=False).logits[0].softmax(-1).tolist()
        return sorted(zip(self.chat.labels, probabilities, strict=True), key=lambda pair: -pair[1])

    def answers(self, lines: Iterator[str]) -> Iterator[str]:
        """The likeliest label of each line that is not blank, and its probability."""
        for line in lines:
            if line.strip():
                label, probability = self.classify(line.strip())[0]
                yield f"{label}  {probability:.3f}"
