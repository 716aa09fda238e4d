"""A model and the hypernetwork that adapts it, as one module: what is trained.

An instruction is encoded once, however many rows of a batch it belongs to; each row then uses what was made of its own.
Letters in shapes: U instructions, I instruction length, B rows, S source length, T target length, E width of an
instruction's states, V vocab.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.adapters.adaptation import Adaptation
from jaxmtl.adapters.hyper_config import TRAINED, HyperConfig, TagiCodePooling
from jaxmtl.adapters.hyper_network import Hypernetwork
from jaxmtl.adapters.instruction_fusion import InstructionFusion
from jaxmtl.adapters.lora import SCALINGS
from jaxmtl.adapters.slots import layout_of
from jaxmtl.models.encoder_decoder import EncoderDecoder
from jaxmtl.models.low_rank import COLLECTION as LORA
from jaxmtl.models.stack import OUTPUTS
from jaxmtl.models.trees import flat, nested
from jaxmtl.types import InputError


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
            self.tasks = nn.Embed(len(hyper.tasks), config.embed_dim)

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
            logits = base(inputs, decoder_inputs)
            self.adapt(instructions)
            return logits
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
        scale = 1.0 if lora is None else SCALINGS[lora.scaling](lora.alpha, lora.rank)
        kept = Adaptation(generated=generated, fusion=fusion, memory=None, mask=mask, scale=scale)
        return kept if self.hyper.memory == "input" else kept.with_memory(self._memory(states, kept))

    def _memory(self, states: jax.Array, kept: Adaptation) -> dict[str, jax.Array]:
        """Projects instructions [U, I, D] to what the cross-attentions, each changed as it says, see of them."""
        module, params = self._base()
        changed = kept.collections(jnp.arange(states.shape[0]))
        own = {LORA: changed[LORA]} if LORA in changed else {}
        key, value = module.apply({"params": params} | own, states, method="memory_keys")
        return {"key": key, "value": value}

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
            if instructions.shape[1] != 1:
                raise InputError(
                    f"this hypernetwork knows its tasks by name and reads one number for each; found rows of "
                    f"{instructions.shape[1]} ids: instructions are for other encoders"
                )
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
    read = model.base if reader is None else reader
    if isinstance(hyper.pooling, TagiCodePooling) and not isinstance(read, EncoderDecoder):
        raise InputError(
            f"hypernetwork: TagiCodePooling reads an encoder's layers, which {type(read).__name__} has not"
        )
    if hyper.memory == "concat" and reader is not None and reader.config.embed_dim != model.config.embed_dim:
        raise InputError(
            f"hypernetwork: states of width {reader.config.embed_dim} cannot stand in a memory of width "
            f"{model.config.embed_dim}; set memory to 'input' or read with a model of that width"
        )
