"""What the tests share: a byte tokenizer and tiny random models of several families, so that everything runs in seconds."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from burnish.model.load import Head, load_model
from tiny_runs import LABELS

ARCHITECTURES = ("llama", "qwen3", "gemma2", "mistral")
FURTHER = ("gemma3_text", "qwen3_moe")  # for tests that name their families: windows in some layers only, and experts
CONTROL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no defect
hypothesis.settings.load_profile("untimed")


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="torch.cuda.is_available() is false: there is no GPU here"))


@pytest.fixture(autouse=True)
def _own_cache(request, monkeypatch, tmp_path_factory):
    """Converted models go to a folder of the tests; a test of the real model reads the user's own."""
    if "real_model" not in request.keywords:
        monkeypatch.setenv("BURNISH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def make_tokenizer():
    """A function from a chat template to a tokenizer of single bytes, with ChatML's control tokens.

    eos, pad: which of them end and pad. ordinary: tokens added without being special, as `<think>` or a run of line ends is.
    """
    from transformers import PreTrainedTokenizerFast

    def make(template=CHATML, *, eos="<|im_end|>", pad="<pad>", ordinary=(), control=CONTROL):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ordinary])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, pad_token=pad, chat_template=template
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer):
    """A function from the name of a family to a folder with a tiny random model of it, as transformers saves one."""
    from transformers import AutoModelForCausalLM

    folders: dict[str, str] = {}

    def folder_of(architecture: str = "llama") -> str:
        if architecture not in folders:
            folder = tmp_path_factory.mktemp(architecture)
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(_config(architecture, tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            folders[architecture] = str(folder)
        return folders[architecture]

    return folder_of


@pytest.fixture
def make_model(model_folder):
    """A function from the name of a family to a fresh tiny model in float32: the same weights each time."""
    return lambda architecture="llama": load_model(model_folder(architecture), dtype=torch.float32).eval()


@pytest.fixture
def make_classifier(model_folder, tokenizer):
    """A function from the name of a family to a fresh tiny model in float32 with a score head for LABELS: the same weights each time."""

    def make(architecture="llama", kind="classify", labels=LABELS):
        head = Head(labels, tokenizer.pad_token_id, kind=kind)
        return load_model(model_folder(architecture), dtype=torch.float32, head=head).eval()

    return make


@pytest.fixture(params=ARCHITECTURES)
def architecture(request) -> str:
    return request.param


def _config(architecture, tokenizer):
    from transformers import AutoConfig

    traits = {
        "llama": {"tie_word_embeddings": True},
        "qwen3": {"head_dim": 16},
        "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 10.0, "sliding_window": 16},
        "mistral": {"sliding_window": 16},
        "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "sliding_window_pattern": 2},
        "qwen3_moe": {"head_dim": 16, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2},
    }[architecture]
    return AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,  # wide enough that no two tokens are equally likely, and that any can be made certain
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **traits,
    )
