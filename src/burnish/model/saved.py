"""What is written beside weights: files of JSON, and the score head that they tell of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from burnish.errors import BurnishError, ModelError
from burnish.model.load import HEAD_FILE, Head

LABELS_FILE = "head.json"  # what transformers must know of an adapter's head
CALIBRATION_FILE = "calibration.json"  # all that a head stands for

Refusal = Callable[..., BurnishError]  # what a reader raises: a class of error, or who makes one


def read_json(path: Path, refusal: Refusal = ModelError) -> dict[str, Any]:
    """The object in a file. Raises `refusal` where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
        return found
    except (OSError, ValueError) as error:
        expected = "a file of JSON, as it was written beside the weights"
        raise refusal(f"it cannot be read: {error}", where=str(path), expected=expected) from error


def head_in(folder: Path, config: Mapping[str, Any], refusal: Refusal = ModelError) -> Head | None:
    """The score head of a folder's model or adapter; None where that only writes.

    config: of the model in it; of an adapter anything, since its head has files of its own. Raises `refusal` for a damaged file.
    """
    place = next((path for name in (CALIBRATION_FILE, LABELS_FILE) if (path := folder / name).is_file()), None)
    classes = [name for name in config.get("architectures") or () if "Classification" in name]
    if place is None and not (classes and config.get("id2label")):
        return None
    found = read_json(place, refusal) if place else config
    try:
        if "id2label" in found:
            tags = any("Token" in name for name in classes)
            found = _in_our_words(found, tags=tags, beside=(folder / HEAD_FILE).is_file())
        return Head.restored(found)
    except (TypeError, ValueError, AttributeError) as error:
        raise refusal(f"it is no score head: {error}", where=str(place or folder)) from error


def _in_our_words(found: Mapping[str, Any], *, tags: bool, beside: bool) -> dict[str, Any]:
    """A head as transformers tells of it: its labels, and little else where no `burnish` stands beside them."""
    named = {int(number): str(label) for number, label in found["id2label"].items()}
    record = {"labels": [named[number] for number in sorted(named)], "pad": found.get("pad_token_id")}
    return {**record, "kind": "tag" if tags else "classify", **found.get("burnish", {}), "beside": beside}
