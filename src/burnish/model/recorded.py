"""A decoding step as a CUDA graph, within transformers' own `generate`.

Launching the thousand kernels of a step takes the host several times as long as running them takes the GPU; replaying a recording is
one launch. transformers' own remedy is `torch.compile`, which takes longer to get ready than most evaluations last, and gets ready anew
for each size of batch; a recording takes about as long as two steps. Its continuous batching decodes in a thread of its own, where
neither autocast nor a prompt that an adapter learnt holds.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer, StaticSlidingWindowLayer

GRAIN = 8  # tokens; attention kernels ask it of a mask's length


class Unrecordable(Exception):
    """A model's decoding step waits for the GPU somewhere, so that it cannot be recorded."""


def recordable(model: Any) -> bool:
    """Whether a decoding step may be recorded: on one GPU, by what transformers says of the family, with masks that are tensors."""
    inner = _language_model(model)
    if inner is None or inner.device.type != "cuda" or hasattr(inner, "hf_device_map"):
        return False
    masked = not any(kind in str(inner.config._attn_implementation) for kind in ("flash", "flex", "paged"))
    return bool(masked and inner._can_compile_fullgraph and fixed_cache(inner, 1) is not None)


def _language_model(model: Any) -> Any:
    """The transformers model inside; None where an adapter puts tokens of its own before the prompt, which moves all places."""
    if not hasattr(model, "get_base_model"):
        return model
    return None if model.active_peft_config.is_prompt_learning else model.get_base_model()


@contextlib.contextmanager
def recorded(model: Any, length: int) -> Iterator[dict[str, Any]]:
    """Let `generate` replay a recorded decoding step. Gives the argument to add to its call: a cache of `length` tokens.

    With a cache of fixed size transformers asks the model for its compiled call, which is where the recording steps in.
    """
    inner = _language_model(model)
    name = "cache" if "cache" in inspect.signature(inner.forward).parameters else "past_key_values"  # renamed in 5.24
    inner.get_compiled_call = lambda compile_config: Recorded(inner)
    try:
        yield {name: fixed_cache(inner, length)}
    finally:
        del inner.get_compiled_call  # the class's own shows again


class Recorded:
    """A model's forward pass that is recorded on its third call and replayed from then on, for inputs of unchanging shape."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.inputs: dict[str, Any] | None = None

    @property
    def calls(self) -> int:
        return self._step.calls

    def __call__(self, **inputs: Any) -> Any:
        if self.inputs is None:
            model, own = self.model, _copied(inputs)  # not self, or a cycle would keep the whole cache alive
            self.inputs, self._step = own, Recording(lambda: model(**own))
        for mine, given in zip(_tensors(self.inputs), _tensors(inputs), strict=True):
            mine.copy_(given)
        return self._step()


class Recording:
    """Work on tensors that stay where they are: recorded on its third call and replayed from then on.

    The first call lets libraries set themselves up, the second is watched for anything that waits for the GPU and raises Unrecordable
    where something does: a recording that fails leaves the device's random numbers unusable, so it must not come to that.
    stream: to work on; None is the current one. pool: memory to share with other recordings, whose outputs this one then overwrites.
    known: the same work was watched at other sizes, so that it is recorded on its second call.
    """

    def __init__(
        self,
        step: Callable[[], Any],
        *,
        stream: torch.cuda.Stream | None = None,
        pool: Any = None,
        known: bool = False,
    ) -> None:
        self._step, self._stream, self._pool = step, stream, pool
        self._recorded_on = 2 if known else 3
        self.calls = 0

    @property
    def recorded(self) -> bool:
        return self.calls >= self._recorded_on

    @property
    def next_is_watched(self) -> bool:
        return self.calls == 1 and self._recorded_on == 3

    def __call__(self) -> Any:
        self.calls += 1
        if self.calls == self._recorded_on:
            self._step = graph_of(self._step, stream=self._stream, pool=self._pool)
        if self.recorded:
            return self._step()
        with never_waiting() if self.calls == 2 else contextlib.nullcontext(), _on(self._stream):
            return self._step()


@contextlib.contextmanager
def _on(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Within the block work goes to the stream, after what was asked before and before what is asked after."""
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def graph_of(
    step: Callable[[], Any], *, stream: torch.cuda.Stream | None = None, pool: Any = None
) -> Callable[[], Any]:
    """Record `step` without running it. What is returned runs it on the same tensors, and gives the same outputs filled anew."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        outputs = step()

    def replay() -> Any:
        graph.replay()
        return outputs

    return replay


@contextlib.contextmanager
def never_waiting() -> Iterator[None]:
    """Raises Unrecordable as soon as the host waits for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Unrecordable(str(error)) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _copied(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with tensors of their own; masks may lie in a dictionary by kind of layer."""
    own = {name: value.clone() for name, value in inputs.items() if isinstance(value, Tensor)}
    return inputs | own | {name: _copied(value) for name, value in inputs.items() if isinstance(value, dict)}


def _tensors(inputs: dict[str, Any]) -> Iterator[Tensor]:
    for value in inputs.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)


class _FixedLayer(StaticLayer):
    """The keys and values of one layer for a fixed number of tokens, at one precision: under autocast keys come out wider."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return super().update(key_states.to(value_states.dtype), value_states, *args, **kwargs)


def fixed_cache(model: Any, length: int) -> StaticCache | None:
    """Room for `length` tokens in every layer; None where layers keep something other than keys and values.

    Layers with a window get the whole length too, and a mask that sees to the window: transformers' own layer for them counts
    tokens on the host, which a recording would not repeat.
    """
    config = model.config.get_text_config()
    if not set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}:
        return None
    length = -(-length // GRAIN) * GRAIN
    cache = StaticCache(config=config, max_cache_len=length)
    if any(type(layer) not in (StaticLayer, StaticSlidingWindowLayer) for layer in cache.layers):
        return None
    cache.layers = [_FixedLayer(max_cache_len=length) for _ in cache.layers]
    return cache
