import jax
import pytest

from jaxmtl.evals import files, runner
from jaxmtl.evals.periodic import GenerationEvaluation
from jaxmtl.evals.summary import Labels


def test_weights_of_the_step_are_scored_and_recorded(pretrained, store, tmp_path):
    evaluation = GenerationEvaluation(
        every=5, pretrained=pretrained, store=store, run_dir=tmp_path / "a", max_tokens=2, labels=Labels(seed=4)
    )
    params = jax.tree.map(lambda leaf: leaf * 0.5, pretrained.params)
    first, second = evaluation.run(pretrained.params, 0), evaluation.run(params, 5)
    assert set(first) == {"rouge_l", "exact_match", "nll"}
    assert first["nll"] != second["nll"]
    records = files.read_records(tmp_path / "a" / "records.jsonl")
    assert {(record.step, record.seed) for record in records} == {(0, 4), (5, 4)}
    alone = runner.evaluate(pretrained, store, "test", tmp_path / "b", max_tokens=2)
    total = sum(scores.n * scores.metrics["nll"] for scores in alone.values())
    assert first["nll"] == pytest.approx(total / 6)
