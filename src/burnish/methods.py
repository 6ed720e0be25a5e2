"""The methods of `adapter`: what is trained, the keys that each takes, and what the rest must know of it.

The recipe checks keys by this table; `model.adapters` makes PEFT's configuration of each. A method that is not here is not offered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LINEAR = {"targets": ["all-linear"]}
RANKED = {"rank": 16, "alpha": 32.0, "dropout": 0.0, **LINEAR}


@dataclass(frozen=True)
class Method:
    """defaults: the keys it takes, with what they are where the recipe says nothing. paper: arXiv id.

    beside: an adapter stands beside frozen weights; else some of the model's own are trained.
    low_rank: its layers are `LoraLinear`, which stand on a base of 8 or 4 bits too, and which compilers and recordings know.
    merges: it can be added into the weights. prompts: it stands before the tokens, so a row holds one sequence.
    starts: it begins from the base's own weights and takes what it begins with out of them.
    rate: its learning rate by LoRA's. learns: the share of the first loss that a few rows learnt by heart must come down to.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    beside: bool = True
    low_rank: bool = False
    merges: bool = True
    prompts: bool = False
    starts: bool = False
    rate: float = 1.0
    learns: float = 0.05


METHODS = {
    "lora": Method(RANKED, "2106.09685", low_rank=True),
    "rslora": Method(RANKED, "2312.03732", low_rank=True),
    "dora": Method(RANKED, "2402.09353"),
    "pissa": Method(RANKED, "2404.02948", low_rank=True, starts=True, rate=0.3),
    "loftq": Method(RANKED, "2310.08659", low_rank=True, starts=True),
    "ia3": Method({"targets": ["k_proj", "v_proj", "down_proj"]}, "2205.05638", rate=5.0, learns=0.5),
    "oft": Method({"block": 32, **LINEAR}, "2306.07280", rate=0.3),
    "vera": Method({"rank": 256, "dropout": 0.0, **LINEAR}, "2310.11454", rate=20.0, learns=0.5),
    "layernorm": Method({"targets": ["all-norms"]}, "2312.11420", rate=3.0, learns=0.5),
    "prompt": Method({"tokens": 20}, "2104.08691", merges=False, prompts=True, rate=10.0, learns=0.9),
    "prefix": Method({"tokens": 20}, "2101.00190", merges=False, prompts=True, rate=10.0, learns=0.9),
    # These two take what LoRA takes and leave it unused, so that a recipe can be tried with them as it stands.
    "full": Method(RANKED, beside=False),
    "head": Method(RANKED, beside=False),
}
KEYS = tuple(dict.fromkeys(key for method in METHODS.values() for key in method.defaults))


def refused_keys(method: str, keys: Mapping[str, Any]) -> list[str]:
    """The keys of `adapter` that have a value and that are of other methods than this one."""
    taken = METHODS[method].defaults
    return [key for key, value in keys.items() if key in KEYS and key not in taken and value is not None]


def used_keys(method: str) -> list[str]:
    """The keys of `adapter` that change what the method trains: those that train the model's own weights leave theirs unused."""
    return list(METHODS[method].defaults) if METHODS[method].beside else []


def keys_of(method: str) -> str:
    """What a method takes, in words."""
    return ", ".join(METHODS[method].defaults) or "no further key"
