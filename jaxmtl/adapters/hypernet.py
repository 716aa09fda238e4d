"""The hypernetwork: instructions in, adapters out, and the model that they change.

An instruction is encoded once, however many rows of a batch it belongs to; each row then uses what was made of its own.
Letters in shapes: U instructions, I instruction length, B rows, S source length, T target length, L layers, N slots, E
width of what was pooled, D embed, V vocab.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxmtl.adapters import rows
from jaxmtl.adapters.generators import Generator
from jaxmtl.adapters.hyper_config import (
    TRAINED,
    AttentionPooling,
    DecoderPooling,
    HyperConfig,
    MeanPooling,
    TagiCodePooling,
)
from jaxmtl.adapters.instruction_fusion import InstructionFusion
from jaxmtl.adapters.lora import scaled
from jaxmtl.adapters.pooling import CrossAttention, PoolingDecoder, TagiCodePool, masked_mean
from jaxmtl.adapters.slots import Layout, Leaf, Slots, layout_of
from jaxmtl.models.encoder_decoder import EncoderDecoder
from jaxmtl.models.instruction import FUSION, MEMORY
from jaxmtl.models.layers import normal, parameter
from jaxmtl.models.low_rank import COLLECTION as LORA
from jaxmtl.models.stack import OUTPUTS
from jaxmtl.models.trees import flat, nested
from jaxmtl.types import InputError


@flax.struct.dataclass
class Adaptation:
    """All that U instructions do to a model: computed once for each, kept as long as it is used.

    Attributes:
      generated: trees by collection; leaves [U, L, rows, width], without L where layers are not stacked. Low-rank
        updates are without their scale.
      fusion: what encoder layers look at, see `InstructionFusion`; None if they do not look.
      states: [U, I, D], what the decoder's memory begins with; None if it does not.
      mask: bool [U, I], True on the instructions' real tokens.
      scale: the factor on low-rank products.
    """

    generated: dict[str, Any]
    fusion: dict[str, Any] | None
    states: jax.Array | None
    mask: jax.Array
    scale: float = flax.struct.field(pytree_node=False, default=1.0)

    def collections(self, index: jax.Array) -> dict[str, Any]:
        """Gives each row what its instruction became.

        Args:
          index: int32 [B], the instruction of each row.

        Returns:
          The collections that a model reads beside its parameters.
        """
        trees = {name: rows.collection(rows.take(tree, index)) for name, tree in self.generated.items()}
        if LORA in trees:
            trees[LORA] = scaled(trees[LORA], self.scale)
        if self.fusion is not None:
            num_layers = self.fusion["mask"].shape[0]
            trees[FUSION] = {"encoder": self.fusion | {"index": jnp.broadcast_to(index, (num_layers, *index.shape))}}
        if self.states is not None:
            trees[MEMORY] = {"states": self.states, "mask": self.mask, "index": index}
        return trees


class Hypernetwork(nn.Module):
    """From the states of instructions to the leaves of their adapters.

    Attributes:
      config: what it is made of.
      layout: what is generated.
      num_heads: heads of pooling.
      head_dim: their width.
    """

    config: HyperConfig
    layout: Layout
    num_heads: int
    head_dim: int

    @nn.compact
    def __call__(self, states: jax.Array, first: jax.Array | None, mask: jax.Array, *, train: bool) -> dict[str, Any]:
        """Generates.

        Args:
          states: [U, I, E], an encoder's last states.
          first: [U, I, E], those of its first layer; only for `TagiCodePooling`.
          mask: bool [U, I], True on real tokens.
          train: applies dropout (needs the rng "dropout").

        Returns:
          Trees by collection, leaves float32 [U, L, ...].
        """
        table = self._table(states.shape[-1])
        pooled = self._pooled(table, states, first, mask)
        leaves: dict[str, dict[str, jax.Array]] = {}
        for name, members in self.layout.groups:
            for number, made in zip(members, self._made(name, members, pooled, table, train=train), strict=True):
                leaf = self.layout.leaves[number]
                leaves.setdefault(leaf.collection, {})[leaf.full_name] = made
        return {collection: nested(of_collection) for collection, of_collection in leaves.items()}

    def _table(self, width: int) -> jax.Array | None:
        """Returns the slots' vectors [N, E]; None if nothing reads them."""
        pools_slots = isinstance(self.config.pooling, AttentionPooling | DecoderPooling)
        if not pools_slots and self.config.identity != "add":
            return None
        stddev = width**-0.5 if self.config.slot_stddev is None else self.config.slot_stddev
        return parameter(self, "slots", normal(stddev), ("slots", "embed"), (self.layout.num_slots, width))

    def _pooled(self, table: Any, states: jax.Array, first: Any, mask: jax.Array) -> jax.Array:
        """Returns [U, N, E], or [U, 1, E] if slots share what was pooled."""
        sizes = (self.num_heads, self.head_dim, states.shape[-1])
        match self.config.pooling:
            case AttentionPooling():
                return CrossAttention(*sizes, name="pooling")(table, states, mask)
            case DecoderPooling(num_layers=num_layers):
                return PoolingDecoder(num_layers, *sizes, name="pooling")(table, states, mask)
            case MeanPooling():
                return masked_mean(states, mask)[:, None]
            case TagiCodePooling(width=width):
                return TagiCodePool(width, name="pooling")(states, first)[:, None]

    def _made(self, name: str, members: tuple[int, ...], pooled: jax.Array, table: Any, *, train: bool) -> Any:
        """Yields what one network makes of each of its leaves' slots."""
        config, leaves = self.config.generator, [self.layout.leaves[number] for number in members]
        slots = [self.layout.slots[number] for number in members]
        x = _arranged([self._features(pooled, one) for one in slots], config.sharing)
        identity = None
        if self.config.identity == "add":
            identity = _arranged([_of_slots(table[None], one) for one in slots], config.sharing)[0]
        copies = x.shape[1] if config.sharing in ("layer", "trunk") else 0
        whole = config.emits == "matrices"
        network = Generator(
            config,
            leaves[0].width * (leaves[0].rows if whole else 1),
            leaves[0].width,
            0 if config.sharing == "trunk" else copies,
            copies,
            leaves[0].is_update,
            name=name,
        )
        made = network(x, identity, train=train) / _divisor(config.divisor, leaves[0], x.shape[-1])
        for leaf, one, vectors in zip(leaves, slots, _parted(made, slots, config.sharing), strict=True):
            yield _stored(vectors.reshape(vectors.shape[0], one.num_layers, one.per_layer, -1), leaf, is_whole=whole)

    def _features(self, pooled: jax.Array, slots: Slots) -> jax.Array:
        """Returns what is known of slots, [U, L, slots of a layer, E]."""
        x = _of_slots(pooled, slots)
        if self.config.identity != "index":
            return x
        number = slots.siblings * jnp.arange(slots.num_layers) + slots.place
        feature = jnp.broadcast_to(number[None, :, None, None].astype(x.dtype), (*x.shape[:-1], 1))
        return jnp.concatenate([x, feature], axis=-1)


class HyperModel(nn.Module):
    """A model and the hypernetwork that adapts it.

    Attributes:
      hyper: what the hypernetwork is made of.
      base: the model that is adapted.
      reader: the model whose encoder reads instructions; None if it is the base itself, or tasks are learned.
    """

    hyper: HyperConfig
    base: nn.Module
    reader: nn.Module | None = None

    def setup(self) -> None:
        """Creates the hypernetwork, and the fusion of encoder layers if there is any."""
        hyper, config = self.hyper, self.config
        _check(self)
        layout = layout_of(self.base.clone(parent=None), hyper.outputs, hyper.generator)
        self.network = Hypernetwork(hyper, layout, config.num_heads, config.head_dim)
        if hyper.fusion != "none":
            self.fusion = InstructionFusion(
                config.num_encoder_layers, config.embed_dim, config.num_heads, config.head_dim, hyper.fusion
            )
        if hyper.encoder == "learned":
            self.tasks = nn.Embed(hyper.num_tasks, config.embed_dim)

    @property
    def config(self) -> Any:
        """The base model's config."""
        base: Any = self.base
        return base.config

    def __call__(
        self,
        inputs: jax.Array,
        decoder_inputs: jax.Array,
        instructions: jax.Array,
        instruction_index: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Scores every target position with the model that each row's instruction makes.

        Args:
          inputs: int32 [B, S].
          decoder_inputs: int32 [B, T].
          instructions: int32 [U, I]; numbers of tasks [U, 1] if those are learned.
          instruction_index: int32 [B], the instruction of each row; None if each row has its own, U = B.
          train: applies dropout (needs the rng "dropout").

        Returns:
          float32 [B, T, V], logits.
        """
        base: Any = self.base
        if self.is_initializing():
            self.adapt(instructions)
            return base(inputs, decoder_inputs)
        index = jnp.arange(inputs.shape[0]) if instruction_index is None else instruction_index
        adaptation = self.adapt(instructions, train=train)
        return self.answer(adaptation.collections(index), inputs, decoder_inputs, train=train)

    def adapt(self, instructions: jax.Array, mask: jax.Array | None = None, *, train: bool = False) -> Adaptation:
        """Computes what instructions do.

        Args:
          instructions: as in `__call__`.
          mask: bool [U, I], True on real tokens; all but padding if None.
          train: applies the hypernetwork's dropout; instructions are always read without.

        Returns:
          The adaptation.
        """
        states, first, mask = self._read(instructions, mask)
        fusion = self.fusion(states, mask) if self.hyper.fusion != "none" else None
        generated = self.network(states, first, mask, train=train)
        lora = self.hyper.lora
        return Adaptation(
            generated=generated,
            fusion=fusion,
            states=states if self.hyper.memory == "concat" else None,
            mask=mask,
            scale=1.0 if lora is None else lora.alpha / lora.rank,
        )

    def answer(
        self, collections: dict[str, Any], inputs: jax.Array, decoder_inputs: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Applies the base model with what `Adaptation.collections` gave; arguments and result as in `__call__`."""
        module, params = self._base()
        rngs = {"dropout": self.make_rng("dropout")} if train else None
        return module.apply({"params": params} | collections, inputs, decoder_inputs, train=train, rngs=rngs)

    def first_tokens(self, inputs: jax.Array, input_mask: jax.Array | None = None) -> jax.Array:
        """Returns int32 [B], what precedes the first target."""
        base: Any = self.base
        return base.first_tokens(inputs, input_mask)

    def _base(self) -> tuple[Any, Any]:
        """Returns the base model and its parameters, through which gradients flow where it is trained."""
        module, variables = self.base.unbind()
        is_trained = TRAINED[self.hyper.base]
        leaves = flat(variables["params"])
        kept = {path: leaf if is_trained(path) else jax.lax.stop_gradient(leaf) for path, leaf in leaves.items()}
        return module, nested(kept)

    def _read(self, instructions: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        """Returns states [U, I, E], those of the first layer if they are asked for, and the mask bool [U, I]."""
        if self.hyper.encoder == "learned":
            return self.tasks(instructions), None, jnp.ones(instructions.shape, bool)
        own: Any = self.base if self.reader is None else self.reader
        mask = jnp.asarray(own.real(instructions, mask))
        if self.is_initializing():
            own.states(instructions, mask)
        module, params = self._base() if self.reader is None else _unbound(own)
        wants_first = isinstance(self.hyper.pooling, TagiCodePooling)
        mutable = [OUTPUTS] if wants_first else []
        read = dict(method="states", mutable=mutable)
        states, left = module.apply({"params": params}, instructions, mask, **read)
        first = left[OUTPUTS]["encoder"]["states"][0][0] if wants_first else None
        if self.hyper.encoder == "frozen":
            states, first = jax.lax.stop_gradient((states, first))
        return states, first, mask


def _unbound(module: nn.Module) -> tuple[Any, Any]:
    alone, variables = module.unbind()
    return alone, variables["params"]


def _check(model: HyperModel) -> None:
    """Refuses choices that the models at hand cannot follow."""
    hyper, own = model.hyper, model.hyper.encoder in ("shared", "learned")
    if own != (model.reader is None):
        wanted = "none" if own else "one"
        raise InputError(f"hypernetwork: encoder {hyper.encoder!r} takes {wanted} as reader of instructions")
    if not isinstance(model.base, EncoderDecoder):
        name = type(model.base).__name__
        for field, needs in (("fusion", hyper.fusion != "none"), ("memory", hyper.memory != "input")):
            if needs:
                plain = "none" if field == "fusion" else "input"
                raise InputError(f"hypernetwork: {name} has no encoder beside its decoder; set {field} to {plain!r}")
    reader: Any = model.reader
    if hyper.memory == "concat" and reader is not None and reader.config.embed_dim != model.config.embed_dim:
        raise InputError(
            f"hypernetwork: states of width {reader.config.embed_dim} cannot stand in a memory of width "
            f"{model.config.embed_dim}; set memory to 'input' or read with a model of that width"
        )


def _of_slots(vectors: jax.Array, slots: Slots) -> jax.Array:
    """Returns [U, L, slots of a layer, E] of vectors [U, N, E], or of one [U, 1, E] that all share."""
    shape = (vectors.shape[0], slots.num_layers, slots.per_layer, vectors.shape[-1])
    if vectors.shape[1] == 1 and slots.stop > 1:
        return jnp.broadcast_to(vectors[:, :, None], shape)
    return vectors[:, slots.start : slots.stop].reshape(shape)


def _arranged(features: list[jax.Array], sharing: str) -> jax.Array:
    """Puts the slots of several leaves side by side: [U, G, M, E], G being what has networks of its own."""
    if sharing == "layer":
        return jnp.concatenate(features, axis=2)
    flattened = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in features]
    together = jnp.concatenate(flattened, axis=1)
    return together[:, :, None] if sharing == "trunk" else together[:, None]


def _parted(made: jax.Array, slots: list[Slots], sharing: str) -> list[jax.Array]:
    """Undoes `_arranged`: what each leaf's slots became, the axes behind U in any shape."""
    if sharing == "layer":
        stops, axis = [one.per_layer for one in slots], 2
    else:
        stops, axis = [one.num_layers * one.per_layer for one in slots], 1 if sharing == "trunk" else 2
    ends = [sum(stops[: number + 1]) for number in range(len(stops) - 1)]
    return jnp.split(made, ends, axis=axis)


def _stored(vectors: jax.Array, leaf: Leaf, *, is_whole: bool) -> jax.Array:
    """Turns [U, L, slots of a layer, W] into a leaf, float32 [U, L, ...]."""
    if is_whole:
        stored = vectors.reshape(*vectors.shape[:2], *leaf.shape)
    else:
        stored = jnp.swapaxes(vectors, -1, -2) if leaf.is_turned else vectors
    stored = stored.astype(jnp.float32)
    return stored if leaf.num_layers else stored[:, 0]


def _divisor(name: str, leaf: Leaf, width: int) -> float:
    """Returns what a network's results are divided by."""
    if name == "input":
        return width**0.5
    return leaf.rows**0.5 if name == "rank" and leaf.name == "b" else 1.0
