import pytest

from jaxmtl.evals import aggregate
from jaxmtl.evals.aggregate import HYPERT5, MTEST11
from jaxmtl.types import InputError

SCORES = {
    "rte": {"a": 50.0, "b": 60.0, "c": 85.0},  # mean 65, median 60
    "cb": {"a": 20.0, "b": 40.0},  # mean and median 30
    "copa": {"a, seed 0": 70.0, "a, seed 1": 80.0, "b, seed 0": 10.0, "b, seed 1": 40.0},  # mean 50, median 55
}
# ANLI's rounds 30, 33, 36 have the mean 33; the other seven add up to 367.
VALUES = dict(anli_r1=30.0, anli_r2=33.0, anli_r3=36.0, hellaswag=27.0, cb=50.0, copa=60.0, rte=70.0, wic=51.0)
VALUES |= dict(wsc=57.0, winogrande=52.0, storycloze=90.0)


def test_a_task_is_averaged_over_its_variants():
    assert aggregate.task_means(SCORES) == {"rte": 65.0, "cb": 30.0, "copa": 50.0}
    assert aggregate.task_medians(SCORES) == {"rte": 60.0, "cb": 30.0, "copa": 55.0}


def test_tasks_weigh_the_same_however_many_variants_they_have():
    assert aggregate.mean_over_tasks(aggregate.task_means(SCORES)) == pytest.approx(145 / 3)
    assert aggregate.mean_over_tasks(aggregate.task_means(SCORES), ["cb", "copa"]) == 40.0


def test_the_median_average_is_the_median_of_task_medians():
    assert aggregate.median_of_medians(SCORES) == 55.0


def test_mtest11_counts_the_rounds_of_anli_apart():
    assert len(set(MTEST11)) == 11
    assert aggregate.mean_over_tasks(VALUES, MTEST11) == pytest.approx((30 + 33 + 36 + 367 + 90) / 11)


def test_the_average_of_hypert5_has_eight_entries_and_no_storycloze():
    assert set(MTEST11) - set(HYPERT5) == {"storycloze"}
    assert aggregate.hypert5_average(VALUES) == pytest.approx((33 + 367) / 8)
    assert aggregate.hypert5_average(VALUES | {"storycloze": 0.0}) == pytest.approx(50.0)


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="task rte: no variant was scored"):
        aggregate.task_means({"rte": {}})
    with pytest.raises(InputError, match="no score of task storycloze to average; found anli_r1"):
        aggregate.mean_over_tasks({name: VALUES[name] for name in HYPERT5}, MTEST11)
    with pytest.raises(InputError, match="no score of task anli_r1"):
        aggregate.hypert5_average({})
    for average in (aggregate.mean_over_tasks, aggregate.median_of_medians):
        with pytest.raises(InputError, match="no task to average"):
            average({})
