import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmtl.tasks import fewshot
from jaxmtl.types import Example, InputError


def pool_of(*inputs):
    return [Example(id=f"e{n}", inputs=text, targets=(f"y{n}",)) for n, text in enumerate(inputs)]


def test_order_is_the_same_in_every_process():
    # Written down once: a change would silently change everyone's data subsets.
    assert fewshot.seeded_order(8, 0, "task001") == [2, 6, 0, 4, 1, 3, 7, 5]
    code = "from jaxmtl.tasks import fewshot; print(fewshot.seeded_order(8, 0, 'task001'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[2, 6, 0, 4, 1, 3, 7, 5]"


@given(st.integers(0, 60), st.integers(), st.text())
def test_order_is_a_permutation(count, seed, name):
    assert sorted(fewshot.seeded_order(count, seed, name)) == list(range(count))


def test_order_depends_on_seed_task_and_purpose():
    orders = {
        tuple(fewshot.seeded_order(20, *key)) for key in [(0, "a"), (1, "a"), (0, "b"), (0, "a", "split"), (0, "a1")]
    }
    assert len(orders) == 5


def test_every_place_is_equally_likely():
    # 2,000 seeds, 5 places: 400 expected, standard deviation 18; 5 of them are allowed.
    counts = [0] * 5
    for seed in range(2000):
        counts[fewshot.seeded_order(5, seed, "t")[0]] += 1
    assert all(abs(count - 400) < 90 for count in counts)


@given(st.integers(0, 30), st.integers(0, 30))
def test_smaller_subsets_begin_larger_ones(small, large):
    small, large = sorted([small, large])
    items = list(range(20))
    assert fewshot.seeded_subset(items, large, 3, "t")[:small] == fewshot.seeded_subset(items, small, 3, "t")[:small]


def test_subset_without_limit_holds_everything():
    assert sorted(fewshot.seeded_subset("abc", None, 0, "t")) == ["a", "b", "c"]


def test_negative_limit_is_refused():
    with pytest.raises(InputError, match="task t is -1"):
        fewshot.seeded_subset("abc", -1, 0, "t")


def test_hash_parts_keep_their_boundaries():
    assert fewshot.stable_hash("ab", "c") != fewshot.stable_hash("a", "bc")
    assert fewshot.stable_hash("1\0" + "2") != fewshot.stable_hash(1, 2)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=200), st.integers(0, 5), st.integers(0, 4), st.data())
def test_demonstrations_leave_out_the_asked_one_and_repeats(inputs, count, seed, data):
    pool = pool_of(*inputs)
    example = data.draw(st.sampled_from(pool))
    possible = len(set(inputs) - {example.inputs})
    if possible < count:
        with pytest.raises(InputError, match=f"only {possible} different"):
            fewshot.demonstrations(pool, example, count=count, seed=seed, task_name="t")
        return
    chosen = fewshot.demonstrations(pool, example, count=count, seed=seed, task_name="t")
    shown = [demo.inputs for demo in chosen]
    assert len(set(shown)) == len(shown) == count and example.inputs not in shown
    answers = {(other.inputs, other.targets[0]) for other in pool}
    assert all((demo.inputs, demo.output) in answers for demo in chosen)


def test_demonstrations_depend_on_seed_task_and_id_only():
    pool = pool_of(*(f"x{n}" for n in range(500)))
    one = Example(id="q", inputs="question", targets=("a",))
    same = Example(id="q", inputs="another text", targets=("b",))

    def draw(example, seed=0, name="t"):
        return fewshot.demonstrations(pool, example, count=4, seed=seed, task_name=name)

    assert draw(one) == draw(same)
    assert (
        len({draw(one), draw(one, seed=1), draw(one, name="u"), draw(Example(id="r", inputs="", targets=("",)))}) == 4
    )
    assert draw(one)[:2] == fewshot.demonstrations(pool, one, count=2, seed=0, task_name="t")


def test_an_example_with_the_asked_ones_id_is_left_out():
    pool = pool_of("a", "b")
    asked = Example(id="e0", inputs="changed", targets=("y",))
    assert [d.inputs for d in fewshot.demonstrations(pool, asked, count=1, seed=0, task_name="t")] == ["b"]


def test_empty_pool_is_refused():
    with pytest.raises(InputError, match="pool of 0"):
        fewshot.demonstrations([], pool_of("a")[0], count=1, seed=0, task_name="t")


def test_demonstrations_of_a_task_are_none_of_its_queries():
    pool = [Example(id=f"train-{i}", inputs=f"text {i % 8}", targets=(f"{i}",)) for i in range(20)]
    queries = [Example(id="q", inputs="text 3", targets=("a",)), dataclasses.replace(pool[5], inputs="other")]
    options = dict(seed=1, task_name="t")
    shown = fewshot.task_demonstrations(pool, queries, count=6, **options)
    inputs = [demonstration.inputs for demonstration in shown]
    assert len(set(inputs)) == 6 and "text 3" not in inputs
    assert fewshot.task_demonstrations(pool, reversed(queries), count=2, **options) == shown[:2]
    assert fewshot.task_demonstrations(pool, queries, count=6, seed=2, task_name="t") != shown
    assert fewshot.task_demonstrations(pool, queries, count=6, seed=1, task_name="u") != shown
    assert fewshot.task_demonstrations([], [], count=0, **options) == ()
    assert all(
        demonstration.output != "5" for demonstration in fewshot.task_demonstrations(pool, queries, count=7, **options)
    )


def test_too_few_demonstrations_of_a_task_are_named():
    pool = [Example(id="a", inputs="x", targets=("y",)), Example(id="b", inputs="x", targets=("y",))]
    with pytest.raises(InputError, match="task t: 2 demonstrations asked for, but its pool of 2 has only 1"):
        fewshot.task_demonstrations(pool, [], count=2, seed=0, task_name="t")
    with pytest.raises(InputError, match="-1 demonstrations"):
        fewshot.task_demonstrations(pool, [], count=-1, seed=0, task_name="t")
