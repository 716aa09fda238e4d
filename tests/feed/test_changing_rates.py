import json
import threading

import numpy as np
import pytest
import scipy.stats

from jaxmtl.feed.changing_rates import (
    DynamicWeightAverage,
    FunctionRates,
    PerCategory,
    RateFacts,
    ReverseAnnealing,
)
from jaxmtl.feed.loss_history import DELAY, LossHistory, StoppedError
from jaxmtl.feed.sampler import Sampler
from jaxmtl.tasks import rates
from jaxmtl.types import InputError

SIZES = np.array([26, 100, 400, 1600, 6400])
CATEGORIES = ["x", "y", "x", "y", "z"]


def facts(step: int = 0, losses: object = ()) -> RateFacts:
    table = np.array(losses, float).reshape(-1, len(SIZES))
    return RateFacts(sizes=SIZES, categories=CATEGORIES, step=step, losses=table)


def shares(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


def test_reverse_annealing_goes_from_proportional_towards_uniform() -> None:
    annealing = ReverseAnnealing(last_temperature=1000.0, num_steps=100)
    assert shares(annealing.weights(facts(0))) == pytest.approx(SIZES / SIZES.sum())
    # By hand: half way the temperature is 500.5, and 6400^(1/500.5) / 26^(1/500.5) = exp(ln(246.15) / 500.5) = 1.01106.
    middle = annealing.weights(facts(50))
    assert middle[-1] / middle[0] == pytest.approx(1.01106, abs=1e-5)
    assert annealing.temperature(100) == annealing.temperature(250) == 1000.0
    squared = ReverseAnnealing(last_temperature=5.0, num_steps=100, clock=lambda share: share**2)
    assert squared.temperature(50) == 2.0


def test_dynamic_weight_average_is_the_softmax_of_loss_ratios() -> None:
    average = DynamicWeightAverage(loss_period=10)
    assert shares(average.weights(facts())) == pytest.approx(np.full(5, 0.2))
    assert shares(average.weights(facts(losses=[np.ones(5)]))) == pytest.approx(np.full(5, 0.2))
    # The middle row counts as the one before; the fourth task was not seen there, its ratio is 1.
    table = [[9, 9, 9, 9, 9], [1, 2, 4, np.nan, 1], [1, 1, 1, 5, 3]]
    expected = np.exp([1.0, 0.5, 0.25, 1.0, 3.0])
    assert shares(average.weights(facts(losses=table))) == pytest.approx(expected / expected.sum())
    cold = DynamicWeightAverage(loss_period=10, temperature=1e-2, base=rates.proportional).weights(facts(losses=table))
    assert np.isfinite(cold).all() and shares(cold)[4] == pytest.approx(1.0)


def test_categories_share_first() -> None:
    found = PerCategory().weights(facts())
    assert shares(found) == pytest.approx([26 / 426 / 3, 100 / 1700 / 3, 400 / 426 / 3, 1600 / 1700 / 3, 1 / 3])
    level = PerCategory(between=rates.proportional, within=rates.uniform).weights(facts())
    assert shares(level) == pytest.approx(np.array([213, 850, 213, 850, 6400]) / 8526)
    empty = RateFacts(sizes=np.array([0, 3, 0]), categories=["p", "q", "q"], step=0, losses=np.empty((0, 3)))
    assert PerCategory().weights(empty).tolist() == [0.0, 1.0, 0.0]


CHANGING = {
    "annealing": ReverseAnnealing(last_temperature=100.0, num_steps=2000),
    "average": DynamicWeightAverage(loss_period=10, temperature=0.5),
    "category": PerCategory(),
    "own": FunctionRates(function=lambda facts: facts.sizes * (1.0 + np.arange(5) * (facts.step % 3))),
    "proportional": rates.proportional,
    "uniform": rates.uniform,
    "capped": lambda sizes: rates.capped(sizes, 300),
    "temperature": lambda sizes: rates.temperature(sizes, 4.0),
}


@pytest.mark.parametrize("name", CHANGING)
def test_draws_follow_the_rates_at_every_stage(name: str) -> None:
    sampler = Sampler(SIZES, CHANGING[name], 16, 5, CATEGORIES)
    losses = np.array([[2.0, 2.0, 2.0, 2.0, 2.0], [1.0, 2.0, 1.5, 0.5, 2.5]])
    for _ in range(4):
        before = [counts.copy() for counts in sampler.counts()]
        sampler.draw(500, losses)
        drawn, asked = (now - then for now, then in zip(sampler.counts(), before, strict=True))
        assert drawn.sum() == 8000 and asked.sum() == pytest.approx(8000)
        assert scipy.stats.chisquare(drawn, asked).pvalue > 1e-4
        assert (drawn > 0).all()
    assert sampler.loss_period == (10 if name == "average" else None)


@pytest.mark.parametrize("name", ["annealing", "own", "category"])
def test_many_steps_at_once_equal_single_steps_and_resumed_ones(name: str) -> None:
    whole = Sampler(SIZES, CHANGING[name], 8, 1, CATEGORIES).draw(40)
    single = Sampler(SIZES, CHANGING[name], 8, 1, CATEGORIES)
    parts = [single.draw() for _ in range(15)]
    resumed = Sampler(SIZES, CHANGING[name], 8, 1, CATEGORIES)
    resumed.restore(json.loads(json.dumps(single.state())))
    parts += [resumed.draw() for _ in range(25)]
    for field in ("task_ids", "example_ids"):
        assert np.array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(whole, field))


def test_shares_that_never_change_are_computed_once() -> None:
    asked = []
    rate = FunctionRates(function=lambda facts: asked.append(facts.step) or facts.sizes, steady_steps=None)
    sampler = Sampler(SIZES, rate, 8, 1, CATEGORIES)
    sampler.draw(50)
    assert asked == [0]
    drawn, expected = sampler.counts()
    assert drawn.sum() == 400 and expected == pytest.approx(400 * SIZES / SIZES.sum())


def test_senseless_rates_are_input_errors() -> None:
    with pytest.raises(InputError, match="temperature 0.5"):
        ReverseAnnealing(last_temperature=0.5, num_steps=10)
    with pytest.raises(InputError, match="periods of 0 steps"):
        DynamicWeightAverage(loss_period=0)
    with pytest.raises(InputError, match="rate of task 0 is -1"):
        Sampler(SIZES, FunctionRates(function=lambda facts: -np.ones(5)), 8, 0)


def test_a_draw_sees_the_periods_that_were_over_before_the_delay() -> None:
    history = LossHistory(2, 5)

    def train(first: int, last: int) -> None:
        for batch in range(first, last):
            history.observe(np.array([batch, 0.0]), np.array([2.0, 0.0]))

    train(0, 10)
    assert history.before(4 + DELAY).shape == (0, 2)
    first = history.before(5 + DELAY)
    assert first[0, 0] == pytest.approx(sum(range(5)) / 10) and np.isnan(first[0, 1])
    train(10, 30)
    last = history.before(24 + DELAY)  # periods 2 and 3: batches 10 to 14 and 15 to 19
    assert last[:, 0].tolist() == [sum(range(10, 15)) / 10, sum(range(15, 20)) / 10]
    with pytest.raises(InputError, match="do not belong together"):
        history.before(5 + DELAY)


def test_a_draw_waits_for_losses_and_is_let_go() -> None:
    history = LossHistory(1, 2)
    found: list = []

    def read() -> None:
        try:
            found.append(history.before(2 + DELAY))
        except StoppedError:
            found.append("stopped")

    for finish in (lambda: [history.observe(np.ones(1), np.ones(1)) for _ in range(2)], history.close):
        history.restore({"observed": 0, "period": 2, "sums": {}})
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        finish()
        thread.join(5)
        assert not thread.is_alive()
    assert found[0].tolist() == [[1.0]] and found[1] == "stopped"


def test_history_goes_on_from_its_state_and_refuses_others() -> None:
    history = LossHistory(3, 4)
    rng = np.random.default_rng(0)
    for _ in range(11):
        history.observe(rng.random(3), rng.random(3))
    state = json.loads(json.dumps(history.state()))
    other = LossHistory(3, 4)
    other.restore(state)
    for one in (history, other):
        one.observe(np.ones(3), np.ones(3))
    assert np.array_equal(history.before(12 + DELAY), other.before(12 + DELAY))
    for tasks, period in ((2, 4), (3, 5)):
        with pytest.raises(InputError, match="resume with the same rates"):
            LossHistory(tasks, period).restore(state)
