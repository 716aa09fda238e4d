"""How much arithmetic it takes to follow an instruction: read once by a hypernetwork, or put before every input.

Counted as in `jaxmtl.models.flops`: matrix products, a multiplication and an addition being two operations. With
t, i and o tokens of instruction, input and target, n examples of one task and N parameters, papers count less closely:

  concatenated (No FT, Tk-Instruct)          N n (t + i + o)
  read once (Hypter, HyperTuning, HINT, TAGI)  N (t + n (i + o)) and the networks that generate
  decoder-only (GPT-2, OPT), t kept            2 N (t + n (i + o))

Letters in shapes: D embed, H heads, K head width, R rank.
Source: HINT's model of costs, methods 1.10; Kaplan et al. 2020.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxmtl.adapters.hyper_config import (
    AttentionPooling,
    DecoderPooling,
    GeneratorConfig,
    HyperConfig,
    PrefixOutput,
    TagiCodePooling,
)
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.lora import LoRA
from jaxmtl.adapters.slots import Layout, layout_of
from jaxmtl.adapters.targets import Kernel, kernels, matching
from jaxmtl.models import flops
from jaxmtl.models.encoder_decoder import EncoderDecoder
from jaxmtl.models.gpt_config import GPTConfig

MLP_FACTOR = 4
"""Width of the hidden layers of a pooling decoder and of residual blocks, over their input's."""


def concatenated(config: Any, instruction: ArrayLike, source: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Counts one example whose input begins with the instruction: the plain model, Tk-Instruct.

    Args:
      config: the model's sizes.
      instruction: t, tokens of the instruction.
      source: i, tokens of the input.
      target: o, tokens of the target.

    Returns:
      float64, operations.
    """
    return flops.forward(config, np.asarray(instruction) + np.asarray(source), target)


def after_kept_prompt(config: GPTConfig, prompt: ArrayLike, source: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Counts one example of a decoder-only model that has kept what it knows of a prompt; `flops.encode` reads it.

    Args:
      config: the model's sizes.
      prompt: t, tokens of the prompt.
      source: i, tokens of the input.
      target: o, tokens of the target.

    Returns:
      float64, operations.
    """
    kept, read = np.asarray(prompt, np.float64), np.asarray(source, np.float64)
    seen_twice = 4 * config.num_layers * config.embed_dim * read * kept  # the prompt does not look at the input again
    return concatenated(config, kept, read, target) - flops.encode(config, kept) - seen_twice


def by_parameters(num_parameters: float, instruction: float, per_example: float, num_examples: int) -> dict[str, float]:
    """Counts as papers do, see the module.

    Args:
      num_parameters: N.
      instruction: t.
      per_example: i + o.
      num_examples: n.

    Returns:
      Operations by "concatenated", "read once" and "decoder-only".
    """
    once = num_parameters * (instruction + num_examples * per_example)
    whole = num_parameters * num_examples * (instruction + per_example)
    return {"concatenated": whole, "read once": once, "decoder-only": 2 * once}


def reading(module: HyperModel, instruction: ArrayLike) -> np.ndarray:
    """Counts what is done once for an instruction: it is encoded, and all is made that rows will use.

    Args:
      module: the model with its hypernetwork.
      instruction: t, tokens of the padded instruction.

    Returns:
      float64, operations.
    """
    hyper, config, length = module.hyper, module.config, np.asarray(instruction, np.float64)
    reader: Any = module.base if module.reader is None else module.reader
    inner, width = config.num_heads * config.head_dim, reader.config.embed_dim
    layout = layout_of(module.base, hyper.outputs, hyper.generator)
    total = _pooling(hyper, layout, length, width, inner) + _generators(hyper, layout, width)
    if hyper.encoder != "learned":
        total = total + flops.encode(reader.config, length)
    if hyper.fusion != "none":
        total = total + config.num_encoder_layers * 2 * 2 * width * inner * length
    if hyper.memory == "concat":
        total = total + config.num_decoder_layers * 2 * 2 * width * inner * length
        updates = (kernel for path, kernel in _updated(module) if _reads_memory(path))
        total = total + sum(_low_rank(hyper, kernel) for kernel in updates) * length
    return total


def answering(module: HyperModel, instruction: ArrayLike, source: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Counts one example of a task whose instruction was read: the model, and what was made for it.

    Low-rank updates count as products of their own; merged into the kernels, as may be done where a batch has one task,
    they would cost nothing.

    Args:
      module: the model with its hypernetwork.
      instruction: t, tokens of the padded instruction that stand in the memory and that encoder layers look at.
      source: i, tokens of the input.
      target: o, tokens of the target.

    Returns:
      float64, operations.
    """
    hyper, config = module.hyper, module.config
    t, i, o = (np.asarray(length, np.float64) for length in (instruction, source, target))
    inner = config.num_heads * config.head_dim
    total = flops.forward(config, i, o)
    for path, kernel in _updated(module):
        total = total + _low_rank(hyper, kernel) * _tokens(module, path, i, o)
    for output in hyper.outputs:
        if not isinstance(output, LoRA):
            total = total + _beside(module, output, inner, i, o)
    if hyper.fusion != "none":
        total = total + config.num_encoder_layers * i * (2 * 2 * config.embed_dim * inner + 4 * inner * t)
    if hyper.memory == "concat":
        total = total + config.num_decoder_layers * 4 * inner * o * t
    return total


def _updated(module: HyperModel) -> Iterator[tuple[str, Kernel]]:
    lora = module.hyper.lora
    if lora is not None:
        yield from matching(module.base, lora.targets).items()


def _low_rank(hyper: HyperConfig, kernel: Kernel) -> float:
    """Returns the operations of an update for each token that goes through all layers of a kernel."""
    rank = 0 if hyper.lora is None else hyper.lora.rank
    return 2.0 * rank * (kernel.inputs + kernel.outputs) * max(1, kernel.num_layers)


def _reads_memory(path: str) -> bool:
    """Returns whether a kernel reads what the decoder remembers: keys and values of cross-attention."""
    return "cross_attention" in path and path.endswith(("/key", "/value"))


def _tokens(module: HyperModel, path: str, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns how many tokens of an example go through a layer."""
    if not isinstance(module.base, EncoderDecoder):
        return source + target
    return source if path.startswith("encoder/") or _reads_memory(path) else target


def _beside(module: HyperModel, output: Any, inner: int, source: np.ndarray, target: np.ndarray) -> Any:
    """Counts what prefixes add to attention, or adapters beside feed-forward layers."""
    child = "key" if isinstance(output, PrefixOutput) else "wo"
    total: Any = 0.0
    for leaf in layout_of(module.base, [output], module.hyper.generator).leaves:
        kernel = kernels(module.base)[f"{leaf.path}/{child}"]
        queries = _tokens(module, leaf.path, source, target)
        if leaf.name in ("key", "value"):
            total = total + leaf.layers * queries * 2 * leaf.rows * inner
        elif leaf.name in ("down", "up"):
            total = total + leaf.layers * queries * 2 * leaf.rows * kernel.outputs
    return total


def _pooling(hyper: HyperConfig, layout: Layout, length: np.ndarray, width: int, inner: int) -> np.ndarray:
    """Counts what makes vectors of an instruction's states."""
    attention = 2 * 2 * width * inner * (length + layout.num_slots) + 4 * inner * layout.num_slots * length
    match hyper.pooling:
        case AttentionPooling():
            return attention
        case DecoderPooling(num_layers=num_layers):
            return num_layers * (attention + 2 * 2 * MLP_FACTOR * width * width * layout.num_slots)
        case TagiCodePooling(width=narrow):
            return 0.0 * length + 2 * width * narrow
        case _:
            return 0.0 * length


def _generators(hyper: HyperConfig, layout: Layout, width: int) -> float:
    """Counts the networks from slots' vectors to numbers."""
    total, features = 0.0, _features(hyper, width)
    for _, members in layout.groups:
        leaf = layout.leaves[members[0]]
        emitted = leaf.width * (leaf.rows if hyper.generator.emits == "matrices" else 1)
        vectors = sum(layout.slots[one].num_layers * layout.slots[one].per_layer for one in members)
        total += vectors * _network(hyper.generator, features, emitted)
    return total


def _features(hyper: HyperConfig, width: int) -> int:
    """Returns how many numbers a network reads."""
    pooled = hyper.pooling.width if isinstance(hyper.pooling, TagiCodePooling) else width
    return pooled + (hyper.identity == "index")


def _network(config: GeneratorConfig, features: int, emitted: int) -> float:
    hidden = config.hidden or features
    blocks = config.blocks * 2 * 2 * MLP_FACTOR * hidden * hidden
    return 2.0 * features * hidden + blocks + 2.0 * hidden * emitted
