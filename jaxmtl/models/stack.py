"""Stacks equal layers under one scan, so that compile time does not grow with depth, and takes stacks apart again."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmtl.models import bottleneck, instruction, low_rank, prefix
from jaxmtl.models.remat import REMAT_POLICIES
from jaxmtl.models.turned import with_turned_kernels

ADAPTATIONS = (low_rank.COLLECTION, prefix.COLLECTION, bottleneck.COLLECTION, instruction.FUSION, instruction.MEMORY)
"""Collections that change what layers do, if they are there."""
OUTPUTS = "intermediates"
"""The collection in which encoder layers leave what they give, if whoever applies the model makes it mutable."""


def unrolled_on_cpus(module: nn.Module) -> nn.Module:
    """Unrolls a model's layers where it runs on CPUs: a scan copies what each layer reads and keeps.

    That takes an eighth of a step of small batches, and a quarter of a step of decoding; compiling takes longer.

    Args:
      module: a model whose config has `scan_unroll`.

    Returns:
      The same model, its parameters in the same places.
    """
    if jax.default_backend() != "cpu":
        return module
    config: Any = module.config  # type: ignore[attr-defined]
    return type(module)(dataclasses.replace(config, scan_unroll=0))


def stack_layers(layer: type[nn.Module], config: Any, num_layers: int, in_axes: Any = nn.broadcast) -> nn.Module:
    """Stacks copies of a layer; their parameters, and adapters, lie along axis 0, named "layers".

    Args:
      layer: a module with the one attribute `config`, whose `__call__(carry, train, ...)` returns the new carry and one
        output per layer (or None).
      config: has `remat` and `scan_unroll`.
      num_layers: number of copies.
      in_axes: of what `__call__` takes besides the carry, as `nn.scan` wants it: by default it is the same for all
        layers.

    Returns:
      The stack.
    """
    if config.remat != "none":
        layer = nn.remat(layer, policy=REMAT_POLICIES[config.remat], prevent_cse=False, static_argnums=(2,))
    return _stacked(layer, config, num_layers, {"__call__": in_axes})(config)


def _stacked(layer: type[nn.Module], config: Any, num_layers: int, methods: Mapping[str, Any]) -> type[nn.Module]:
    """Makes the class of a stack; `methods` are the `in_axes` of its methods by name."""
    scan: dict[str, Any] = dict(
        variable_axes=dict.fromkeys(("params", *ADAPTATIONS, OUTPUTS), 0),
        variable_broadcast=False,
        split_rngs={"params": True, "dropout": True},
        length=num_layers,
        unroll=config.scan_unroll or num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    options: Any = {name: scan | dict(in_axes=axes) for name, axes in methods.items()}
    return nn.scan(layer, methods=options)


def pieces(tree: Any, config: Any) -> tuple[Any, ...]:
    """Cuts what lies along the layers of a stack into the pieces that run one after the other.

    Where all layers are unrolled each is a piece. A loop of many steps wants parameters and caches so: from stacked
    ones every step would first copy each layer's.

    Args:
      tree: arrays [layers, ...], of a stack's variables or of caches.
      config: has `scan_unroll`.

    Returns:
      The trees of single layers [...], or one of all layers [layers, ...].
    """
    if config.scan_unroll:
        return (tree,)
    num_layers = jax.tree.leaves(tree)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, number=number: leaf[number], tree) for number in range(num_layers))


def step_pieces(variables: Any, config: Any) -> tuple[Any, ...]:
    """Cuts a stack's variables into `pieces` for steps of few rows.

    Args:
      variables: of a stack.
      config: has `scan_unroll`.

    Returns:
      The pieces; those of single layers have turned kernels where that is faster.
    """
    found = pieces(variables, config)
    return found if config.scan_unroll else tuple(map(with_turned_kernels, found))


def stacked(parts: Sequence[Any], config: Any) -> Any:
    """Puts `pieces` together again; returns a tree of arrays [layers, ...]."""
    return parts[0] if config.scan_unroll else jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


def run_pieces(
    layer: type[nn.Module],
    config: Any,
    method: str,
    variables: Sequence[Any],
    carry: Any,
    known: Sequence[Any],
    *shared: Any,
) -> tuple[Any, tuple[Any, ...]]:
    """Calls a method of all layers of a stack that was taken apart; it is not rematerialised.

    Args:
      layer: the layer, as in `stack_layers`.
      config: the model's config.
      method: name of a method of `(carry, known, *shared)` that returns the new carry and an output.
      variables: `pieces` of the stack's variables.
      carry: what the first layer gets.
      known: `pieces` of what each layer gets of its own.
      *shared: what all layers get.

    Returns:
      What the last layer gives, and `pieces` of the outputs.
    """
    module: Any = layer(config, parent=None)
    if config.scan_unroll:
        num_layers = jax.tree.leaves(variables)[0].shape[0]
        in_axes = {method: (0, *[nn.broadcast] * len(shared))}
        module = _stacked(layer, config, num_layers, in_axes)(config, parent=None)
    outputs = []
    for own_variables, own in zip(variables, known, strict=True):
        carry, output = module.apply(own_variables, carry, own, *shared, method=method)
        outputs.append(output)
    return carry, tuple(outputs)
