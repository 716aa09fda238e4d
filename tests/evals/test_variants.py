"""Means, medians and averages of data sets from scores of their templates, by hand."""

import pytest

from jaxmtl.evals import variants
from jaxmtl.evals.aggregate import HYPERT5, MTEST11
from jaxmtl.types import Scores


def scores(values):
    return {
        f"{name}_{k}": Scores(task=f"{name}_{k}", category=name, n=4, metrics={"accuracy": value})
        for name, column in values.items()
        for k, value in enumerate(column)
    }


def test_data_sets_are_described_by_their_variants():
    one, other = variants.rows(scores({"rte": [50.0, 60.0, 70.0, 90.0], "cb": [30.0]}), "accuracy")
    assert one == {"data set": "cb", "variants": 1, "mean": 30.0, "median": 30.0, "lowest": 30.0, "highest": 30.0}
    assert (other["mean"], other["median"], other["lowest"], other["highest"]) == (67.5, 65.0, 50.0, 90.0)


def test_averages_of_papers_need_all_their_data_sets():
    few = {"rte": [50.0, 60.0, 70.0, 90.0], "cb": [30.0]}
    assert variants.averages(scores(few), "accuracy") == {"mean over data sets": 48.75, "median of medians": 47.5}
    ten = {name: [float(k)] for k, name in enumerate(HYPERT5)}  # ANLI is 0, 1, 2; the others are 3 to 9
    found = variants.averages(scores(ten), "accuracy")
    assert found["HyperT5"] == pytest.approx((1 + sum(range(3, 10))) / 8) and "MTest11" not in found
    eleven = {name: [1.0, 4.0] for name in MTEST11}
    assert variants.averages(scores(eleven), "accuracy")["MTest11"] == 2.5


def test_the_summary_is_rounded():
    found = variants.summary_of(scores({"cb": [100 / 3, 200 / 3]}), "accuracy")
    assert found["data_sets"]["cb"] == dict(variants=2, mean=50.0, median=50.0, lowest=33.3333, highest=66.6667)
