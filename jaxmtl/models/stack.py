"""Stacks equal layers under one scan, so that compile time does not grow with depth."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxmtl.models import bottleneck, instruction, low_rank, prefix
from jaxmtl.models.remat import REMAT_POLICIES

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


def stack_layers(
    layer: type[nn.Module], config: Any, num_layers: int, further_methods: Mapping[str, Any] | None = None
) -> nn.Module:
    """Stacks copies of a layer; their parameters, and adapters, lie along axis 0, named "layers".

    Args:
      layer: a module with the one attribute `config`, whose `__call__(carry, train, ...)` returns the new carry and one
        output per layer (or None); what it takes besides the carry is the same for all layers.
      config: has `remat` and `scan_unroll`.
      num_layers: number of copies.
      further_methods: `nn.scan`'s `in_axes` of other methods to call over all layers, by name; these are not
        rematerialised.

    Returns:
      The stack.
    """
    if config.remat != "none":
        layer = nn.remat(layer, policy=REMAT_POLICIES[config.remat], prevent_cse=False, static_argnums=(2,))
    scan: dict[str, Any] = dict(
        variable_axes=dict.fromkeys(("params", *ADAPTATIONS, OUTPUTS), 0),
        variable_broadcast=False,
        split_rngs={"params": True, "dropout": True},
        length=num_layers,
        unroll=config.scan_unroll or num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    in_axes = {"__call__": nn.broadcast, **(further_methods or {})}
    methods: Any = {name: scan | dict(in_axes=axes) for name, axes in in_axes.items()}
    return nn.scan(layer, methods=methods)(config)
