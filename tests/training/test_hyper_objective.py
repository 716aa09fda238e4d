"""The objective of hypernetworks: its terms by hand, who is covered, and what training moves."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hyper_toy import BASE, LAYERS, LORA, SIZES, T5_CONFIG, random_like, toy

from jaxmtl.adapters.distill import divergence, update_distance
from jaxmtl.adapters.hyper_config import GeneratorConfig, HyperConfig
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.lora import init_adapter
from jaxmtl.feed.instructions import NumberedTasks, joined_ids
from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.models.gpt_config import OPTConfig
from jaxmtl.models.trees import flat
from jaxmtl.partitioning import make_mesh
from jaxmtl.training import optim
from jaxmtl.training.given import taken_apart
from jaxmtl.training.hyper_groups import groups_of, parameter_table
from jaxmtl.training.hyper_objective import InstructedLoss, _answered
from jaxmtl.training.objectives import EncoderDecoderLoss, cross_entropy
from jaxmtl.training.schedules import constant
from jaxmtl.training.state import first_state, make_plan, scratch_params
from jaxmtl.training.step import sum_rows, train_step
from jaxmtl.training.teachers import (
    AdaptedTeacher,
    FusedTeacher,
    ModelTeacher,
    Taught,
    input_alone,
    instruction_and_input,
    joined,
    task_adapters,
)
from jaxmtl.types import InputError, UnknownNameError

CONFIG = HyperConfig(outputs=(LORA,), generator=GeneratorConfig(hidden=6))
BATCH = {
    "inputs": np.array([[5, 6, 7, 8, 1], [9, 10, 1, 0, 0], [11, 1, 0, 0, 0], [12, 13, 14, 1, 0]], np.int32),
    "targets": np.array([[4, 5, 1], [6, 1, 0], [8, 9, 1], [4, 1, 0]], np.int32),
    "loss_mask": np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0]], np.float32),
    "instructions": np.array([[21, 22, 23, 1, 0, 0], [24, 25, 1, 0, 0, 0], [26, 27, 28, 29, 30, 1]], np.int32),
    "instruction_index": np.array([2, 0, 2, 1], np.int32),
    "task_ids": np.array([0, 1, 0, 2], np.int32),
}


def adapter(seed):
    shapes = init_adapter(BASE, LORA, jax.random.key(0))
    rng = np.random.default_rng(seed)
    tree = jax.tree.map(lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), shapes.tree)
    return dataclasses.replace(shapes, tree=tree)


@functools.lru_cache
def teachers():
    """Of the three tasks, the first and the last have teachers."""
    return task_adapters({"copying": adapter(1), "sorting": adapter(2)}, ["copying", "translating", "sorting"])


@functools.lru_cache
def scored(**options):
    module, params = toy(CONFIG)
    run = jax.jit(lambda params, batch: InstructedLoss(**options)(module, {"params": params}, batch))
    return run(params, BATCH)


@functools.lru_cache
def student():
    module, params = toy(CONFIG)

    @jax.jit
    def run(params):
        kept = module.apply({"params": params}, BATCH["instructions"], method="adapt")
        decoder_inputs = np.pad(BATCH["targets"][:, :-1], ((0, 0), (1, 0)))
        rest = (BATCH["inputs"], decoder_inputs, BATCH["instructions"], BATCH["instruction_index"])
        return module.apply({"params": params}, *rest), kept.collections(BATCH["instruction_index"])

    return run(params)


LENGTHS = BATCH["loss_mask"].sum(1, keepdims=True)
EVENLY = BATCH["loss_mask"] * LENGTHS.mean() / LENGTHS
"""A mean over tokens with these weights is the mean over rows, however long their targets are."""


def text(row):
    """Instruction and input as one text, by hand."""
    words = BATCH["instructions"][BATCH["instruction_index"][row]]
    own = BATCH["inputs"][row]
    return np.concatenate([words[(words != 0) & (words != 1)], own[own != 0]])


def test_instruction_and_input_become_one_text():
    own = BATCH["instructions"][BATCH["instruction_index"]]
    found = np.asarray(joined(own, BATCH["inputs"], pad_id=0, eos_id=1))
    assert found.shape == (4, 11)
    for row in range(4):
        expected = text(row)
        np.testing.assert_array_equal(found[row], np.pad(expected, (0, 11 - len(expected))))


TEXTS = st.lists(st.integers(5, 9), max_size=6)


@hypothesis.settings(deadline=None)
@hypothesis.given(TEXTS, TEXTS, st.sampled_from([((), 1), ((2,), 1), ((1,), 1)]), st.integers(2, 20))
def test_the_text_is_what_adapters_are_fitted_on(instruction, inputs, around, most):
    start, end = around  # T5's, BART's, and OPT's way to begin a text
    framed = [np.array([*start, *words, end], np.int32) for words in (instruction, inputs)]
    pages = [np.pad(row, (0, 9 - len(row)))[None] for row in framed]
    found = joined(*pages, pad_id=0, eos_id=end, start_id=2, most=most)
    expected = joined_ids(*framed, start, end, most)
    np.testing.assert_array_equal(found[0], np.pad(expected, (0, min(most, 18) - len(expected))))


def test_a_teacher_reads_no_more_than_its_model_has_room_for():
    config = BARTConfig(**SIZES, **LAYERS, max_positions=8, pad_id=0, eos_id=1, bos_id=2)
    assert instruction_and_input(BATCH, config).shape == (4, 8)
    assert instruction_and_input(BATCH, config, max_tokens=5).shape == (4, 5)
    together = OPTConfig(**SIZES, num_layers=1, max_positions=9, pad_id=0, eos_id=1)
    assert instruction_and_input(BATCH, together).shape == (4, 7), "three tokens of target, the last is not read"
    assert instruction_and_input(BATCH, T5_CONFIG).shape == (4, 11)
    np.testing.assert_array_equal(input_alone(BATCH, config), BATCH["inputs"])


def test_a_teacher_of_learned_tasks_reads_words_and_not_numbers():
    texts = BATCH["instructions"][BATCH["instruction_index"]]
    words = {name: field for name, field in BATCH.items() if name != "instruction_index"} | {"instructions": texts}
    numbered = next(NumberedTasks(iter([words]), pad_id=0))
    np.testing.assert_array_equal(numbered["instructions"], BATCH["task_ids"][:, None])
    expected = instruction_and_input(BATCH, T5_CONFIG)
    np.testing.assert_array_equal(instruction_and_input(numbered, T5_CONFIG), expected)
    del words["instructions"]
    alone = instruction_and_input(next(NumberedTasks(iter([words]), pad_id=0)), T5_CONFIG)
    np.testing.assert_array_equal(alone[:, :5], BATCH["inputs"])


def test_a_model_that_reads_demonstrations_may_teach():
    supports = np.array([[31, 32, 1, 0, 0], [33, 34, 35, 36, 1]], np.int32)
    batch = BATCH | {"support_inputs": supports, "task_ids": np.zeros(4, np.int32)}
    params, (module, own) = random_like(BASE, seed=3), toy(CONFIG)
    teacher = FusedTeacher(module=BASE, params=params)
    found = jax.jit(lambda batch: teacher(module, {"params": own}, batch))(batch)
    assert np.all(found.covered)
    call = jax.jit(lambda *args, method: BASE.apply({"params": params}, *args, method=method), static_argnames="method")
    decoder_inputs = np.pad(BATCH["targets"][:, :-1], ((0, 0), (1, 0)))
    for row in range(4):
        texts = [ids[ids != 0][None] for ids in (*supports, BATCH["inputs"][row])]
        memory = np.concatenate([call(ids, method="encode") for ids in texts], axis=1)
        seen = np.ones(memory.shape[:2], bool)
        alone = call(decoder_inputs[row : row + 1], memory, seen, method="decode")
        np.testing.assert_allclose(found.logits[row], alone[0], atol=5e-5)  # float32 sums in another order
    with pytest.raises(InputError, match="needs 'support_inputs' as well"):
        teacher(module, {"params": own}, BATCH)


@pytest.mark.long
def test_arrays_of_teachers_are_arguments_of_a_step():
    whole = InstructedLoss(
        teacher=ModelTeacher(module=BASE, params=random_like(BASE, seed=3)), updates=teachers(), distance="update"
    )
    arrays, together = taken_apart(whole)
    own = [whole.teacher.params, whole.updates.tree, whole.updates.of_task]
    assert sum(leaf.size for leaf in arrays) == sum(leaf.size for leaf in jax.tree.leaves(own))
    module, params = toy(CONFIG)
    run = lambda arrays, params: together(arrays)(module, {"params": params}, BATCH).objective
    abstract = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in arrays]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    constants = jax.make_jaxpr(run)(abstract, shapes).consts
    assert max((np.size(leaf) for leaf in constants), default=0) <= BATCH["instructions"].size + BATCH["inputs"].size
    np.testing.assert_allclose(
        jax.jit(run)(arrays, params), whole(module, {"params": params}, BATCH).objective, rtol=1e-5
    )
    alike, _ = taken_apart(InstructedLoss(teacher=AdaptedTeacher(adapters=teachers()), updates=teachers()))
    assert len(alike) == len(jax.tree.leaves(teachers())), "what stands in two places is one argument"
    plain, same = taken_apart(EncoderDecoderLoss())
    assert not plain and same([]) == EncoderDecoderLoss()


@pytest.mark.long
def test_the_terms_are_those_of_the_paper_each_on_target_tokens_of_covered_rows():
    losses = scored(teacher=AdaptedTeacher(adapters=teachers()), updates=teachers(), distance="update")
    logits, collections = student()
    target = cross_entropy(logits, BATCH["targets"], BATCH["loss_mask"])
    np.testing.assert_allclose(losses.loss, target.loss, atol=1e-5)
    _, params = toy(CONFIG)
    run = jax.jit(lambda lora, inputs, targets: BASE.apply({"params": params["base"], "lora": lora}, inputs, targets))
    decoder_inputs = np.pad(BATCH["targets"][:, :-1], ((0, 0), (1, 0)))
    expected = np.asarray(target.objective).copy()
    for row, seed in ((0, 1), (2, 1), (3, 2)):
        own = adapter(seed).collection()
        inputs = np.pad(text(row), (0, 11 - len(text(row))))[None]
        taught = run(own, inputs, decoder_inputs[row : row + 1])
        kl = np.asarray(divergence(taught, logits[row : row + 1], 3.0))[0] * BATCH["loss_mask"][row]
        np.testing.assert_allclose(losses.terms["teacher"].value[row], kl, atol=2e-4)
        mine = jax.tree.map(lambda leaf, row=row: leaf[:, row : row + 1], collections["lora"])
        far = update_distance(mine, jax.tree.map(lambda leaf: leaf[:, None], own))[0]
        np.testing.assert_allclose(losses.terms["update"].value[row], far * EVENLY[row], rtol=1e-4)
        expected[row] += 5.0 * kl + 1000.0 * far * EVENLY[row]
    np.testing.assert_allclose(losses.objective, expected, rtol=1e-3)
    for name, mask in (("teacher", BATCH["loss_mask"]), ("update", EVENLY)):
        assert not np.any(losses.terms[name].value[1])  # the task without a teacher
        np.testing.assert_allclose(losses.terms[name].weight, mask * [[1], [0], [1], [1]], rtol=1e-6)


def test_a_teacher_that_says_what_the_student_says_teaches_nothing():
    same = scored(teacher=SameTeacher())
    assert not np.any(same.terms["teacher"].value)
    np.testing.assert_array_equal(same.objective, same.loss)


@dataclasses.dataclass(frozen=True)
class SameTeacher:
    """Says what the student says."""

    def __call__(self, module, variables, batch):
        logits, _ = module.apply(variables, batch, train=False, method=_answered)
        return Taught(logits, jnp.ones(4, bool))


def test_another_model_may_teach_and_covers_all_tasks():
    params = random_like(BASE, seed=3)
    losses = scored(teacher=ModelTeacher(module=BASE, params=params), teacher_weight=2.0, target_weight=0.0)
    np.testing.assert_array_equal(losses.terms["teacher"].weight, BATCH["loss_mask"])
    assert np.all(np.asarray(losses.terms["teacher"].value)[BATCH["loss_mask"] > 0] > 0)
    np.testing.assert_allclose(losses.objective, 2.0 * losses.terms["teacher"].value, rtol=1e-6)


def test_terms_are_summed_by_task():
    losses = scored(teacher=AdaptedTeacher(adapters=teachers()), updates=teachers(), distance="update")
    sums = sum_rows(losses, BATCH["task_ids"], 3)
    np.testing.assert_allclose(sums.task_terms["teacher"].weight, [6, 0, 2])
    value = np.asarray(losses.terms["teacher"].value).sum(1)
    np.testing.assert_allclose(sums.task_terms["teacher"].value, [value[0] + value[2], 0, value[3]], rtol=1e-5)
    np.testing.assert_allclose(sums.task_terms["target"].weight, [6, 2, 2])


def trained():
    """Parameters before and after 60 steps towards the teachers, the rates of their groups, and the way there."""
    module = HyperModel(dataclasses.replace(CONFIG, base="norms and embeddings"), BASE)
    groups = groups_of(module.hyper)
    mesh = make_mesh(data=1)
    optimizer = functools.partial(optim.adamw, groups=groups, weight_decay=0.1)
    plan = make_plan(module, optimizer, constant(rate=0.01), mesh)
    objective = InstructedLoss(updates=teachers(), distance="update", update_weight=100.0)
    step = jax.jit(functools.partial(train_step, plan=plan, objective=objective, num_tasks=3))
    state = first_state(plan, 0, scratch_params(plan, 0))
    before, history = state.params, []
    for _ in range(60):
        state, metrics = step(state, BATCH)
        history.append(float(np.sum(metrics.sums.task_terms["update"].value)))
    return before, state.params, groups, history


@pytest.mark.long
def test_training_nears_the_teachers_and_leaves_frozen_leaves_as_they_are_to_the_bit():
    before, after, groups, history = trained()
    assert history[-1] < 0.5 * history[0]
    table = parameter_table(before, groups)
    total = sum(leaf.size for leaf in jax.tree.leaves(before))
    assert sum(count for _, count, _ in table) == total
    rates = {part: {rate for name, _, rate in table if name == part} for part, _, _ in table}
    assert rates["base"] == {0.0, 1.0}
    assert rates["network"] == rates["fusion"] == {1.0}
    for path, leaf in flat(before).items():
        is_frozen = any(group.matches(path) and not group.rate for group in groups)
        assert np.array_equal(flat(after)[path], leaf) == is_frozen, path


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: InstructedLoss(distance="gram"), UnknownNameError, "unknown distance of updates"),
        (lambda: InstructedLoss(temperature=0), InputError, "expected above 0"),
        (lambda: groups_of(CONFIG, base_rate=0.5), InputError, "nothing of it does"),
        (
            lambda: AdaptedTeacher(adapters=teachers())(
                HyperModel(dataclasses.replace(CONFIG, base="norms and embeddings"), BASE), {}, BATCH
            ),
            InputError,
            "norms and embeddings of it are trained",
        ),
        (lambda: task_adapters({"copying": adapter(1)}, ["sorting"]), InputError, "none of 1 groups"),
        (
            lambda: InstructedLoss()(*[None] * 2, {"inputs": 0}),
            InputError,
            "needs 'instructions' as well",
        ),
        (
            lambda: task_adapters(
                {"a": adapter(1), "b": init_adapter(BASE, dataclasses.replace(LORA, rank=2), jax.random.key(0))},
                ["a", "b"],
            ),
            InputError,
            "differ in rank",
        ),
    ],
)
def test_what_does_not_fit_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
