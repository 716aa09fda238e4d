"""Which epoch of each fit was the best on the examples that it holds out, and which fits may stop.

Letters in shapes: N fits trained together.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmtl.training.early_stopping import Best, EarlyStopping, is_over, judge
from jaxmtl.training.fits import FitProgram, FitState

HeldLoss = Callable[[FitState, list[int]], np.ndarray]
"""Measures float32 [N], mean negative log-likelihood of held-out target tokens, of the fits in the given places."""


class BestEpochs:
    """Keeps the best adapter of each fit; what is kept of one does not depend on the others.

    Attributes:
      tree: the best adapters so far, leaves [N, ...]; None before the first epoch of any fit.
      losses: for each fit the held-out loss after each of its epochs, in nats.
      found: for each fit its best epoch, counted from 1.
    """

    def __init__(self, program: FitProgram, count: int, patience: int | None, held_loss: HeldLoss) -> None:
        """Starts before the first epoch.

        Args:
          program: what is fitted.
          count: number of fits N.
          patience: epochs in a row without a new best after which a fit stops; None never stops.
          held_loss: measures them.
        """
        self.rule = EarlyStopping(metric="held/loss", patience=patience)
        self.program, self.held_loss = program, held_loss
        self.tree: Any = None
        self.losses: list[list[float]] = [[] for _ in range(count)]
        self.found = [Best()] * count

    def after_epoch(self, state: FitState, slots: list[int]) -> list[int]:
        """Measures fits that have ended an epoch.

        Args:
          state: the fits.
          slots: their places.

        Returns:
          Places of those among them that may stop.
        """
        losses = self.held_loss(state, slots)
        better = np.zeros(len(self.found), bool)
        for slot in slots:
            self.losses[slot].append(float(losses[slot]))
            epoch = len(self.losses[slot])
            self.found[slot] = judge(self.rule, self.found[slot], epoch, {self.rule.metric: losses[slot]})
            better[slot] = self.found[slot].step == epoch
        kept = jax.tree.map(jnp.copy, state.tree) if self.tree is None else self.tree
        self.tree = self.program.replaced(kept, state.tree, better)
        return [slot for slot in slots if is_over(self.rule, self.found[slot])]

    def chosen(self, state: FitState) -> Any:
        """Returns the tree at the end, leaves [N, ...]: a fit's best adapter, or its last one if it holds nothing out.

        Args:
          state: the fits after their last steps; its memory is taken over.
        """
        is_best = np.array([one.step is not None for one in self.found])
        return self.program.replaced(state.tree, self.tree, is_best) if is_best.any() else state.tree
