"""Many adapters trained at once become what each becomes alone, whatever their sizes, rates, dropout and devices."""

import dataclasses

import flax.linen as nn
import hypothesis
import jax
import numpy as np
import optax
import pytest
from hypothesis import strategies

from jaxmtl.adapters import rows
from jaxmtl.adapters.lora import LoRA
from jaxmtl.feed.shapes import Shapes
from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import GPT2Config
from jaxmtl.models.initial import initial_arguments
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.partitioning import make_mesh
from jaxmtl.training import fits
from jaxmtl.training.fit_rows import Fit, Row, RowBatches, row_batches, rows_of_step
from jaxmtl.training.fits import FitProgram
from jaxmtl.training.fitting import DivergedError, Schedule, fit_all, fit_each
from jaxmtl.training.objectives import EncoderDecoderLoss
from jaxmtl.training.tuning import LowRankTuning, WholeTuning
from jaxmtl.types import InputError

CONFIG = T5Config(
    vocab_size=40,
    embed_dim=12,
    num_heads=3,
    mlp_dim=20,
    head_dim=5,
    num_encoder_layers=1,
    num_decoder_layers=2,
    dropout_rate=0.1,
)
MODULE = T5(CONFIG)
LORA = LoRA(rank=3, alpha=6.0)
SCHEDULE = Schedule(epochs=2, batch_size=8, tokens=160, num_shapes=2)
TOLERANCE = 1e-5
"""Batches of other rows round sums in another order. Where a gradient is about 0 Adam makes much of its rounding: up to
a step of the rate, 1e-3."""


@pytest.fixture(scope="module")
def params():
    return nn.unbox(jax.jit(MODULE.init)(jax.random.key(0), **initial_arguments(MODULE))["params"])


def make_fit(number, count, rate=1e-3):
    draw = np.random.default_rng(number)
    ids = lambda low, high: draw.integers(2, 40, draw.integers(low, high)).tolist()
    texts = [(ids(3, 20), ids(1, 6)) for _ in range(count)]
    inputs, targets = zip(*texts, strict=True) if texts else ((), ())
    return Fit(name=f"task{number}", inputs=inputs, targets=targets, learning_rate=rate, seed=number)


FITS = [make_fit(0, 5), make_fit(1, 0), make_fit(2, 13, 3e-3), make_fit(3, 21)]


def assert_same(one, other):
    np.testing.assert_allclose(one.losses, other.losses, atol=TOLERANCE)
    np.testing.assert_allclose(one.held_losses, other.held_losses, atol=TOLERANCE)
    assert one.best_epoch == other.best_epoch
    for a, b in zip(jax.tree.leaves(one.learnt.tree), jax.tree.leaves(other.learnt.tree), strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE)


@pytest.mark.long
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_together_equals_alone(params, dropout):
    lora = dataclasses.replace(LORA, dropout=dropout)
    before = jax.tree.map(np.array, params)
    together = fit_all(MODULE, params, FITS, lora, SCHEDULE)
    for number in (0, 2):
        assert_same(together[number], fit_all(MODULE, params, [FITS[number]], lora, SCHEDULE)[0])
    assert [len(found.losses) for found in together] == [2, 0, 4, 6]
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def alone(params):
    return [fit_all(MODULE, params, [fit], LORA, SCHEDULE)[0] for fit in FITS]


@pytest.mark.long
@hypothesis.settings(max_examples=8, derandomize=True)
@hypothesis.given(strategies.lists(strategies.sampled_from(range(len(FITS))), min_size=2, max_size=4, unique=True))
def test_a_fit_does_not_depend_on_its_neighbours_or_its_place(params, alone, chosen):
    for number, found in zip(chosen, fit_all(MODULE, params, [FITS[n] for n in chosen], LORA, SCHEDULE), strict=True):
        assert_same(found, alone[number])


def test_matrices_alone_decay():
    optimizer = fits.AdamW(weight_decay=0.5)
    tree = {"norm": {"scale": np.full((2, 3), 2.0, np.float32)}, "wi": {"kernel": np.full((2, 3, 4), 2.0, np.float32)}}
    transform = optimizer.transform(jax.tree.map(lambda leaf: True, tree))
    still = jax.tree.map(np.zeros_like, tree)
    updates, _ = transform.update(still, transform.init(tree), tree)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0)
    np.testing.assert_array_equal(updates["wi"]["kernel"], 1.0)


def test_losses_fall(params):
    found = fit_all(MODULE, params, [make_fit(0, 8, 3e-2)], LORA, dataclasses.replace(SCHEDULE, epochs=8))[0]
    assert found.losses[-1] < found.losses[0] - 0.5


def holding(fit, number, count):
    """Gives a fit examples of another kind to hold out: learning soon makes their loss worse."""
    other = make_fit(number, count)
    return dataclasses.replace(fit, held_inputs=other.inputs, held_targets=other.targets)


HOLDING = [holding(make_fit(4, 6, 3e-2), 5, 4), make_fit(6, 5), holding(make_fit(7, 11, 1e-3), 8, 9)]
STOPPING = dataclasses.replace(SCHEDULE, epochs=9, patience=2, num_shapes=1)


@pytest.mark.long
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_fits_stop_together_as_they_do_alone_and_their_neighbours_go_on(params, dropout):
    lora = dataclasses.replace(LORA, dropout=dropout)
    together = fit_all(MODULE, params, HOLDING, lora, STOPPING)
    for number in (0, 2) if dropout else (0,):
        assert_same(together[number], fit_all(MODULE, params, [HOLDING[number]], lora, STOPPING)[0])
    assert len(together[0].held_losses) < 9 and len(together[0].losses) == len(together[0].held_losses)
    assert len(together[1].losses) == 9 and together[1].best_epoch is None and not len(together[1].held_losses)


def test_the_best_epoch_is_kept(params):
    """Fitting for just so many epochs gives the same adapter: rows, order and dropout of an epoch are the same."""
    found = fit_all(MODULE, params, [HOLDING[0]], LORA, STOPPING)[0]
    best = int(np.argmin(found.held_losses)) + 1
    assert found.best_epoch == best and len(found.held_losses) == min(9, best + 2)
    plain = dataclasses.replace(HOLDING[0], held_inputs=(), held_targets=())
    short = fit_all(MODULE, params, [plain], LORA, dataclasses.replace(SCHEDULE, epochs=best))[0]
    for a, b in zip(jax.tree.leaves(found.learnt.tree), jax.tree.leaves(short.learnt.tree), strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE)


def test_rows_of_fits_that_have_stopped_leave_the_batches(params, monkeypatch):
    slots, add = [], FitProgram.add
    watched = lambda self, params, state, sums, step, batch: (
        slots.append((step, set(batch["slots"][batch["loss_mask"].any(axis=1)].tolist()))),
        add(self, params, state, sums, step, batch),
    )[1]
    monkeypatch.setattr(FitProgram, "add", watched)
    told = []
    found = fit_all(MODULE, params, HOLDING[:2], LORA, STOPPING, progress=lambda *news: told.append(news))
    last = len(found[0].losses)
    assert last < 9
    for step, seen in slots:
        assert seen <= ({0, 1} if step < last else {1})
    assert told[-1][:2] == (9 + last, 9 + last)


@pytest.mark.long
def test_held_losses_are_means_over_the_held_target_tokens(params):
    """Learnt for no step at all, an adapter changes nothing: the held loss is the first loss of the same rows."""
    fit = dataclasses.replace(HOLDING[0], learning_rate=0.0)
    found = fit_all(MODULE, params, [fit], LORA, dataclasses.replace(SCHEDULE, epochs=1))[0]
    as_learnt = dataclasses.replace(fit, inputs=fit.held_inputs, targets=fit.held_targets)
    learnt = fit_all(MODULE, params, [as_learnt], LORA, dataclasses.replace(SCHEDULE, epochs=1))[0]
    np.testing.assert_allclose(found.held_losses, learnt.losses, rtol=1e-5)


@pytest.mark.long
def test_groups_and_batch_sizes_of_the_machine_change_nothing(params):
    lora = dataclasses.replace(LORA, dropout=0.3)
    together = fit_all(MODULE, params, FITS, lora, SCHEDULE)
    in_groups = dataclasses.replace(SCHEDULE, most_fits=2, tokens=90, num_shapes=1)
    for one, other in zip(together, fit_all(MODULE, params, FITS, lora, in_groups), strict=True):
        assert_same(one, other)


@pytest.mark.long
def test_many_devices_equal_one(params):
    lora = dataclasses.replace(LORA, dropout=0.3)
    mesh = make_mesh(data=3, fsdp=2, devices=jax.devices()[:6])  # some devices have no fit
    together = fit_all(MODULE, params, FITS, lora, SCHEDULE, mesh=mesh)
    for one, other in zip(together, fit_all(MODULE, params, FITS, lora, SCHEDULE), strict=True):
        assert_same(one, other)


def test_a_fit_without_examples_starts_as_it_would_and_changes_nothing(params):
    found = fit_all(MODULE, params, [make_fit(1, 0)], LORA, SCHEDULE)[0]
    assert len(found.losses) == 0
    leaves = rows.stack([found.learnt.tree])["encoder"]["attention"]["query"]
    assert np.abs(leaves["a"]).max() > 0 and not leaves["b"].any()


def test_the_gradient_is_the_mean_over_the_batchs_target_tokens(params):
    """The first loss is that of the plain model: all token losses of the batch, summed and divided by their number."""
    fit = make_fit(0, 5)
    found = fit_all(MODULE, params, [fit], LORA, dataclasses.replace(SCHEDULE, epochs=1))[0]
    inputs = np.zeros((5, 20), np.int32)
    targets = np.zeros((5, 6), np.int32)
    for row, (source, target) in enumerate(zip(fit.inputs, fit.targets, strict=True)):
        inputs[row, : len(source)], targets[row, : len(target)] = source, target
    decoder_inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    logits = jax.jit(MODULE.apply)({"params": params}, inputs, decoder_inputs)
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], axis=-1)[..., 0]
    total = -sum(chosen[row, : len(target)].sum() for row, target in enumerate(fit.targets))
    count = sum(map(len, fit.targets))
    np.testing.assert_allclose(found.losses, [total / count], rtol=1e-5)


@pytest.mark.long
def test_whole_models_follow_the_gradient_of_all_parameters(params):
    """Two steps of plain AdamW, written out with optax on the mean loss over the target tokens of all rows."""
    fits = [make_fit(0, 5), make_fit(2, 7)]
    schedule = dataclasses.replace(SCHEDULE, num_shapes=1)
    found = dict(fit_each(MODULE, params, fits, WholeTuning(), schedule))
    inputs, targets, mask = (np.zeros(shape, np.int32) for shape in ((5, 20), (5, 6), (5, 6)))
    for row, (source, target) in enumerate(zip(fits[0].inputs, fits[0].targets, strict=True)):
        inputs[row, : len(source)], targets[row, : len(target)], mask[row, : len(target)] = source, target, 1
    batch = dict(inputs=inputs, targets=targets, loss_mask=np.float32(mask / mask.sum()))
    loss = jax.jit(jax.value_and_grad(lambda own: EncoderDecoderLoss()(MODULE, {"params": own}, batch).objective.sum()))
    transform, own, losses = (
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.0)),
        params,
        [],
    )
    state = transform.init(own)
    for _ in range(2):
        value, grads = loss(own)
        updates, state = transform.update(grads, state, own)
        own = optax.apply_updates(own, updates)
        losses.append(value)
    np.testing.assert_allclose(found[0].losses, losses, atol=TOLERANCE)
    for a, b in zip(jax.tree.leaves(found[0].learnt), jax.tree.leaves(own), strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE)
    assert len(found[1].losses) == 2


def test_fits_that_diverge_are_named_and_the_others_become_what_they_become_alone(params):
    """An infinite rate spoils a fit's adapter at its first step, so its second loss is not finite."""
    wild = dataclasses.replace(make_fit(7, 9, rate=float("inf")), name="wild")
    told = []
    with pytest.raises(
        DivergedError, match=r"1 of 3 fits is not finite: wild \(step 2\); the others are done"
    ) as error:
        progress = lambda *news: told.append(news[:2])
        fit_all(MODULE, params, [FITS[0], wild, FITS[2]], LORA, SCHEDULE, progress=progress)
    found = error.value.found
    assert sorted(found) == [0, 2] and told[-1][0] == told[-1][1]
    for place, fit in ((0, FITS[0]), (2, FITS[2])):
        assert_same(found[place], fit_all(MODULE, params, [fit], LORA, SCHEDULE)[0])


def test_a_fit_that_diverges_at_its_last_step_is_named(params):
    once = dataclasses.replace(SCHEDULE, epochs=1)
    wild = dataclasses.replace(make_fit(7, 4, rate=float("inf")), name="wild")
    with pytest.raises(DivergedError, match=r"wild \(step 1\)") as error:
        fit_all(MODULE, params, [wild, FITS[0]], LORA, once)
    assert list(error.value.found) == [1]


@pytest.mark.long
def test_progress_counts_the_steps_of_all_fits(params):
    told = []
    fit_all(MODULE, params, FITS[:3], LORA, SCHEDULE, progress=lambda *news: told.append(news))
    assert told == [(2, 6, "fitting"), (4, 6, "fitting"), (5, 6, "fitting"), (6, 6, "fitting")]


@pytest.mark.parametrize(
    ("change", "message"),
    [(dict(epochs=-1), "epochs is -1"), (dict(batch_size=0), "batch_size is 0"), (dict(most_fits=0), "most_fits 0")],
)
def test_bad_schedules_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SCHEDULE, **change)


def test_a_mesh_that_splits_the_model_is_refused(params):
    with pytest.raises(InputError, match="tensor=2"):
        fit_all(MODULE, params, FITS, LORA, SCHEDULE, mesh=make_mesh(data=1, tensor=2))


def test_steps_take_every_example_once_an_epoch_and_keep_the_last_batch():
    steps = make_fit(3, 21).steps(2, 8)
    assert [len(step) for step in steps] == [8, 8, 5, 8, 8, 5]
    first, second = sum(steps[:3], []), sum(steps[3:], [])
    assert sorted(first) == sorted(second) == list(range(21)) and first != second


def test_every_row_is_in_one_batch_with_its_weight():
    fits = [make_fit(0, 5), make_fit(2, 13)]
    step = rows_of_step(fits, [fit.steps(1, 32) for fit in fits], 0)
    batches = list(RowBatches(Shapes(pairs=[(8, 8), (24, 8)]), (4, 3), 0).cut([step]))
    found = [
        (int(slot), int(place), batch["inputs"][row][batch["inputs"][row] != 0].tolist())
        for batch in batches
        for row, (slot, place) in enumerate(zip(batch["slots"], batch["places"], strict=True))
        if batch["loss_mask"][row].any()
    ]
    assert sorted(found) == sorted((row.slot, row.place, list(row.inputs)) for row in step)
    sums = np.zeros(2)
    for batch in batches:
        np.add.at(sums, batch["slots"], batch["loss_mask"].sum(axis=1))
    np.testing.assert_allclose(sums, 1.0, rtol=1e-6)


@hypothesis.given(strategies.data())
def test_no_row_is_lost_whatever_the_shapes(data):
    length = strategies.integers(1, 30)
    rows = data.draw(strategies.lists(strategies.tuples(length, length), min_size=1, max_size=40))
    lengths = np.array([*rows, (30, 30)])
    sizes = dict(tokens=data.draw(strategies.integers(1, 400)), most_rows=data.draw(strategies.integers(1, 20)))
    weight = data.draw(strategies.integers(1, 9))
    cost = lambda source, target: source * 3 + target * weight
    cutter = row_batches(lengths, **sizes, num_shapes=data.draw(strategies.integers(1, 6)), cost=cost, pad_id=0)
    shares = [
        [Row(0, place, [2] * source, [3] * target, 1.0) for place, (source, target) in enumerate(part)]
        for part in (rows[::2], rows[1::2])
    ]
    found = [0, 0]
    for batch in cutter.cut(shares):
        real = batch["loss_mask"].any(axis=1).reshape(2, -1)
        found = [count + part.sum() for count, part in zip(found, real, strict=True)]
    assert found == [len(share) for share in shares]


def test_a_wider_shape_takes_no_more_rows():
    """The last shapes hold more rows of a batch than the first that the rows were counted for."""
    shapes = Shapes(pairs=[(112, 8), (64, 40), (200, 16), (104, 96), (200, 96)])
    cutter = RowBatches(shapes, tuple(8192 // sum(pair) for pair in shapes.pairs), 0)
    lengths = [(110, 8)] * 20 + [(60, 40)] * 7 + [(100, 16)] * 30
    share = [Row(0, place, [2] * source, [3] * target, 1.0) for place, (source, target) in enumerate(lengths)]
    assert sum(batch["loss_mask"].any(axis=1).sum() for batch in cutter.cut([share])) == 57


def test_committed_parameters_compile_nothing_anew(params):
    placed = jax.device_put(params, jax.devices()[0])
    schedule = dataclasses.replace(SCHEDULE, num_shapes=1)
    fit_all(MODULE, placed, [FITS[2]], LORA, schedule)
    compiled = [function._cache_size() for function in (fits._add, fits._update)]
    fit_all(MODULE, placed, [FITS[2]], LORA, schedule)
    assert compiled == [function._cache_size() for function in (fits._add, fits._update)]


def test_texts_that_the_model_has_no_room_for_are_refused():
    sizes = dict(vocab_size=40, embed_dim=12, num_heads=3, mlp_dim=20, num_layers=1, max_positions=8)
    module = GPT(GPT2Config(**sizes, pad_id=0, eos_id=1))
    with pytest.raises(InputError, match="task0: row . has .* the model has room for 9 in all"):
        fit_all(module, {}, [make_fit(0, 5)], LORA, SCHEDULE)


def test_devices_get_their_own_rows_side_by_side():
    shares = [[Row(0, 0, [5, 6], [7], 1.0)], [Row(1, 0, [8], [9], 0.5), Row(0, 0, [5], [6], 0.5)]]
    (batch,) = RowBatches(Shapes(pairs=[(2, 1)]), (2,), 0).cut(shares)
    assert batch["inputs"].shape == (4, 2)
    assert batch["inputs"][0].tolist() == [5, 6] and batch["loss_mask"][:, 0].tolist() == [1.0, 0.0, 0.5, 0.5]


def test_a_start_depends_on_seed_and_name_alone(params):
    program = FitProgram(MODULE, LowRankTuning(LoRA(rank=2)))
    states = [program.start(params, fits).tree for fits in ([FITS[0], FITS[2]], [FITS[2]])]
    for both, alone in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(both[1], alone[0])


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_number_of_steps_counts_whatever_the_number_of_examples(steps):
    schedule = Schedule(steps=steps, batch_size=2)
    for count in (1, 4, 5):
        fit = Fit(name="a", inputs=[[1]] * count, targets=[[1]] * count, learning_rate=0.1)
        found = schedule.steps_of(fit)
        assert len(found) == steps
        assert found == fit.steps(8, 2)[:steps]
    assert schedule.steps_of(Fit(name="a", inputs=[], targets=[], learning_rate=0.1)) == []
