"""What a hypernetwork is made of: each choice is a value of one config."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from jaxmtl.adapters.lora import LoRA
from jaxmtl.types import InputError, unknown_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionPooling:
    """Each slot's learned vector attends to the instruction: masked, with the heads of the model.

    Source: HINT, methods 1.3.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderPooling:
    """Slots' vectors go through layers of cross-attention to the instruction and feed-forward, without self-attention.

    Attributes:
      num_layers: how many.

    Source: HyperTuning as HINT replicates it, methods 1.4.
    """

    num_layers: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanPooling:
    """The mean of the states of real tokens, the same for all slots."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TagiCodePooling:
    """TAGI's released code: the mean over padding too of last plus first layer's states, made narrow, then tanh.

    Depends on how much padding a batch has.

    Attributes:
      width: what the states are projected to.

    Source: methods 1.2.
    """

    width: int = 255


Pooling = AttentionPooling | DecoderPooling | MeanPooling | TagiCodePooling
OF_SLOTS = (AttentionPooling, DecoderPooling)
"""Poolings that give each slot a vector of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixOutput:
    """Keys and values before those of attention layers.

    Attributes:
      length: P.
      targets: regular expression over the paths of attention layers, such as "decoder/self_attention".
    """

    length: int = 30
    targets: str = ".*"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BottleneckOutput:
    """Adapters beside feed-forward sub-layers.

    Attributes:
      width: of the bottleneck.
      targets: regular expression over the paths of feed-forward sub-layers, such as "encoder/mlp".
    """

    width: int = 64
    targets: str = ".*"


Output = LoRA | PrefixOutput | BottleneckOutput

SHARING = {
    "kind": "one network for each kind of attention, shared by its layers and projections",
    "layer": "one network for each layer of each kind of attention, shared by its projections",
    "component": "one network for each type of output, shared by all layers of all kinds",
    "trunk": "as component, but each layer has an output kernel of its own",
}
EMITS = {"matrices": "a slot's vector becomes a whole matrix", "rows": "each row of a matrix has a slot of its own"}
IDENTITIES = {
    "query": "slots differ by what they pool",
    "add": "each slot's learned vector is added to what was pooled",
    "index": "the slot's number is one more feature",
    "none": "slots do not differ but by their network",
}
ENCODERS = {
    "shared": "the model's own encoder",
    "frozen": "another model's encoder, not trained",
    "separate": "another model's encoder, trained",
    "learned": "a learned vector for each task",
}
STARTS = {
    "zero_update": "generated updates are exactly 0, their first factors as LoRA's; with biases",
    "fan_in": "variance scaling everywhere, no biases",
    "tiny": "normal, standard deviation 1e-7, biases 0",
}
FUSIONS = {
    "none": "encoder layers do not see the instruction",
    "pre_norm": "what looks is normalised, what is added starts at 0: the model itself at first",
    "post_norm": "the sum is normalised, as Eq. 1 of TAGI says",
}
MEMORIES = {"input": "the decoder sees the input", "concat": "the decoder sees the instruction, then the input"}
TRAINED: Mapping[str, Callable[[str], bool]] = {
    "nothing": lambda path: False,
    "norms and embeddings": lambda path: "norm" in path or "token_embedding" in path or "position" in path,
    "all": lambda path: True,
}
"""Says of a path below the base model's parameters whether it is trained."""
DIVISORS = {"none": "as it is", "input": "by the root of the network's input width", "rank": "`b` by the root of R"}
ACTIVATIONS = ("gelu", "relu", "silu")
NORMS = ("none", "layer_norm")
_NAMES = {"sharing": SHARING, "emits": EMITS, "start": STARTS, "divisor": DIVISORS} | {
    "activation": ACTIVATIONS,
    "norm": NORMS,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """The networks from a slot's vector to numbers.

    Attributes:
      sharing: a key of `SHARING`.
      emits: a key of `EMITS`.
      hidden: width of the hidden layer; 0 is the input's width.
      blocks: residual blocks between the hidden layer and the output.
      activation: one of `ACTIVATIONS`.
      norm: one of `NORMS`, of what was pooled.
      dropout: behind the hidden layer.
      divisor: a key of `DIVISORS`, what results are divided by.
      start: a key of `STARTS`.

    Raises:
      UnknownNameError: if a name is none of those.
      InputError: if a number is out of range.
    """

    sharing: str = "kind"
    emits: str = "matrices"
    hidden: int = 32
    blocks: int = 0
    activation: str = "gelu"
    norm: str = "layer_norm"
    dropout: float = 0.0
    divisor: str = "none"
    start: str = "zero_update"

    def __post_init__(self) -> None:
        for name, known in _NAMES.items():
            if getattr(self, name) not in known:
                raise unknown_name(f"{name} of a generator", getattr(self, name), known)
        if self.hidden < 0 or self.blocks < 0 or not 0 <= self.dropout < 1:
            raise InputError(
                f"generator: hidden {self.hidden}, blocks {self.blocks}, dropout {self.dropout}; expected at least 0, "
                "and dropout below 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HyperConfig:
    """A hypernetwork: from an instruction to what changes a model.

    Attributes:
      encoder: a key of `ENCODERS`.
      tasks: names of the tasks of a learned encoder, one row of its table for each.
      pooling: from an instruction's states to a vector, of each slot or of all.
      identity: a key of `IDENTITIES`.
      slot_stddev: spread of the slots' vectors at the start; None is 1 by the root of their width.
      generator: the networks.
      outputs: what is generated; `LoRA` for low-rank updates.
      fusion: a key of `FUSIONS`.
      memory: a key of `MEMORIES`.
      base: a key of `TRAINED`, what is trained of the model itself.

    Raises:
      UnknownNameError: if a name is none of those.
      InputError: if choices do not go together.

    Source: methods 1.12; choices 1-7 of methods 8.
    """

    encoder: str = "shared"
    tasks: Sequence[str] = ()
    pooling: Pooling = AttentionPooling()
    identity: str = "add"
    slot_stddev: float | None = 1.0
    generator: GeneratorConfig = GeneratorConfig()
    outputs: Sequence[Output] = (LoRA(rank=32, alpha=32.0),)
    fusion: str = "pre_norm"
    memory: str = "concat"
    base: str = "nothing"

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", tuple(self.outputs))
        if isinstance(self.tasks, str):
            raise InputError(f"hypernetwork: tasks are {self.tasks!r}; expected a list of names")
        object.__setattr__(self, "tasks", tuple(self.tasks))
        names = dict(encoder=ENCODERS, identity=IDENTITIES, fusion=FUSIONS, memory=MEMORIES, base=TRAINED)
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise unknown_name(f"{name} of a hypernetwork", getattr(self, name), known)
        for is_wrong, message in _conflicts(self):
            if is_wrong:
                raise InputError(f"hypernetwork: {message}")

    @property
    def lora(self) -> LoRA | None:
        """What the generated low-rank updates are made of; None if there are none."""
        return next((output for output in self.outputs if isinstance(output, LoRA)), None)


def _conflicts(config: HyperConfig) -> Sequence[tuple[bool, str]]:
    kinds = [type(output) for output in config.outputs]
    has_slots = isinstance(config.pooling, OF_SLOTS)
    return (
        (not kinds and config.fusion == "none" and config.memory == "input", "it changes nothing; give it outputs"),
        (len(set(kinds)) < len(kinds), f"outputs {[kind.__name__ for kind in kinds]}; expected each kind once"),
        (config.identity == "query" and not has_slots, "identity 'query' needs a pooling of slots, such as attention"),
        (config.encoder == "learned" and not config.tasks, "a learned encoder needs the names of its tasks"),
        (config.encoder != "learned" and bool(config.tasks), "tasks have names for a learned encoder alone"),
        (len(set(config.tasks)) < len(config.tasks), "tasks have the same name twice"),
        (
            config.encoder == "learned" and isinstance(config.pooling, TagiCodePooling),
            "TagiCodePooling reads an encoder's first layer, which learned vectors do not have",
        ),
        (
            config.lora is not None and config.lora.dropout > 0,
            "generated updates have no dropout of their own; set it to 0",
        ),
        (
            config.generator.emits == "rows" and config.identity == "index",
            "identity 'index' numbers matrices; use emits='matrices'",
        ),
    )
