"""The parts of the page with which a reader filters and plots the table of tasks; plot.js and page.js move them."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxmtl.reports.sources import Column
from jaxmtl.tasks.metrics import METRICS

if TYPE_CHECKING:
    import pandas as pd

NUM_LEADING = 4
"""Columns of the table of tasks before the scores: task, category, n, metric."""


def filters(table: "pd.DataFrame") -> str:
    """Writes the fields that choose tasks.

    Args:
      table: what `tables.task_table` gives.

    Returns:
      HTML.
    """
    categories = [_option(name, name or "none") for name in sorted(set(map(str, table["category"])))]
    options = "".join(['<option value="*">all</option>', *categories])
    return f"""<p class="controls">
<label>Show tasks whose row holds <input type="search" id="filter"></label>
<label>of category <select id="category">{options}</select></label>
<span id="chosen" aria-live="polite"></span>
</p>"""


def plot(table: "pd.DataFrame", columns: Sequence[Column]) -> str:
    """Writes the frame of the plot, with the columns to begin with.

    Args:
      table: what `tables.task_table` gives.
      columns: the columns it compares.

    Returns:
      HTML.
    """
    x, y = _first_choice([str(name) for name in table.columns], columns)
    return f"""<figure id="plot" data-x="{x}" data-y="{y}">
<figcaption class="controls">
<label>Plot the tasks shown above as <select id="kind"><option value="scatter">a dot for each task</option>
<option value="bars">a bar for each task</option></select></label>
<label class="scatter">x <select id="x"></select></label>
<label>y <select id="y"></select></label>
</figcaption>
<div class="scroll" id="canvas"></div>
<p id="reading" aria-live="polite"></p>
</figure>"""


def _first_choice(names: Sequence[str], columns: Sequence[Column]) -> tuple[int, int]:
    """Returns the places of two columns worth comparing.

    These are a metric of the last states of the first and the last run, or of the first and the last state of a run; of
    a single state two metrics.
    """
    scores = range(NUM_LEADING, len(names))
    metrics = [name.partition(" (")[0] for name in names]
    first = next((place for name in METRICS for place in scores if metrics[place] == name), NUM_LEADING)
    states = list({column.run: column for column in columns}.values())
    states = states if len(states) > 1 else columns
    if len(states) > 1:
        x, y = (names.index(f"{metrics[first]} ({state.label})") for state in (states[0], states[-1]))
        return x, y
    return first, next((place for place in scores if place != first), first)


def _option(value: str, text: str) -> str:
    return f'<option value="{html.escape(value)}">{html.escape(text)}</option>'
