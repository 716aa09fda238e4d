"""The loop with a hypernetwork: pretraining, terms in the log, checkpoints that go on."""

import functools

import jax
import numpy as np
import pytest
from hyper_toy import descent, random_adapters, random_like
from training_toy import TASKS, Recorder, ToyStream, assert_trees_equal, tiny_t5, toy_run

from jaxmtl.adapters.hyper_config import GeneratorConfig, HyperConfig
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.lora import LoRA
from jaxmtl.checkpoints import CheckpointPolicy
from jaxmtl.feed.instructions import SharedInstructions
from jaxmtl.models.trees import flat
from jaxmtl.partitioning import make_mesh
from jaxmtl.training import optim
from jaxmtl.training.hyper_groups import groups_of
from jaxmtl.training.hyper_objective import InstructedLoss
from jaxmtl.training.loop import train
from jaxmtl.training.teachers import AdaptedTeacher
from jaxmtl.types import InputError
from jaxmtl.weights import write_config
from jaxmtl.weights.hyper_io import load_hyper_run, write_hyper_config

CONFIG = HyperConfig(outputs=(LoRA(rank=2, alpha=2.0),), generator=GeneratorConfig(hidden=4))


def instructed(index, batch):
    """Three instructions, one for each task."""
    texts = np.array([[9, 8, 1, 0], [7, 1, 0, 0], [6, 5, 4, 1]], np.int32)
    return batch | {"instructions": texts[batch["task_ids"]]}


def module_of(**overrides):
    layers = dict(num_encoder_layers=1, num_decoder_layers=1, mlp_activations=("relu",), remat="none")
    return HyperModel(CONFIG, tiny_t5(**layers, **overrides))


def run_of(folder, **options):
    module = module_of()
    given = dict(
        module=module,
        objective=InstructedLoss(),
        stream=SharedInstructions(ToyStream(instructed), pad_id=0, multiple=4),
        optimizer=functools.partial(optim.adafactor, groups=groups_of(module.hyper)),
        mesh=make_mesh(data=1),
        num_steps=4,
    )
    return toy_run(folder, **(given | options))


@pytest.mark.long
def test_a_hypernetwork_trains_in_the_loop_and_a_resumed_run_is_the_unbroken_one(tmp_path):
    def breaks(index, batch):
        if index == 3:
            raise ConnectionError("the power went")
        return instructed(index, batch)

    def run(folder, change=instructed):
        writer, stream = Recorder(), SharedInstructions(ToyStream(change), pad_id=0, multiple=4)
        options = dict(writer=writer, stream=stream, checkpoints=CheckpointPolicy(every=2), log_every=4)
        return writer, lambda: train(run_of(tmp_path / folder, **options))

    writer, start = run("whole")
    whole = start()
    values = next(values for step, values in writer.lines if step == 4 and "train/loss" in values)
    assert values["train/term/target"] == pytest.approx(values["train/objective"])
    assert {f"train/task_term/target/{name}" for name in TASKS} <= set(values)
    module = run_of(tmp_path / "whole").module
    write_hyper_config(tmp_path / "whole", module.hyper, None)
    write_config(tmp_path / "whole" / "model", module.config)
    pretrained, hyper = load_hyper_run(tmp_path / "whole")
    assert_trees_equal(pretrained.params, whole.params["base"])
    assert_trees_equal(hyper.params, {part: tree for part, tree in whole.params.items() if part != "base"})
    with pytest.raises(ConnectionError):
        run("broken", breaks)[1]()
    again, start = run("broken")
    assert_trees_equal(start().params, whole.params)
    resumed = next(values for step, values in again.lines if step == 4 and "train/loss" in values)
    # Half of the interval was before the break: its terms were saved with the checkpoint.
    assert {name: value for name, value in resumed.items() if "term" in name} == {
        name: value for name, value in values.items() if "term" in name
    }


@pytest.mark.long
def test_rows_that_share_instructions_are_not_cut_into_microbatches(tmp_path):
    with pytest.raises(InputError, match="cannot be cut into microbatches"):
        train(run_of(tmp_path, num_microbatches=2))


@pytest.mark.long
def test_batches_of_one_shape_may_share_more_or_fewer_instructions(tmp_path):
    def change(index, batch):
        batch = instructed(index, batch)
        alike = np.repeat(batch["instructions"][:1], len(batch["inputs"]), axis=0)
        return batch | {"instructions": alike} if index % 2 else batch

    drawn = SharedInstructions(ToyStream(change), pad_id=0)
    counts = [len(next(drawn)["instructions"]) for _ in range(2)]
    assert counts[0] > counts[1]
    result = train(run_of(tmp_path, stream=SharedInstructions(ToyStream(change), pad_id=0)))
    assert (result.status, len(result.compilations)) == ("finished", 2)


def of_like_lengths(index, batch):
    """Rows 0 and 1, 2 and 3, and so on, which go to different microbatches, have targets of one length."""
    mask = np.repeat(batch["loss_mask"][::2], 2, axis=0)
    targets = np.where(mask > 0, np.maximum(batch["targets"], 2), 0)
    return instructed(index, batch | {"loss_mask": mask, "targets": targets})


@pytest.mark.long
def test_microbatches_of_rows_with_instructions_of_their_own_make_the_step_of_the_whole(tmp_path):
    module = module_of(dropout_rate=0.0)  # microbatches have dropout masks of their own
    # A microbatch knows its own tokens alone; the rows of L_ins weigh as in the whole batch where all have as many.
    teachers = random_adapters(module.base, CONFIG.lora, ("a", "", "b"))
    objective = InstructedLoss(teacher=AdaptedTeacher(adapters=teachers), updates=teachers)
    params = random_like(module, spread=0.15)

    def run(num_microbatches):
        writer = Recorder()
        options = dict(
            module=module,
            objective=objective,
            stream=ToyStream(of_like_lengths),
            optimizer=functools.partial(descent, hyper=CONFIG),
            num_microbatches=num_microbatches,
            pretrained=lambda mesh: params,
            num_steps=2,
            log_every=1,
            writer=writer,
        )
        after = train(run_of(tmp_path / str(num_microbatches), **options)).params
        lines = [values for _, values in writer.lines if "train/objective" in values]
        told = ("train/objective", "train/loss", "train/grad_norm", "train/term/", "train/task_term/")
        return jax.device_get(after), [
            {name: value for name, value in values.items() if name.startswith(told)} for values in lines
        ]

    (whole, history), (parts, same) = run(1), run(2)
    assert {"train/loss", "train/term/teacher", "train/term/update"} <= set(history[1])
    for ours, theirs in zip(same, history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    # Parameters are below 2 and rounded to 1e-7; those of the hypernetwork move hundreds of times as far as compared.
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6), parts, whole)
    moves = {path: np.abs(leaf - flat(params)[path]).max() for path, leaf in flat(whole).items()}
    assert min(move for path, move in moves.items() if not path.startswith("base/")) > 1e-4
