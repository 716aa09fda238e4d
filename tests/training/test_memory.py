"""Bytes on each device against hand computation; plans of models that no machine here could hold."""

import functools

import hypothesis.strategies as st
import jax
import pytest
from hypothesis import given
from training_toy import D, L, Tiny, V, toy_run

from jaxmtl.models import gpt, gpt_config, t5, t5_config
from jaxmtl.partitioning import make_mesh
from jaxmtl.training import loop, memory, planning, schedules
from jaxmtl.training.objectives import EncoderDecoderLoss
from jaxmtl.training.optim import adamw
from jaxmtl.training.planning import BatchShape
from jaxmtl.training.state import make_plan, num_parameters
from jaxmtl.training.step import train_step
from jaxmtl.types import InputError

COUNTS = 8  # bytes of AdamW's and the schedule's counts of steps, on every device
STEP_AND_KEY = 12


def plan_of(module, **axes):
    return make_plan(module, adamw, schedules.constant(rate=0.01), make_mesh(**axes))


def step_of(plan, num_microbatches=1):
    options = dict(objective=EncoderDecoderLoss(), num_tasks=3, num_microbatches=num_microbatches)
    return functools.partial(train_step, plan=plan, **options)


@pytest.mark.parametrize(
    "axes, vocab, embed, mlp",
    [
        (dict(data=8), V, D, D),
        (dict(data=1, fsdp=8), V, D // 8, D),
        (dict(data=1, tensor=8), V // 8, D, D // 8),
        (dict(data=2, fsdp=2, tensor=2), V // 2, D // 2, D // 2),
        (dict(data=1, fsdp=2, tensor=4), V // 4, D // 2, D // 4),
    ],
)
def test_the_state_takes_what_the_mesh_leaves_on_a_device(axes, vocab, embed, mlp):
    parameters = 4 * (vocab * embed + L * embed * mlp + embed)
    found = memory.state_memory(plan_of(Tiny(), **axes))
    assert found == memory.StateMemory(parameters=parameters, gradients=parameters, optimizer=2 * parameters + COUNTS)


@pytest.mark.parametrize("layout, per_row", [("grouped", 10 + 6 + 6 + 1), ("packed", 10 + 6 + 6 + 6)])
def test_a_step_takes_state_and_batch_and_more_with_every_row(layout, per_row):
    plan = plan_of(Tiny(), data=2, fsdp=2, tensor=2)
    state = memory.state_memory(plan)
    shape = functools.partial(BatchShape, source=10, target=6)
    batch = planning.abstract_batch(shape(rows=8, layout=layout), plan)
    assert batch["inputs"].shape == (8, 10) and batch["loss_mask"].shape == (8, 6)
    if layout == "packed":  # Tiny reads no packed rows
        assert batch["input_segments"].shape == (8, 10) and batch["task_ids"].shape == (8, 6)
        return
    found = planning.step_memory(step_of(plan), plan, shape(rows=8))
    assert found.arguments == state.parameters + state.optimizer + STEP_AND_KEY + 4 * 2 * per_row
    assert found.temporary > 0 and found.total == found.arguments + found.temporary + found.results
    parts = planning.step_memory(step_of(plan, num_microbatches=4), plan, shape(rows=512))
    assert parts.temporary < planning.step_memory(step_of(plan), plan, shape(rows=512)).temporary


@pytest.mark.long
def test_the_largest_batch_found_is_the_largest():
    plan = plan_of(Tiny(), data=2, fsdp=2, tensor=2)

    @functools.cache
    def total(rows):
        return planning.step_memory(step_of(plan), plan, BatchShape(rows=rows, source=10, target=6)).total

    sizes = [total(4 * count) for count in range(1, 6)]
    assert sizes == sorted(sizes) and sizes[-1] > sizes[0]
    for limit in (sizes[0] - 1, sizes[0], (sizes[2] + sizes[3]) // 2, sizes[3]):
        expected = max((4 * count for count, size in enumerate(sizes, 1) if size <= limit), default=0)
        assert planning.largest_batch(total, limit, 4) == expected


@given(
    growth=st.lists(st.integers(0, 1000), min_size=1, max_size=300), share=st.floats(0, 1), multiple=st.integers(1, 8)
)
def test_the_search_is_right_where_memory_grows_unevenly(growth, share, multiple):
    totals = [sum(growth[:end]) for end in range(len(growth) + 1)]
    total = lambda rows: totals[rows // multiple] if rows // multiple < len(totals) else totals[-1] + rows
    limit = share * totals[-1]
    found = planning.largest_batch(total, limit, multiple)
    assert found % multiple == 0 and total(found + multiple) > limit
    assert found == 0 or total(found) <= limit


@pytest.mark.parametrize("answer", [1, 2, 3, 40, 10_000])
def test_the_search_needs_few_tries_where_memory_grows_evenly(answer):
    tried = []
    found = planning.largest_batch(lambda rows: tried.append(rows) or 1e9 + 3e6 * rows, 1e9 + 3e6 * answer)
    assert found == answer and len(tried) == len(set(tried)) <= 8


@pytest.mark.parametrize(
    "module, parameters",
    [
        (t5.T5(t5_config.named_config("t5-v1.1-xxl")), 11_135_332_352),
        (gpt.GPT(gpt_config.named_config("opt-13b")), 12_853_473_280),
    ],
    ids=["T5-XXL", "OPT-13B"],
)
def test_the_largest_models_are_planned_without_allocating(module, parameters):
    before = sum(array.nbytes for array in jax.live_arrays())
    plan = plan_of(module, data=1, fsdp=4, tensor=2)
    found = memory.state_memory(plan)
    assert num_parameters(plan.shapes.params) == parameters
    assert 1 <= found.parameters / (4 * parameters / 8) < 1.002  # scales, biases and positions are split less
    assert found.optimizer == 2 * found.parameters + COUNTS
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 1000


@pytest.mark.parametrize(
    "shape, message",
    [
        (dict(rows=6, source=8, target=8), "6 rows does not split over data x fsdp = 4"),
        (dict(rows=4, source=0, target=8), "expected 1 or more"),
    ],
)
def test_batches_that_do_not_fit_the_mesh_are_refused(shape, message):
    with pytest.raises(InputError, match=message):
        planning.abstract_batch(BatchShape(**shape), plan_of(Tiny(), data=2, fsdp=2, tensor=2))


def test_a_training_tells_what_it_takes_also_from_kept_compilations(tmp_path):
    for steps in (1, 2):
        run = toy_run(tmp_path, num_steps=steps)
        compilation = loop.train(run).compilations[0]
        notes = "\n".join(run.writer.notes)
        assert "parameters 10.30 kB, gradients 10.30 kB, optimizer state 20.62 kB" in notes
        assert compilation.memory.arguments > 3 * 10_304
        assert f"{memory.readable(compilation.memory.temporary)} of activations and gradients" in notes


def test_bytes_are_told_in_a_unit_that_suits_them():
    shown = [memory.readable(size) for size in (0, 999, 1000, 1_392_107_520, 2.5e12)]
    assert shown == ["0 bytes", "999 bytes", "1.00 kB", "1.39 GB", "2.50 TB"]
