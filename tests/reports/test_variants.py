"""The table of templates: by hand, from scores of two seeds."""

import math

from jaxmtl.reports.sources import Column
from jaxmtl.reports.variants import variant_table
from jaxmtl.types import Scores


def column(label, values, metrics=("accuracy", "accuracy_mean")):
    scores = {
        task: Scores(task=task, category=task[:3], n=2, metrics=dict(zip(metrics, pair, strict=True)))
        for task, pair in values.items()
    }
    return Column(label=label, run="r", step=0, weights_hash="w", scores=scores, examples={})


SEEDS = [
    column("fid_2-shots_seed-0", {"rte_a": (50.0, 40.0), "rte_b": (60.0, 40.0), "cb__a": (10.0, 0.0)}),
    column("fid_2-shots_seed-1", {"rte_a": (70.0, 40.0), "rte_b": (80.0, 100.0), "cb__a": (30.0, 0.0)}),
]


def test_data_sets_have_means_and_medians_over_templates_and_seeds():
    table = variant_table(SEEDS)
    rows = {(row["setting"], row["data set"]): row for row in table.to_dict("records")}
    first = rows["fid_2-shots_seed-0", "rte"]
    assert (first["variants"], first["sum: mean"], first["per token: median"]) == (2, 55.0, 40.0)
    both = rows["fid_2-shots_all seeds", "rte"]
    assert (both["variants"], both["sum: mean"], both["sum: median"]) == (4, 65.0, 65.0)
    assert (both["per token: mean"], both["per token: median"]) == (55.0, 40.0)
    mean = rows["fid_2-shots_all seeds", "mean over data sets"]
    assert mean["sum: mean"] == (65.0 + 20.0) / 2 and math.isnan(mean["sum: median"])
    assert rows["fid_2-shots_all seeds", "median of medians"]["sum: median"] == (65.0 + 20.0) / 2
    assert len(table) == 3 * 4


def test_one_data_set_has_no_average_and_other_metrics_no_table():
    assert list(variant_table([column("step 3", {"rte_a": (1.0, 2.0)})])["data set"]) == ["rte"]
    assert variant_table([column("step 3", {"rte_a": (1.0, 2.0)}, ("rouge_l", "nll"))]).empty
