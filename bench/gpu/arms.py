"""The table of arms: which programs, at which settings, compete at each work.

An arm of a peer stands for its defaults or for the best that its settings give: no checkpointing, the largest micro-batch that fits.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from work import Work

# burnish. micro_tokens: tokens in a micro-batch. row_tokens: length of a packed row; None: one row for all on a GPU.
OURS: dict[str, Any] = {
    "precision": "bf16",
    "recompute": "none",
    "compile": True,
    "graph": False,
    "micro_tokens": 16384,
    "row_tokens": None,
    "optimizer": "adamw",
    "in_backward": False,
}
# Peers. micro: documents in a micro-batch; 0: all of the step's. checkpointing: None is the library's own default.
PEER: dict[str, Any] = {
    "library": "trl",
    "micro": 0,
    "checkpointing": None,
    "liger": False,
    "four_bit": False,
    "padding_free": None,
    "attention": None,
    "half_adapter": True,
    "half_weights": True,
    "compile": False,
}


@dataclass(frozen=True)
class Arm:
    """One program at one setting. name: what the command line and the result files call it; title: what the table says."""

    name: str
    title: str
    side: Literal["burnish", "peer"]
    settings: dict[str, Any] = field(default_factory=dict)

    def changed(self, changes: dict[str, Any]) -> Arm:
        """The arm with other settings, and a name that says so, for trying things out."""
        if not changes:
            return self
        if unknown := changes.keys() - self.settings.keys():
            raise ValueError(
                f"{self.name} has no setting {', '.join(sorted(unknown))}; it has {', '.join(self.settings)}"
            )
        said = ", ".join(f"{key} {value}" for key, value in changes.items())
        return replace(
            self,
            name=f"{self.name}+{said.replace(', ', '+').replace(' ', '=')}",
            title=f"{self.title}; {said}",
            settings=self.settings | changes,
        )


def ours(name: str, title: str, **changes: Any) -> Arm:
    return Arm(f"burnish-{name}", f"burnish, {title}", "burnish", OURS | changes)


def peer(name: str, title: str, **changes: Any) -> Arm:
    return Arm(name, title, "peer", PEER | changes)


BF16 = ours("bf16", "bf16, no recompute")
EAGER = ours("bf16-eager", "bf16, not compiled", compile=False)
FP8 = ours("fp8", "FP8 base, no recompute", precision="fp8")
NF4 = ours("nf4", "4-bit base, no recompute", precision="nf4")


def recomputing(arm: Arm, what: str) -> Arm:
    title = arm.title.replace("no recompute", "offload" if what == "offload" else f"recompute {what}")
    return replace(arm, name=f"{arm.name}-{what}", title=title, settings=arm.settings | {"recompute": what})


def at_once(arm: Arm, tokens: int) -> Arm:
    title, settings = f"{arm.title}, {tokens} tokens at once", arm.settings | {"micro_tokens": tokens}
    return replace(arm, name=f"{arm.name}-{tokens}", title=title, settings=settings)


def graphed(arm: Arm) -> Arm:
    return replace(
        arm, name=f"{arm.name}-graph", title=f"{arm.title}, CUDA graph", settings=arm.settings | {"graph": True}
    )


def unsloth(micro: int, **more: Any) -> Arm:
    return peer("unsloth-best", "Unsloth, no checkpointing", library="unsloth", checkpointing="no", micro=micro, **more)


UNSLOTH_DEFAULTS = peer(
    "unsloth-defaults", "Unsloth, its defaults (own checkpointing)", library="unsloth", checkpointing="unsloth"
)
TRL_DEFAULTS = peer("trl-defaults", "TRL + PEFT, its defaults (checkpointing)", half_adapter=False)
ABSENT = [peer("llama-factory", "LLaMA-Factory", library="llamafactory"), peer("axolotl", "Axolotl", library="axolotl")]


def trl(micro: int, **more: Any) -> Arm:
    return peer(
        "trl-liger-best", "TRL + PEFT + Liger, no checkpointing", liger=True, checkpointing="no", micro=micro, **more
    )


def padding_free(attention: str, title: str) -> Arm:
    return peer(
        f"trl-liger-{attention.replace('_attention', '').replace('_', '-')}",
        f"TRL + PEFT + Liger, no checkpointing, padding-free, {title}",
        liger=True,
        checkpointing="no",
        padding_free=True,
        attention=attention,
    )


FLEX = padding_free("flex_attention", "FlexAttention")
FLASH = [padding_free("flash_attention_2", "FlashAttention 2"), padding_free("flash_attention_4", "FlashAttention 4")]

ARMS: dict[str, list[Arm]] = {
    "8b-dense": [
        FP8,
        BF16,
        recomputing(FP8, "elementwise"),
        EAGER,
        unsloth(4),
        UNSLOTH_DEFAULTS,
        trl(4),
        TRL_DEFAULTS,
        *ABSENT,
    ],
    "8b-18gib": [
        recomputing(BF16, "all"),
        recomputing(BF16, "offload"),
        recomputing(FP8, "mlp"),
        recomputing(FP8, "all"),
        graphed(at_once(recomputing(FP8, "elementwise"), 2048)),
        at_once(recomputing(FP8, "elementwise"), 2048),
        graphed(at_once(NF4, 2048)),
        at_once(NF4, 2048),
        recomputing(NF4, "mlp"),
        recomputing(NF4, "all"),
        UNSLOTH_DEFAULTS,
        TRL_DEFAULTS,
        peer("trl-liger-defaults", "TRL + PEFT + Liger, checkpointing", liger=True),
    ],
    "8b-nf4": [
        NF4,
        recomputing(NF4, "mlp"),
        graphed(at_once(NF4, 2048)),
        graphed(at_once(recomputing(NF4, "elementwise"), 4096)),
        at_once(recomputing(NF4, "elementwise"), 4096),
        recomputing(NF4, "all"),
        replace(unsloth(4, four_bit=True), title="Unsloth, 4-bit base, no checkpointing"),
        replace(UNSLOTH_DEFAULTS, settings=UNSLOTH_DEFAULTS.settings | {"four_bit": True}),
        trl(4, four_bit=True),
    ],
    "8b-packs": [
        at_once(FP8, 8192),
        at_once(BF16, 8192),
        unsloth(2),
        UNSLOTH_DEFAULTS,
        trl(2),
        FLEX,
        *FLASH,
        replace(TRL_DEFAULTS, settings=TRL_DEFAULTS.settings | {"micro": 4}),
    ],
    "1b-dense": [FP8, BF16, graphed(FP8), graphed(BF16), EAGER, unsloth(8), UNSLOTH_DEFAULTS, trl(8), TRL_DEFAULTS],
    "1b-packs": [FP8, BF16, graphed(FP8), graphed(BF16), unsloth(4), UNSLOTH_DEFAULTS, trl(8), FLEX, *FLASH],
    "135m-rows": [BF16, graphed(BF16), EAGER, unsloth(0), UNSLOTH_DEFAULTS, trl(0), FLEX, TRL_DEFAULTS],
    "1b-full": [
        ours("full", "bf16 products, float32 weights"),
        ours("full-fp8", "FP8 products, float32 weights", precision="fp8"),
        ours("full-eager", "bf16 products, float32 weights, not compiled", compile=False),
        replace(unsloth(8), title="Unsloth, all weights, no checkpointing"),
        peer(
            "trl-liger-compile",
            "TRL + Liger, no checkpointing, torch.compile",
            liger=True,
            checkpointing="no",
            compile=True,
            half_weights=False,
        ),
        peer("trl-liger", "TRL + Liger, no checkpointing", liger=True, checkpointing="no", half_weights=False),
        peer(
            "trl-liger-bf16",
            "TRL + Liger, bf16 weights, no checkpointing, torch.compile",
            liger=True,
            checkpointing="no",
            compile=True,
        ),
    ],
    "13b": [
        replace(FP8, settings=FP8.settings | {"micro_tokens": 4096}),
        recomputing(FP8, "elementwise"),
        recomputing(BF16, "elementwise"),
        unsloth(2),
        UNSLOTH_DEFAULTS,
        trl(2),
    ],
}


def arms_of(work: Work, chosen: list[str] | None = None) -> list[Arm]:
    """The arms of a work in the order of the table, or those of `chosen` that it has; chosen: ARM, or WORK/ARM for that work alone."""
    return [arm for arm in ARMS[work.name] if not chosen or {arm.name, f"{work.name}/{arm.name}"} & set(chosen)]


def find_arm(work: str, name: str) -> Arm:
    return next(arm for arm in ARMS[work] if arm.name == name)
