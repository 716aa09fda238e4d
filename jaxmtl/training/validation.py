"""The loss on held-out examples, in all and per task, without dropout."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxmtl.partitioning import RULES, Rules, batch_sharding, use_mesh
from jaxmtl.training.interval import task_means
from jaxmtl.training.objectives import EncoderDecoderLoss, Objective
from jaxmtl.training.prefetch import to_devices
from jaxmtl.training.step import LossSums, sum_rows
from jaxmtl.types import Batch, InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationLoss:
    """Measures the loss over one pass of batches; masked positions and filling rows do not count.

    Attributes:
      module: the model.
      batches: starts a new pass and returns it.
      task_names: N names by task id.
      name: prefix of the metrics.
      every: steps between two runs.
      objective: scores a batch.
      rules: logical axis to mesh axis.
    """

    module: nn.Module
    batches: Callable[[], Iterable[Batch]]
    task_names: Sequence[str]
    name: str = "validation"
    every: int = 1000
    objective: Objective = EncoderDecoderLoss()
    rules: Rules = RULES

    def run(self, params: Any, step: int) -> dict[str, float]:
        """Runs one pass.

        Args:
          params: parameter tree on a mesh.
          step: not used.

        Returns:
          `loss` in nats per target token over all tokens, `task_mean_loss` (mean over tasks of their losses) and
          `task_loss/NAME`.

        Raises:
          InputError: if the pass holds no target token.
        """
        mesh = jax.tree.leaves(params)[0].sharding.mesh
        sharding = batch_sharding(mesh)
        tasks = np.zeros((2, len(self.task_names)))
        with use_mesh(mesh, self.rules):
            for batch in self.batches():
                sums = _score(params, to_devices(batch, sharding), self.module, self.objective, len(self.task_names))
                tasks += np.stack([jax.device_get(sums.task_loss), jax.device_get(sums.task_tokens)])
        if not tasks[1].any():
            raise InputError(f"evaluation {self.name!r}: no target tokens; its split is empty")
        means = task_means(tasks, self.task_names)
        values = {
            "loss": float(tasks[0].sum() / tasks[1].sum()),
            "task_mean_loss": float(np.mean(list(means.values()))),
        }
        return values | {f"task_loss/{name}": value for name, value in means.items()}


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _score(
    params: Any, batch: Mapping[str, jax.Array], module: nn.Module, objective: Objective, num_tasks: int
) -> LossSums:
    return sum_rows(objective(module, {"params": params}, batch, dropout_key=None), batch["task_ids"], num_tasks)
