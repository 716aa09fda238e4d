import flax.linen as nn
import jax
import numpy as np
import pytest
from training_toy import TASKS, Tiny, make_batch

from jaxmtl.models.shifting import shift_right
from jaxmtl.partitioning import make_mesh, replicated
from jaxmtl.training.validation import ValidationLoss
from jaxmtl.types import InputError

BATCHES = [make_batch(index) for index in range(3)]


def tiny_params(mesh):
    tokens = np.zeros((1, 1), np.int32)
    params = nn.unbox(Tiny().init(jax.random.key(0), tokens, tokens)["params"])
    return jax.device_put(params, replicated(mesh))


def by_hand(params):
    """Returns loss sums and token sums per task, row by row in float64."""
    sums = np.zeros((2, len(TASKS)))
    for batch in BATCHES:
        logits = Tiny().apply({"params": params}, batch["inputs"], shift_right(batch["targets"], 0))
        logits = np.asarray(logits, np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = -np.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]
        for row, task in enumerate(batch["task_ids"]):
            sums[:, task] += (picked[row] * batch["loss_mask"][row]).sum(), batch["loss_mask"][row].sum()
    return sums


@pytest.mark.parametrize("axes", [dict(data=1), dict(data=4, tensor=2)], ids=str)
def test_losses_per_task_are_those_computed_row_by_row(axes):
    params = tiny_params(make_mesh(**axes))
    values = ValidationLoss(module=Tiny(), batches=lambda: BATCHES, task_names=TASKS).run(params, 0)
    sums = by_hand(jax.device_get(params))
    assert values["loss"] == pytest.approx(sums[0].sum() / sums[1].sum(), rel=1e-5)
    assert values["task_mean_loss"] == pytest.approx((sums[0] / sums[1]).mean(), rel=1e-5)
    for index, task in enumerate(TASKS):
        assert values[f"task_loss/{task}"] == pytest.approx(sums[0, index] / sums[1, index], rel=1e-5)


def test_an_empty_pass_is_an_error():
    evaluation = ValidationLoss(module=Tiny(), batches=list, task_names=TASKS, name="seen")
    with pytest.raises(InputError, match="seen"):
        evaluation.run(tiny_params(make_mesh(data=1)), 0)
