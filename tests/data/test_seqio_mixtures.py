import dataclasses
import functools
import types

import numpy as np
import pytest

from jaxmtl import tokenizers
from jaxmtl.feed.changing_rates import PerCategory
from jaxmtl.feed.sampler import Rates, Sampler
from jaxmtl.feed.tokenise import Preprocessing
from jaxmtl.tasks import rates
from jaxmtl.tasks.spec import TaskSpec

pytestmark = pytest.mark.tf


@pytest.mark.parametrize(
    "rate",
    [
        rates.uniform,
        rates.proportional,
        functools.partial(rates.capped, limit=8),
        functools.partial(rates.temperature, temperature=3.0, limit=20),
    ],
)
def test_shares_equal_the_rate_functions(
    data: types.SimpleNamespace,
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tokenizer: tokenizers.Tokenizer,
    rate: functools.partial,
) -> None:
    names = data.seqio_tasks.register(tasks, preprocessing, tokenizer, prefix="shares")
    mixture = f"shares_{getattr(rate, '__name__', str(getattr(rate, 'keywords', '')).__hash__() % 97)}"
    data.seqio_mixtures.register(mixture, names, rate)
    weights = np.asarray(rate(np.array([12, 30, 5])))
    expected = dict(zip(names, (weights / weights.sum()).tolist(), strict=True))
    assert data.seqio_mixtures.shares(mixture) == pytest.approx(expected)
    found = data.seqio.MixtureRegistry.get(mixture)
    assert all(callable(one) for one in found.rate_per_task_name.values())


@pytest.mark.parametrize("limit", [None, 10])
@pytest.mark.parametrize(
    "name, rate",
    {
        "uniform": rates.uniform,
        "proportional": rates.proportional,
        "capped": functools.partial(rates.capped, limit=8),
        "temperature": functools.partial(rates.temperature, temperature=3.0),
        "categories": PerCategory(),
        "large_categories": PerCategory(between=rates.proportional, within=rates.uniform),
    }.items(),
)
def test_a_mixture_gives_the_shares_of_the_sampler(
    data: types.SimpleNamespace,
    tasks: list[TaskSpec],
    preprocessing: Preprocessing,
    tokenizer: tokenizers.Tokenizer,
    name: str,
    rate: Rates,
    limit: int | None,
) -> None:
    specs = [*tasks[:2], dataclasses.replace(tasks[2], category="Other")]
    names = data.seqio_tasks.register(specs, preprocessing, tokenizer, prefix="sampled")
    mixture = data.seqio_mixtures.register(f"sampled_{name}_{limit}", names, rate, limit=limit)
    sizes = np.minimum([12, 30, 5], limit or 30)
    sampler = Sampler(sizes, rate, batch_size=1, seed=0, categories=["Toy", "Toy", "Other"])
    assert list(data.seqio_mixtures.shares(mixture).values()) == pytest.approx(sampler.shares.tolist(), rel=1e-12)


def test_a_mixture_shares_draws_between_categories(
    data: types.SimpleNamespace, tasks: list[TaskSpec], preprocessing: Preprocessing, tokenizer: tokenizers.Tokenizer
) -> None:
    specs = [*tasks[:2], dataclasses.replace(tasks[2], category="Other")]
    names = data.seqio_tasks.register(specs, preprocessing, tokenizer, prefix="halves")
    data.seqio_mixtures.register("halves", names, PerCategory(), limit=20)
    # Each category has a half; the first one's tasks have 12 and, limited, 20 examples.
    assert list(data.seqio_mixtures.shares("halves").values()) == pytest.approx([12 / 64, 20 / 64, 0.5])
