"""One arm of a peer: python peer.py WORK ARM, with what run.py adds. Prints one line of JSON.

    python peer.py --write 8b-dense ...    writes the model of a work as files, once, for all peers

Every peer gets the documents of work.py, already tokenized, in their order, through TRL's SFTTrainer, and is timed by a callback.
"""

from __future__ import annotations

import time

BEGAN = time.time()

import importlib  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

from measure import Clock, on_card, say, summary, turn  # noqa: E402
from options import Asked, asked  # noqa: E402
from work import LINEARS, LORA_ALPHA, LORA_RANK, write_model  # noqa: E402

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "WANDB_DISABLED": "true",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def load_unsloth(order: Asked, longest: int) -> tuple[Any, Any, None]:
    from unsloth import FastLanguageModel  # before transformers, which it patches

    settings, full = order.arm.settings, order.work.method == "full"
    checkpointing = {"no": False, "yes": True, "unsloth": "unsloth"}[settings["checkpointing"]]
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(order.model_folder),
        max_seq_length=longest,
        load_in_4bit=settings["four_bit"],
        full_finetuning=full,
        use_gradient_checkpointing=checkpointing,
    )
    if not full:
        model = FastLanguageModel.get_peft_model(
            model,
            r=LORA_RANK,
            lora_alpha=LORA_ALPHA,
            lora_dropout=0,
            target_modules=LINEARS,
            random_state=0,
            use_gradient_checkpointing=checkpointing,
        )
    return model, tokenizer, None


def load_plain(order: Asked) -> tuple[Any, Any, Any]:
    """A transformers model for TRL, and a LoraConfig where TRL is to make the adapter by its own defaults."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    settings = order.arm.settings
    more: dict[str, Any] = {}
    if settings["attention"]:
        more["attn_implementation"] = settings["attention"]
    if settings["four_bit"]:
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        more["device_map"] = {"": 0}
    dtype = torch.bfloat16 if settings["half_weights"] else torch.float32
    model = AutoModelForCausalLM.from_pretrained(order.model_folder, dtype=dtype, **more)
    if on_card() and not settings["four_bit"]:
        model = model.cuda()
    tokenizer = AutoTokenizer.from_pretrained(order.model_folder)
    if order.work.method == "full":
        return model, tokenizer, None
    lora = LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM"
    )
    if settings["half_adapter"]:
        return get_peft_model(model, lora, autocast_adapter_dtype=False), tokenizer, None
    return model, tokenizer, lora


def trainer_settings(order: Asked) -> dict[str, Any]:
    """What the arm changes of SFTConfig's defaults, but for files and messages."""
    settings = order.arm.settings
    micro = min(settings["micro"] or order.work.documents, order.work.documents)
    found: dict[str, Any] = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": order.work.documents // micro,
        "use_liger_kernel": settings["liger"],
        "torch_compile": settings["compile"],
    }
    if settings["checkpointing"]:
        found["gradient_checkpointing"] = settings["checkpointing"] != "no"
    if settings["padding_free"] is not None:
        found["padding_free"] = settings["padding_free"]
    return found


def watching(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.end_step()
            control.should_log = state.global_step <= 3  # later steps are spared the wait that a logged number takes

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                clock.note(logs["loss"], logs.get("grad_norm", float("nan")))

    return Watch()


def train(order: Asked) -> dict[str, Any]:
    os.environ.update(OFFLINE)
    library = order.arm.settings["library"]
    if library not in ("trl", "unsloth"):
        importlib.import_module(library)
        raise NotImplementedError(f"{library} is installed here, but nobody has written its arm")
    if library == "unsloth":
        import unsloth  # noqa: F401  before transformers, which it patches
    import trl  # noqa: F401

    with turn():
        return timed(order, library)


def timed(order: Asked, library: str) -> dict[str, Any]:
    steps = order.documents()
    longest = max(len(document.ids) for step in steps for document in step)
    model, tokenizer, lora = load_unsloth(order, longest) if library == "unsloth" else load_plain(order)
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    documents = [document for step in steps for document in step]
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[watching(clock)],
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [document.ids for document in documents],
                "labels": [document.labels for document in documents],
            }
        ),
        args=SFTConfig(
            output_dir=str(order.scratch / "out"),
            use_cpu=not on_card(),
            bf16=True,
            max_steps=len(steps),
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            max_length=None,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            **trainer_settings(order),
        ),
    )
    loaded = time.time() - BEGAN
    trainer.train()
    found = summary(order.work, steps, clock, order.warmup, four_bit=order.arm.settings["four_bit"])
    return found | {"load_seconds": loaded, "padding_free": bool(getattr(trainer.args, "padding_free", False))}


def write(order: Asked) -> dict[str, Any]:
    if order.tokenizer is None:
        raise ValueError("the peers read a folder with a tokenizer: name one with --tokenizer")
    write_model(order.work.shape, order.model_folder, order.tokenizer, "cuda" if on_card() else "cpu")
    return {}


if __name__ == "__main__":
    wanted = write if "--write" in sys.argv else train
    sys.argv = [word for word in sys.argv if word != "--write"]
    order = asked()
    sys.exit(say(lambda: wanted(order), BEGAN))
