"""How far a hypernetwork is from its teachers: in what the models predict, and in the updates themselves.

Letters in shapes: B rows, T target length, V vocab, L layers, R rank.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmtl.adapters.lora import Adapter
from jaxmtl.models.trees import flat, nested, parent
from jaxmtl.types import InputError

Distance = Callable[[Any, Any], jax.Array]
"""Maps two collections of low-rank updates, leaves [L, B, in, R] and [L, B, R, out] with the scale in `b`, to [B]."""
_STACKED = 4  # axes of a leaf with layers


def divergence(teacher: jax.Array, student: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Computes τ² KL(teacher ‖ student) of each position, both softened by τ: 0 where they are equal, above elsewhere.

    The larger vocabulary is cut to the smaller: what is cut are rows that pad an embedding.

    Args:
      teacher: [B, T, V], logits.
      student: [B, T, V'], logits.
      temperature: τ.

    Returns:
      float32 [B, T], nats times τ².

    Source: methods 1.6, choice 27 of methods 8; Hinton et al. 2015 §2.1 for τ².
    """
    size = min(teacher.shape[-1], student.shape[-1])
    of_teacher, of_student = (
        jax.nn.log_softmax(logits[..., :size].astype(jnp.float32) / temperature) for logits in (teacher, student)
    )
    ratio = of_student - of_teacher
    # p (e^r - 1 - r) adds up to the divergence as well, and no term is below 0. Where e^r may overflow, p e^r = q.
    near = jnp.minimum(ratio, 1.0)
    p, q = jnp.exp(of_teacher), jnp.exp(of_student)
    terms = jnp.where(ratio > 1.0, q - p - p * ratio, p * (jnp.expm1(near) - near))
    return temperature**2 * jnp.sum(terms, axis=-1)


def standardised_divergence(teacher: jax.Array, student: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Computes `divergence` of logits that are standardised first, as TAGI's code does.

    Args and Returns: as `divergence`.

    Source: methods 1.6.
    """
    size = min(teacher.shape[-1], student.shape[-1])
    return divergence(standardised(teacher[..., :size]), standardised(student[..., :size]), temperature)


def standardised(logits: jax.Array) -> jax.Array:
    """Subtracts the mean over the vocabulary and divides by the spread.

    Args:
      logits: [B, T, V].

    Returns:
      float32 [B, T, V].

    Source: methods 1.6.
    """
    wide = logits.astype(jnp.float32)
    spread = jnp.std(wide, axis=-1, keepdims=True, ddof=1)
    return (wide - jnp.mean(wide, axis=-1, keepdims=True)) / (1e-7 + spread)


def update_distance(generated: Any, taught: Any) -> jax.Array:
    """Takes the mean square of the difference of two updates `a b`, however they are factored.

    No update is formed: with U = [a, -a'] and V = [b; b'] the sum of squares of U V is tr((UᵀU)(VVᵀ)).

    Args:
      generated: collection of generated updates.
      taught: collection of the teachers' updates; ranks may differ.

    Returns:
      float32 [B], mean over the numbers of each update, then over updates.

    Raises:
      InputError: if the two do not change the same layers.

    Source: methods 1.6.
    """
    left, right = _pairs(generated, taught)

    def of_layer(path: str) -> jax.Array:
        a = jnp.concatenate([left[f"{path}/a"], -right[f"{path}/a"]], axis=-1)
        b = jnp.concatenate([left[f"{path}/b"], right[f"{path}/b"]], axis=-2)
        inner = jnp.einsum("...ir,...is->...rs", a, a), jnp.einsum("...ro,...so->...rs", b, b)
        return _by_row(jnp.sum(inner[0] * inner[1], axis=(-2, -1))) / (a.shape[-2] * b.shape[-1])

    paths = sorted({parent(path) for path in left})
    return sum(map(of_layer, paths), jnp.zeros(())) / len(paths)


def factor_distance(generated: Any, taught: Any) -> jax.Array:
    """Takes the mean squares of the differences of the factors, `a` with `a` and `b` with `b`, and adds both.

    Args:
      generated: collection of generated updates.
      taught: collection of the teachers' updates, of the same rank.

    Returns:
      float32 [B], mean over updates.

    Raises:
      InputError: if the two do not change the same layers, or differ in rank.

    Source: TAGI's L_ins; methods 1.1 and 1.6 (correct pairs).
    """
    left, right = _pairs(generated, taught)
    return _of_factors(left, right, jnp.square)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScoredDistance:
    """The mean absolute difference of factors, each number divided by its spread over the teachers.

    Attributes:
      spread: collection without the axis B: the teachers' standard deviation of each number.

    Source: Text-to-LoRA's reconstruction, methods 1.11.
    """

    spread: Any

    def __call__(self, generated: Any, taught: Any) -> jax.Array:
        """Returns float32 [B]; arguments and errors as in `factor_distance`."""
        left, right = _pairs(generated, taught)
        spread = {path: jnp.expand_dims(leaf, -3) for path, leaf in flat(self.spread).items()}
        scored = lambda leaves: {path: leaf / spread[path] for path, leaf in leaves.items()}
        return _of_factors(scored(left), scored(right), jnp.abs)


def scored_distance(teachers: Sequence[Adapter], floor: float = 1e-6) -> ScoredDistance:
    """Measures the teachers' spread.

    Args:
      teachers: of one rank, for the same layers; at least two.
      floor: least spread of a number.

    Returns:
      The distance.

    Raises:
      InputError: if there are fewer than two.
    """
    if len(teachers) < 2:
        raise InputError(f"{len(teachers)} teacher has no spread; expected at least 2")
    leaves = [flat(teacher.collection()) for teacher in teachers]
    spread = {path: jnp.std(jnp.stack([one[path] for one in leaves]), axis=0) for path in leaves[0]}
    return ScoredDistance(spread=nested({path: jnp.maximum(leaf, floor) for path, leaf in spread.items()}))


DISTANCES: dict[str, Distance] = {"update": update_distance, "factors": factor_distance}
"""Distances of updates by name."""


def _pairs(generated: Any, taught: Any) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns the leaves of both, float32."""
    left, right = flat(generated), flat(taught)
    if set(left) != set(right):
        strays = sorted({parent(path) for path in set(left) ^ set(right)})
        raise InputError(
            f"teachers and hypernetwork do not change the same layers ({', '.join(strays[:3])}); train teachers with "
            "the targets of the hypernetwork"
        )
    wide = lambda leaves: {path: leaf.astype(jnp.float32) for path, leaf in leaves.items()}
    return wide(left), wide(right)


def _of_factors(
    left: dict[str, jax.Array], right: dict[str, jax.Array], measure: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    for path, leaf in left.items():
        if leaf.shape[-2:] != right[path].shape[-2:]:
            raise InputError(
                f"generated {path} has shape {leaf.shape[-2:]}, the teacher's {right[path].shape[-2:]}; factors of one"
                " rank can be compared, distance 'update' compares any"
            )
    means = [_by_row(jnp.mean(measure(leaf - right[path]), axis=(-2, -1))) for path, leaf in left.items()]
    return 2.0 * sum(means, jnp.zeros(())) / len(means)


def _by_row(values: jax.Array) -> jax.Array:
    """Averages [L, B] over layers; [B] is of a layer that is not stacked."""
    return jnp.mean(values, axis=0) if values.ndim == _STACKED - 2 else values
