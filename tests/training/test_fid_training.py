"""Meta-training on supports through the loop: the loss is that of a plain loop, and a resumed run goes on exactly."""

import itertools

import jax
import numpy as np
import pytest
from test_with_feed import store  # noqa: F401, a fixture
from training_toy import Recorder, assert_trees_equal, tiny_t5, toy_run

from jaxmtl.checkpoints import CheckpointPolicy
from jaxmtl.evals.icl_format import Format
from jaxmtl.feed.supports import support_stream
from jaxmtl.models.shifting import shift_right
from jaxmtl.training.fid_objective import FusionLoss
from jaxmtl.training.loop import train
from jaxmtl.training.normalisers import batch_tokens
from jaxmtl.types import InputError

FORM = Format(query_token="<extra_id_9>")


def run_of(store, folder, **options):  # noqa: F811
    stream = support_stream(store, form=FORM, num_supports=4, num_queries=4, num_shapes=1)
    given = dict(
        stream=stream,
        task_names=stream.rows.names,
        module=tiny_t5(dropout_rate=0.0),
        objective=FusionLoss(),
        normaliser=batch_tokens,
        num_steps=3,
        log_every=1,
    )
    return toy_run(folder, **(given | options))


def plain_loss(module, params, batch):
    """Mean over target tokens, one query at a time, from states of unpadded supports put one behind the other."""
    apply = lambda *args, method: module.apply({"params": params}, *args, method=method)
    real = lambda row: row[row != 0][None]
    supports = [apply(real(row), method="encode")[0] for row in batch["support_inputs"]]
    total = 0.0
    for query, targets in zip(batch["inputs"], batch["targets"], strict=True):
        memory = np.concatenate([*supports, apply(real(query), method="encode")[0]])[None]
        logits = np.asarray(apply(shift_right(real(targets), 0), memory, None, method="decode"), np.float64)[0]
        own = targets[targets != 0]
        total += (np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(own)), own]).sum()
    return total / batch["loss_mask"].sum()


@pytest.mark.long
def test_the_loss_equals_a_plain_loop_and_a_resumed_run_goes_on(store, tmp_path):  # noqa: F811
    writer = Recorder()
    whole = train(run_of(store, tmp_path / "whole", writer=writer))
    first = train(run_of(store, tmp_path / "parts", num_steps=1, checkpoints=CheckpointPolicy(every=1)))
    logged = [values["train/loss"] for _, values in writer.lines if "train/loss" in values]
    second = next(itertools.islice(support_stream(store, form=FORM, num_supports=4, num_queries=4, num_shapes=1), 1, 2))
    params = jax.device_get(first.params)
    assert logged[1] == pytest.approx(plain_loss(tiny_t5(dropout_rate=0.0), params, second), rel=1e-5)
    resumed = train(run_of(store, tmp_path / "parts"))
    assert_trees_equal(resumed.params, whole.params)


def test_microbatches_are_refused(store, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="queries that share supports cannot be cut into microbatches"):
        train(run_of(store, tmp_path, num_microbatches=2))
