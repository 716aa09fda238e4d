import base64
import csv
import html
import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from jaxmtl.reports import page
from jaxmtl.types import InputError

VOID = {"meta", "img", "input", "br"}
HOSTILE_TASK = "<script>task | c"
DRAWS = {
    "task_a": {"drawn": 30, "asked": 24.0},
    "task_b": {"drawn": 66, "asked": 72.0},
    HOSTILE_TASK: {"drawn": 0, "asked": 0.0},
}


class Checker(html.parser.HTMLParser):
    """Collects what a page holds and checks that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.images, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in VOID:
            self.open.append(tag)
        self.links += [attrs["href"]] if "href" in attrs else []
        self.images += [attrs["src"]] if "src" in attrs else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(path):
    checker = Checker()
    checker.feed(path.read_text())
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_is_complete_and_well_formed(make_run):
    path = page.write_report(make_run())
    checker = check(path)
    assert path.name == "report.html"
    headings = [text for text in checker.text if text in {"Overall", "Loss", "Categories", "Tasks", "Files"}]
    assert headings == ["Overall", "Loss", "Categories", "Tasks", "Files"]
    assert "62.50" in checker.text and "66.67" in " ".join(checker.text)


def test_the_page_needs_no_other_file(make_run):
    checker = check(page.write_report(make_run()))
    assert len(checker.images) == 4
    for source in checker.images:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,"))[:4] == b"\x89PNG"
    assert not any(tag == "link" or (tag == "script" and "src" in attrs) for tag, attrs in checker.tags)


def test_links_lead_to_files_that_are_there(make_run, tmp_path):
    out = tmp_path / "elsewhere"
    path = page.write_report(make_run(), out)
    links = check(path).links
    assert path == out / "report.html" and len(links) == 10
    assert all((out / link).is_file() for link in links)
    assert {pathlib.PurePath(link).suffix for link in links} == {".csv", ".md", ".png"}


def test_hostile_texts_stay_texts(make_run):
    path = page.write_report(make_run())
    checker = check(path)
    assert [tag for tag, _ in checker.tags].count("script") == 1
    assert not any("onerror" in attrs for _, attrs in checker.tags)
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in path.read_text()
    assert "Title <script> Generation" in checker.text


def test_a_hostile_run_name_stays_a_text(make_run):
    folder = make_run(steps=(10,))
    records = folder / "records.jsonl"
    records.write_text(records.read_text().replace('"run": "toy"', '"run": "<b onload=x>$&"'))
    checker = check(page.write_report(folder))
    assert "<b onload=x>$&" in checker.text
    assert not any("onload" in attrs for _, attrs in checker.tags)


def test_an_evaluated_model_that_was_not_trained_here_has_no_loss_curve(make_run):
    path = page.write_report(make_run(steps=(0,), curves=False))
    text = " ".join(check(path).text)
    assert "only evaluated here, not trained" in text
    assert not (path.parent / "report" / "loss.png").exists()


def test_runs_are_compared(make_run):
    path = page.write_report(make_run(name="one"), compare=[make_run(name="two")])
    text = check(path).text
    assert "one, step 10" in text and "two, step 10" in text


def test_the_cards_are_about_the_run_itself_not_about_those_beside(make_run):
    path = page.write_report(make_run(name="one"), compare=[make_run(name="two", scale=0.05)])
    cards = path.read_text().partition('<dl class="facts">')[0]
    assert "<b>62.50</b>" in cards and "before training: 0.00" in cards


def test_a_run_that_was_not_evaluated_shows_its_losses_and_how_to_evaluate_it(tmp_path, make_run):
    folder = tmp_path / "my run"
    folder.mkdir()
    (make_run() / "metrics.jsonl").rename(folder / "metrics.jsonl")
    path = page.write_report(folder)
    checker = check(path)
    assert len(checker.images) == 1 and "my run" in checker.text
    assert checker.links == ["report/loss.png"] and (folder / "report" / "loss.png").is_file()
    text = " ".join(" ".join(checker.text).split())
    assert f"--gin.CHECKPOINT='{folder}' --gin.STORE=STORE --gin.RUN_DIR='{folder}' jaxmtl report '{folder}'" in text
    for run, others in ((folder, [make_run()]), (make_run(), [folder])):
        with pytest.raises(InputError, match="my run: was not evaluated, so it cannot be compared"):
            page.write_report(run, compare=others)


def test_long_prompts_show_their_end(make_run):
    checker = check(page.write_report(make_run()))
    shown = [text for text in checker.text if text.startswith("…")]
    assert len(shown) == 6 and all(len(text) == page.SHOWN_CHARACTERS + 1 for text in shown)
    assert all(text.endswith('"quotes"') for text in shown)


def test_nothing_is_written_where_something_is_missing(make_run):
    folder = make_run()
    (folder / "predictions" / "task_c.jsonl").unlink()
    with pytest.raises(InputError, match="run `jaxmtl evaluate` again"):
        page.write_report(folder)
    assert not (folder / "report.html").exists() and not (folder / "report").exists()


def test_what_training_drew_is_shown_beside_what_was_asked_for(make_run):
    folder = make_run()
    (folder / "draws.json").write_text(json.dumps(DRAWS))
    checker = check(page.write_report(folder))
    assert "Draws" in checker.text and "96 rows were drawn of 3 tasks" in " ".join(checker.text)
    assert [attrs["id"] for tag, attrs in checker.tags if attrs.get("class") == "sortable"] == ["draws", "tasks"]
    assert len(checker.images) == 5 and {f"report/draws.{kind}" for kind in ("csv", "md", "png")} <= set(checker.links)
    lines = (folder / "report" / "draws.md").read_text().splitlines()
    assert lines[2:4] == ["| task_a | 30 | 24.00 | 1.25 |", "| task_b | 66 | 72.00 | 0.92 |"]
    assert (folder / "report" / "draws.csv").read_text().splitlines()[2] == f"task_b,66,72.0,{66 / 72}"
    assert [tag for tag, _ in checker.tags].count("script") == 1 and HOSTILE_TASK in checker.text


def test_a_run_that_was_only_trained_shows_its_draws(make_run):
    folder = make_run()
    (folder / "records.jsonl").unlink()
    (folder / "draws.json").write_text(json.dumps(DRAWS))
    checker = check(page.write_report(folder))
    assert "Draws" in checker.text
    assert checker.links == [f"report/{name}" for name in ("draws.csv", "draws.md", "loss.png", "draws.png")]


def test_draws_of_which_nothing_was_asked_have_a_table_and_no_picture(make_run):
    folder = make_run()
    (folder / "draws.json").write_text(json.dumps({"task_a": {"drawn": 0, "asked": 0.0}}))
    checker = check(page.write_report(folder))
    assert "Draws" in checker.text and "report/draws.png" not in checker.links


def test_a_trajectory_has_a_curve_and_settings_have_a_column_each(make_run, tmp_path):
    for step in (2, 10):
        make_run(steps=(step,), name=f"all/step-{step}", curves=False)
    assert "report/steps.png" in check(page.write_report(tmp_path / "all")).links
    for shots in (0, 5, 40):
        make_run(steps=(10,), name=f"few/{shots}-shots_seed-0_rate-0.001", curves=False)
    checker = check(page.write_report(tmp_path / "few"))
    assert "report/steps.png" not in checker.links
    heads = (tmp_path / "few" / "report" / "tasks.csv").read_text().splitlines()[0].split(",")
    assert heads[4:7] == [f"rouge_l ({shots}-shots_seed-0_rate-0.001)" for shots in (0, 5, 40)]
    lines = (tmp_path / "few" / "report" / "overall.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines] == ["setting", *(head[9:-1] for head in heads[4:7])]


@pytest.mark.parametrize(
    ("others", "x", "y"),
    [
        ([], "rouge_l (before training)", "rouge_l (step 10)"),
        (["two"], "rouge_l (one, step 10)", "rouge_l (two, step 10)"),
    ],
)
def test_the_plot_begins_with_what_is_worth_comparing(make_run, others, x, y):
    folder = make_run(name="one")
    checker = check(page.write_report(folder, compare=[make_run(name=name) for name in others]))
    (figure,) = [attrs for tag, attrs in checker.tags if tag == "figure"]
    names = (folder / "report" / "tasks.csv").read_text().splitlines()[0]
    names = next(csv.reader([names]))
    assert [names[int(figure[axis])] for axis in ("data-x", "data-y")] == [x, y]


def test_the_scripts_find_what_they_look_for(make_run):
    path = page.write_report(make_run())
    ids = {attrs["id"] for _, attrs in check(path).tags if "id" in attrs}
    wanted = set(re.findall(r'getElementById\("(\w+)"\)', path.read_text()))
    assert wanted >= {"tasks", "filter", "category", "plot"} and wanted <= ids
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser on this machine")
def test_a_browser_plots_what_the_filter_leaves_and_sorts_by_a_heading(make_run, tmp_path):
    path = page.write_report(make_run())
    act = """<script>
    const pick = (id, value, kind) => {
      document.getElementById(id).value = value;
      document.getElementById(id).dispatchEvent(new Event(kind));
    };
    const first = document.querySelectorAll("#canvas circle").length;
    const rank = document.getElementById("reading").textContent;
    pick("x", 9, "change");
    const falling = document.getElementById("reading").textContent;
    document.querySelectorAll("#tasks thead button")[5].click();
    const order = [...document.querySelectorAll("#tasks tbody tr")].map((row) => row.cells[0].textContent);
    pick("category", "Textual Entailment", "change");
    pick("filter", "TASK_B", "input");
    pick("kind", "bars", "change");
    const bars = [...document.querySelectorAll("#canvas rect title")].map((title) => title.textContent);
    const chosen = document.getElementById("chosen").textContent;
    document.title = JSON.stringify({first, rank, falling, order, bars, chosen});
    </script></body>"""
    path.write_text(path.read_text().replace("</body>", act))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = ["chromium", *flags.split(), "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]))
    assert found["first"] == 3 and found["rank"] == "3 tasks."  # all values of step 0 are equal: no correlation
    assert found["falling"] == "3 tasks; Spearman's rank correlation -1.000."  # NLL and ROUGE-L, two tasks tied
    assert found["order"] == ["task_b", "task_a", "task_c"]  # 75, 50 and 50 at step 10
    assert found["chosen"] == "1 of 3 tasks"
    assert found["bars"] == ["task_b (Textual Entailment): ROUGE-L (step 10) 75"]
