"""P3 by command lines: cached, ranked zero-shot, after fits and in context, reported; nothing is done twice."""

import json

import pytest
from short_runs import MODEL

from jaxmtl.evals import files, scoring
from jaxmtl.feed.store import TokenStore
from jaxmtl.main import main

TEMPLATES = """
templates:
  0a: !Template
    answer_choices: 'yes ||| maybe ||| no'
    jinja: '{{ premise }} so {{ hypothesis }}? ||| {{ answer_choices[label] }}'
    metadata: !TemplateMetadata {original_task: true}
    name: so
  0b: !Template
    answer_choices: 'yes ||| maybe ||| no'
    jinja: 'say {{ hypothesis }} ||| {{ answer_choices[label] }}'
    metadata: !TemplateMetadata {original_task: true}
    name: say
"""
TASKS = ["anli_say_r1", "anli_so_r1"]


@pytest.fixture(scope="module")
def choices(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("p3")
    rows = [dict(premise=f"one {k}", hypothesis=f"two {k}", label=k % 3) for k in range(8)]

    def write(name, text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    write("p3_t0/promptsource_templates/anli/templates.yaml", TEMPLATES)
    dev = [row | {"label": "enc"[row["label"]]} for row in rows[:4]]
    write("p3_t0/anli_dev/r1_dev.jsonl", "\n".join(map(json.dumps, dev)))
    write("p3_t0/fewshot/anli-r1/16_shot/0_seed.jsonl", "\n".join(map(json.dumps, rows[4:])))
    words = [f"--gin.DATA_DIR={folder}", f"--gin.VOCABULARY={store.parent / 'spiece.model'}"]
    assert main(["cache", "--gin_file=tasks/p3.gin", *words, f"--gin.STORE={folder / 'store'}"]) == 0
    return folder / "store"


def rank(choices, run_dir, *more):
    words = [*MODEL, "--gin_file=runs/untrained.gin", "--gin_file=runs/rank.gin", *more]
    words += [f"--gin.STORE={choices}", f"--gin.RUN_DIR={run_dir}", "--gin.BATCH_SIZE=4"]
    return main(["evaluate", *words])


def test_templates_are_ranked_and_averaged(choices, tmp_path, capsys, monkeypatch):
    assert rank(choices, tmp_path) == 0
    printed = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert list(scores["tasks"]) == TASKS
    found = scores["variants"]["accuracy"]["data_sets"]["anli_r1"]
    values = [scores["tasks"][task]["accuracy"] for task in TASKS]
    assert (found["variants"], found["mean"]) == (2, pytest.approx(sum(values) / 2))
    (line,) = [line.split() for line in printed.splitlines() if "sum: mean" not in line and "step" in line]
    assert line[:4] == ["step", "0", "anli_r1", "2"] and float(line[4]) == pytest.approx(found["mean"])
    monkeypatch.setattr(scoring, "choice_losses", lambda *given, **more: pytest.fail("ranked again"))
    assert rank(choices, tmp_path) == 0
    assert capsys.readouterr().out == printed


def test_demonstrations_are_shown_in_every_setting(choices, tmp_path, capsys):
    icl = ["--gin_file=runs/icl.gin", "--gin.WAYS=('fid', 'concat')", "--gin.SHOTS=(2,)", "--gin.SEEDS=(0, 1)"]
    assert rank(choices, tmp_path, *icl, "--gin.QUERY_TOKEN='<extra_id_9>'") == 0
    printed = capsys.readouterr().out
    labels = [f"{way}_2-shots_seed-{seed}" for way in ("concat", "fid") for seed in (0, 1)]
    assert sorted(path.name for path in tmp_path.glob("*-shots_*")) == labels
    assert {one.category for one in files.read_records(tmp_path / labels[0] / "records.jsonl")} == {"anli_r1"}
    assert "fid_2-shots_all seeds" in printed
    assert main(["report", str(tmp_path)]) == 0
    rows = (tmp_path / "report" / "templates.csv").read_text().splitlines()
    assert rows[0] == "setting,data set,variants,sum: mean,sum: median,per token: mean,per token: median"
    assert len(rows) == 1 + len(labels) + 2 and "fid_2-shots_all seeds,anli_r1,4," in "\n".join(rows)
    assert "<h2>Templates</h2>" in (tmp_path / "report.html").read_text()


def test_templates_are_stored_as_instructions(choices, tmp_path):
    words = [f"--gin.DATA_DIR={choices.parent}", f"--gin.VOCABULARY={TokenStore(choices).tokenizer().source}"]
    words += ["--gin.INSTRUCTION=@prompts.definition_only", f"--gin.STORE={tmp_path / 'store'}"]
    assert main(["cache", "--gin_file=tasks/p3.gin", *words]) == 0
    store = TokenStore(tmp_path / "store")
    ids = store.examples("anli_say_r1", "test").instruction(0)
    assert store.tokenizer().decode(ids.tolist()) == store.tokenizer().decode(store.tokenizer().encode("say"))


@pytest.mark.long
def test_adapters_are_fitted_and_ranked(choices, tmp_path):
    few = ["--gin_file=runs/few_shot.gin", "--gin.SHOTS=(0, 4)", "--gin.EPOCHS=30", "--gin.LEARNING_RATES=(3e-2,)"]
    assert rank(choices, tmp_path, *few, "--gin.RANK=2") == 0
    read = lambda label: json.loads((tmp_path / label / "scores.json").read_text())["tasks"]
    plain, fitted = (read(f"{shots}-shots_seed-0_rate-0.03") for shots in (0, 4))
    assert all(fitted[task]["nll"] < plain[task]["nll"] - 0.5 for task in TASKS)


@pytest.mark.long
def test_models_of_single_tasks_are_ranked_and_reported_together(choices, tmp_path, capsys):
    few = ["--gin_file=runs/few_shot_models.gin", "--gin.SHOTS=(4,)", "--gin.STEPS=2"]
    assert rank(choices, tmp_path, *few) == 0
    printed = capsys.readouterr().out
    (setting,) = [path.parent for path in tmp_path.glob("*/fits.json")]
    scores = [json.loads((setting / task / "scores.json").read_text())["tasks"][task]["accuracy"] for task in TASKS]
    (line,) = [line.split() for line in printed.splitlines() if "anli_r1" in line]
    assert line[:3] == [setting.name, "anli_r1", "2"] and float(line[3]) == pytest.approx(sum(scores) / 2, abs=0.01)
    assert main(["report", str(tmp_path)]) == 0
    assert setting.name in (tmp_path / "report" / "templates.csv").read_text()


def test_a_store_without_choices_is_refused(store, tmp_path, capsys):
    assert rank(store, tmp_path) == 1
    assert "has no answer choices to rank" in capsys.readouterr().err
