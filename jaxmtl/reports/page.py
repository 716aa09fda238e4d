"""One page about a run: report.html, which needs no network and no other file, and tables and pictures beside it."""

import base64
import datetime
import html
import importlib.resources
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.files import write_whole
from jaxmtl.reports import explorer, figures, tables
from jaxmtl.reports.sources import Column, RunData, read_run
from jaxmtl.reports.variants import variant_table

if TYPE_CHECKING:
    import pandas as pd

PAGE = "report.html"
FOLDER = "report"
MAX_SAMPLED_TASKS = 24
SHOWN_CHARACTERS = 1500


def write_report(
    run_dir: str | os.PathLike, out_dir: str | os.PathLike | None = None, *, compare: Sequence[str | os.PathLike] = ()
) -> pathlib.Path:
    """Writes report.html and, beside it in the folder `report`, tables (CSV, Markdown) and figures (PNG).

    Args:
      run_dir: the run folder; if it was not evaluated yet, the page shows its losses and how to evaluate it.
      out_dir: where to write; the run folder if None.
      compare: more run folders, whose scores are put beside.

    Returns:
      Path of the page.

    Raises:
      InputError: if nothing was logged or scored in a folder, one to compare was not evaluated, a line is broken, or
        nothing can be written.
    """
    runs = [read_run(folder) for folder in (run_dir, *compare)]
    out = pathlib.Path(run_dir if out_dir is None else out_dir)
    is_scored = bool(runs[0].columns or compare)
    pictures, sections = (_scores if is_scored else _only_losses)(runs)
    written = tables.write_tables(runs, out / FOLDER) if is_scored else []
    if runs[0].draws:
        written += tables.write_table(tables.draws_table(runs[0]), out / FOLDER, "draws")
    for name, content in pictures.items():
        write_whole(out / FOLDER / name, content)
        written.append(out / FOLDER / name)
    body = "\n".join([*sections, _files(written, out)])
    write_whole(out / PAGE, _page(f"{runs[0].name}: report", body))
    return out / PAGE


def _scores(runs: Sequence[RunData]) -> tuple[dict[str, bytes], list[str]]:
    """Returns pictures by file name, and the sections about evaluated runs."""
    columns, run = tables.compared(runs), runs[0]
    task_table, category_table = tables.task_table(columns), tables.category_table(columns)
    overall, curve = tables.overall_table(runs), figures.step_curves(tables.overall_table([run]), run.name)
    pictures = _training_pictures(run) | ({} if curve is None else {"steps.png": curve})
    pictures |= {
        "categories.png": figures.category_bars(category_table, columns),
        "tasks.png": figures.task_dots(task_table, columns),
    }
    metrics = [name for name in overall.columns if name not in ("run", "setting", "step", "weights", "tasks", "n")]
    cards = "".join(_card(name, tables.compared([run])) for name in metrics)
    return pictures, [
        _header(run.name, cards, _facts(run)),
        _overall(overall, pictures),
        _loss(pictures, run),
        *_draws(pictures, run),
        _categories(category_table, columns, pictures),
        *_variants(variant_table(columns)),
        _tasks(task_table, columns, pictures),
        _samples(run),
    ]


def _only_losses(runs: Sequence[RunData]) -> tuple[dict[str, bytes], list[str]]:
    """Returns the picture and the sections about a run that was trained, but not evaluated."""
    run = runs[0]
    pictures = _training_pictures(run)
    facts = {"logged steps": max((steps[-1] for steps, _ in run.curves.values()), default=0)}
    sections = [_header(run.name, "", facts), _how_to_evaluate(run), _loss(pictures, run), *_draws(pictures, run)]
    return pictures, sections


def _training_pictures(run: RunData) -> dict[str, bytes]:
    made = {
        "loss.png": figures.loss_curves(run.curves, run.name),
        "draws.png": figures.draw_ratios(tables.draws_table(run)),
    }
    return {name: picture for name, picture in made.items() if picture is not None}


def _page(title: str, body: str) -> str:
    assets = importlib.resources.files("jaxmtl.reports")
    read = lambda name: (assets / name).read_text(encoding="utf-8")
    style, script = read("page.css"), read("page.js") + read("plot.js")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _facts(run: RunData) -> dict[str, Any]:
    """Returns what the page says about an evaluated run beside its scores."""
    last, settings, record = run.columns[-1], run.settings, run.records[-1]
    return {
        "study": record.study,
        "seed": record.seed,
        "evaluated steps": ", ".join(dict.fromkeys(str(column.step) for column in run.columns)),
        "split": settings.get("split", ""),
        "tasks": len(last.scores),
        "examples": sum(scores.n for scores in last.scores.values()),
        "decoding": f"{settings.get('decoding', '')}, at most {settings.get('max_tokens', '?')} tokens",
        "weights": last.weights_hash,
        "config": record.config_hash,
        "code": record.git_hash,
        "evaluated": datetime.datetime.fromtimestamp(record.time, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _header(title: str, cards: str, facts: Mapping[str, Any]) -> str:
    """Returns the title, the numbers that matter most (HTML), and the facts about the run."""
    cells = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items() if value != "")
    return f"""<header>
<p class="kind">jaxmtl report</p>
<h1>{_text(title)}</h1>
<div class="cards">{cards}</div>
<dl class="facts">{cells}</dl>
</header>"""


def _overall(table: "pd.DataFrame", pictures: Mapping[str, bytes]) -> str:
    text = "Scores of each evaluated step as curves; same numbers as the table"
    picture = _picture(pictures["steps.png"], text) if "steps.png" in pictures else ""
    return f"""<section>
<h2>Overall</h2>
<p>Means over all examples, so that a task counts by its number of examples.</p>
{_table(table, list(table.columns))}
{picture}
</section>"""


def _how_to_evaluate(run: RunData) -> str:
    folder = shlex.quote(str(run.folder))
    places = f"--gin.CHECKPOINT={folder} --gin.STORE=STORE --gin.RUN_DIR={folder}"
    return f"""<section>
<h2>Scores</h2>
<p>This run was trained, but not evaluated yet. STORE stands for the token store to score it on:</p>
<pre>jaxmtl evaluate --gin_file=runs/evaluate.gin {_text(places)}
jaxmtl report {_text(folder)}</pre>
</section>"""


def _card(metric: str, columns: Sequence[Column]) -> str:
    """Returns a large number: the last column's mean, and the first one's for comparison."""
    values = [_mean(column, metric) for column in (columns[0], columns[-1])]
    before = f"<small>{_text(columns[0].label)}: {_number(values[0])}</small>" if len(columns) > 1 else ""
    name, unit = tables.NAMES.get(metric, metric), tables.UNITS.get(metric, "")
    return f'<div class="card"><b>{_number(values[1])}</b><span>{_text(name)}, {_text(unit)}</span>{before}</div>'


def _mean(column: Column, metric: str) -> float | None:
    found = [scores for scores in column.scores.values() if metric in scores.metrics]
    total = sum(scores.n for scores in found)
    return sum(scores.metrics[metric] * scores.n for scores in found) / total if total else None


def _loss(pictures: Mapping[str, bytes], run: RunData) -> str:
    if "loss.png" not in pictures:
        text = "No loss was logged in this folder: the model was only evaluated here, not trained."
        return f"<section>\n<h2>Loss</h2>\n<p>{text}</p>\n</section>"
    ends = "; ".join(
        f"{name} {values[0]:.3f} at step {steps[0]}, {values[-1]:.3f} at step {steps[-1]}"
        for name, (steps, values) in sorted(run.curves.items())
        if name.count("/") == 1 and name.endswith("/loss")
    )
    picture = _picture(pictures["loss.png"], f"Loss curves: {ends}")
    return f"<section>\n<h2>Loss</h2>\n{picture}\n<p>{_text(ends)}.</p>\n</section>"


def _draws(pictures: Mapping[str, bytes], run: RunData) -> list[str]:
    """Returns the section about what training drew; none if nothing is known of it."""
    if not run.draws:
        return []
    table, total = tables.draws_table(run), sum(drawn for drawn, _ in run.draws.values())
    text = "Rows drawn over rows asked for, a dot for each task; same numbers as the table"
    picture = f"{_picture(pictures['draws.png'], text)}\n" if "draws.png" in pictures else ""
    return [
        f"""<section>
<h2>Draws</h2>
<p>{total:.0f} rows were drawn of {len(table)} tasks in training. Asked is what the tasks' shares come
to over the same steps; the ratio of the two is near 1 but for chance, which weighs more in small numbers. Select a
heading to sort.</p>
{picture}{_table(table, list(table.columns), sortable="draws")}
</section>"""
    ]


def _categories(table: "pd.DataFrame", columns: Sequence[Column], pictures: Mapping[str, bytes]) -> str:
    """Returns the categories as a table with bars, and as a picture."""
    heads = "".join(f'<th class="number">{_text(column.label)}</th>' for column in columns)
    rows = []
    for row in table.to_dict("records"):
        cells = "".join(_bar(row, column.label, row["metric"] == "nll") for column in columns)
        metric = tables.NAMES.get(row["metric"], row["metric"])
        rows.append(
            f"<tr><th scope=row>{_text(row['category'])}</th><td class=number>{row['tasks']}</td>"
            f"<td class=number>{row['n']}</td><td>{_text(metric)}</td>{cells}</tr>"
        )
    text = "Headline score of each category as bars with 95% intervals as whiskers; same numbers as the table"
    picture = _picture(pictures["categories.png"], text)
    return f"""<section>
<h2>Categories</h2>
<p>Mean over examples of each category's headline metric; in brackets a 95% bootstrap interval over examples, where the
predictions of that step are still there.</p>
<div class="scroll"><table>
<thead><tr><th>category</th><th class="number">tasks</th><th class="number">examples</th><th>metric</th>
{heads}</tr></thead>
<tbody>
{"".join(rows)}
</tbody></table></div>
{picture}
</section>"""


def _variants(table: "pd.DataFrame") -> list[str]:
    """Returns the spread over templates; nothing where answers were not ranked."""
    if table.empty:
        return []
    return [
        f"""<section>
<h2>Templates</h2>
<p>Mean and median accuracy over the templates of each data set, in percent; choices ranked by the sum of their tokens'
log-probabilities, and by its mean per token.</p>
{_table(table, list(table.columns))}
</section>"""
    ]


def _bar(row: Mapping[str, Any], label: str, plain: bool) -> str:
    value, low, high = row[label], row[f"{label} low"], row[f"{label} high"]
    interval = f" <small>[{_number(low)}, {_number(high)}]</small>" if _number(low) else ""
    width = 0.0 if plain or not _number(value) else min(max(value, 0.0), 100.0)
    bar = f'<span class="bar"><span style="width:{width:.1f}%"></span></span>'
    return f'<td class="number score">{_number(value)}{interval}{bar}</td>'


def _tasks(table: "pd.DataFrame", columns: Sequence[Column], pictures: Mapping[str, bytes]) -> str:
    picture = _picture(pictures["tasks.png"], "Headline score of each task as dots; same numbers as the table")
    return f"""<section>
<h2>Tasks</h2>
<p>Select a heading to sort.</p>
{explorer.filters(table)}
{_table(table, list(table.columns), sortable="tasks")}
{explorer.plot(table, columns)}
<details><summary>All tasks as a picture</summary>
{picture}
</details>
</section>"""


def _samples(run: RunData) -> str:
    """Returns some predictions, of tasks taken from all categories in turn."""
    by_category: dict[str, list[str]] = {}
    for task in run.samples:
        by_category.setdefault(run.settings["tasks"][task].get("category", ""), []).append(task)
    turns = max((len(tasks) for tasks in by_category.values()), default=0)
    in_turn = [tasks[turn] for turn in range(turns) for tasks in by_category.values() if turn < len(tasks)]
    chosen = in_turn[:MAX_SAMPLED_TASKS]
    blocks = "\n".join(_sample(task, run.samples[task]) for task in chosen)
    return f"""<section>
<h2>Sample predictions</h2>
<p>The first examples of {len(chosen)} of {len(run.samples)} tasks; all are in the folder predictions.</p>
{blocks}
</section>"""


def _sample(task: str, rows: Sequence[Mapping[str, Any]]) -> str:
    items = []
    for row in rows:
        scores = ", ".join(f"{tables.NAMES[name]} {row[name]:.2f}" for name in tables.NAMES if name in row)
        prompt, references = str(row.get("inputs", "")), " / ".join(map(str, row.get("references", ())))
        cut = "…" if len(prompt) > SHOWN_CHARACTERS else ""
        items.append(
            f"<dl><dt>input</dt><dd>{cut}{_text(prompt[-SHOWN_CHARACTERS:])}</dd>"
            f"<dt>prediction</dt><dd class=prediction>{_text(row.get('prediction', '')) or '<i>empty</i>'}</dd>"
            f"<dt>references</dt><dd>{_text(references)}</dd><dt>scores</dt><dd>{_text(scores)}</dd></dl>"
        )
    return f"<details><summary>{_text(task)}</summary>\n" + "\n".join(items) + "\n</details>"


def _files(written: Sequence[pathlib.Path], out: pathlib.Path) -> str:
    names = [path.relative_to(out).as_posix() for path in written]
    links = "".join(f'<li><a href="{html.escape(name)}">{_text(name)}</a></li>' for name in names)
    return f"<section>\n<h2>Files</h2>\n<ul>{links}</ul>\n</section>"


def _table(table: "pd.DataFrame", names: Sequence[str], sortable: str = "") -> str:
    """Returns an HTML table; with an id in `sortable`, its headings are buttons."""
    import pandas as pd

    number = {name: pd.api.types.is_numeric_dtype(table[name]) for name in names}
    style = {name: ' class="number"' if number[name] else "" for name in names}
    label = {name: f"<button>{_heading(name)}</button>" if sortable else _heading(name) for name in names}
    head = "".join(f"<th{style[name]}>{label[name]}</th>" for name in names)
    cell = lambda name, value: f"<td{style[name]}{_digits(value)}>{_text(_shown(value))}</td>"
    rows = ("<tr>" + "".join(cell(name, row[name]) for name in names) + "</tr>" for row in table.to_dict("records"))
    identity = f' id="{sortable}" class="sortable"' if sortable else ""
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table{identity}><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _heading(name: str) -> str:
    """Returns a column's name as HTML; what stands before the bracket stays on one line."""
    metric, bracket, label = str(name).partition(" (")
    rest = f" {_text(bracket.strip() + label)}" if bracket else ""
    return f"<span>{_text(tables.NAMES.get(metric, metric))}</span>{rest}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    return tables.NAMES.get(value, value) if isinstance(value, str) else str(value)


def _digits(value: Any) -> str:
    """Returns an attribute with more digits than are shown, for sorting and plots."""
    return f' data-value="{value:.6g}"' if isinstance(value, float) and value == value else ""


def _number(value: Any) -> str:
    """Returns two decimals, or nothing for what is missing."""
    return "" if value is None or value != value else f"{value:.2f}"


def _picture(content: bytes, text: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(text)}">'


def _text(value: Any) -> str:
    return html.escape(str(value))
