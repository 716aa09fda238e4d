"""P3 (Public Pool of Prompts): every template of promptsource, applied to a data set, is a task with answer choices.

The folder holds `p3_t0/promptsource_templates/` (promptsource's folders of templates) and the data sets' own files, see
`jaxmtl.tasks.p3_sources`; sets without templates or rows there are left out. A task's name is P3's, its category is the
data set, so that the tasks of a category are the variants that `jaxmtl.evals.aggregate` averages; its definition is the
template's text without the row.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmtl.tasks import p3_sources
from jaxmtl.tasks.choices import ChoiceExample
from jaxmtl.tasks.p3_sources import HELD_OUT, SETS, P3Set, PlacedRow, key_of
from jaxmtl.tasks.p3_templates import Template, chosen_templates, read_templates
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.types import Example, InputError, unknown_name

TEMPLATES = Path("p3_t0", "promptsource_templates")
ONE_SIDED = {
    "copa": (
        "…As a result, C1 or C2?",
        "…What could happen next, C1 or C2?",
        "…which may be caused by",
        "…why? C1 or C2",
    )
}
"""Templates for causes or for effects only, which FiD-ICL leaves out of T0's. Source: methods 3.2."""
ACCURACY = "accuracy"


def load(
    data_dir: str | Path | None,
    *,
    names: Sequence[str] | None = HELD_OUT,
    templates: str | Sequence[str] = "t0",
    few_shot_files: Sequence[tuple[int, int]] = (),
    seed: int = 0,
) -> dict[str, TaskSpec]:
    """Reads the collection.

    Args:
      data_dir: the folder.
      names: data sets, keys of `p3_sources.SETS`; None for all that are there.
      templates: "t0" for those with answer choices that ask for what the set was made for, T0's evaluation; "fid_icl"
        for those without COPA's one-sided ones; "all" for all, open answers too; or names of templates, of which a set
        takes those that it has.
      few_shot_files: shots and seed of FiD-ICL's few-shot files that shall be splits of their own besides "fewshot",
        which holds the rows of all: (16, 0) is "fewshot_16_seed_0".
      seed: decides what templates choose at random.

    Returns:
      Task name to task; metadata: "dataset", "template" (its name), "num_left_out" (split to the number of rows that
      the template does not apply to).

    Raises:
      InputError: if the folder is missing or holds none of the sets, no set has one of the few-shot files, or a file or
        a template is bad.
      UnknownNameError: if there is no such set, choice of templates, or template.
    """
    home = Path(data_dir) if data_dir is not None else None
    if home is None or not (home / TEMPLATES).is_dir():
        raise InputError(f"{data_dir}: has no folder {TEMPLATES}; expected one that holds it")
    for name in names or ():
        if name not in SETS:
            raise unknown_name("data set of P3", name, SETS)
    known = _known_templates(home, [*(names or SETS)])
    if not isinstance(templates, str):
        every = [one for found in known.values() for one in found]
        chosen_templates(every, templates)
    elif templates not in _KINDS:
        raise unknown_name("choice of templates", templates, _KINDS)
    tasks: dict[str, TaskSpec] = {}
    for name, found in known.items():
        rows = p3_sources.splits(SETS[name], home, [(shots, key) for shots, key in few_shot_files])
        for template in _chosen(name, found, templates) if rows else ():
            task = _task(name, SETS[name], template, rows, seed)
            tasks[task.name] = task
    if not tasks:
        raise InputError(f"{data_dir}: holds templates and rows of none of the sets {', '.join(names or SETS)}")
    for shots, key in few_shot_files:
        if not any(p3_sources.few_shot_split(shots, key) in task.metadata["num_left_out"] for task in tasks.values()):
            raise InputError(
                f"{data_dir}: none of the sets {', '.join(known)} has a few-shot file of {shots} shots and seed {key} "
                "(FEW_SHOT_FILES)"
            )
    return tasks


def task_name(dataset: str, template: str) -> str:
    """Returns the name that P3 gives a data set's template.

    Args:
      dataset: its folder of templates.
      template: the template's name.

    Returns:
      Both, with "_" for each run of other characters than letters, digits, "_" and ".".

    Source: t-zero's `get_task_name`; methods 3.1.
    """
    return re.sub(r"[^\w.]+", "_", f"{dataset.replace('/', '_')}_{template}")


_KINDS = ("t0", "fid_icl", "all")


def _known_templates(home: Path, names: Sequence[str]) -> dict[str, list[Template]]:
    files = {name: home / TEMPLATES / SETS[name].templates / "templates.yaml" for name in names}
    return {name: read_templates(file) for name, file in files.items() if file.is_file()}


def _chosen(name: str, found: Sequence[Template], templates: str | Sequence[str]) -> list[Template]:
    if not isinstance(templates, str):
        return [one for one in found if one.name in templates]
    if templates == "all":
        return list(found)
    asked = [one for one in found if one.original_task and one.answer_choices is not None]
    left_out = ONE_SIDED.get(name, ()) if templates == "fid_icl" else ()
    return [one for one in asked if one.name not in left_out]


def _task(name: str, form: P3Set, template: Template, rows: dict[str, list[PlacedRow]], seed: int) -> TaskSpec:
    # A row of several few-shot files is one example of several splits.
    examples: list[Example] = []
    places: dict[str, int | None] = {}
    splits: dict[str, tuple[int, ...]] = {}
    left_out: dict[str, int] = {}
    for split, placed in rows.items():
        indices = []
        for number, row in enumerate(placed):
            key = key_of(row) if split != p3_sources.TEST else f"{split} {number}"
            if key not in places:
                example = _example(f"{split}-{number}", template, row, seed)
                places[key] = len(examples) if example is not None else None
                examples += [example] if example is not None else []
            indices.append(places[key])
        kept = tuple(index for index in indices if index is not None)
        left_out[split] = len(indices) - len(kept)
        splits |= {split: kept} if kept else {}
    return TaskSpec(
        name=task_name(form.templates, template.name) + form.suffix,
        category=name,
        definition=template.instruction,
        examples=tuple(examples),
        metric=ACCURACY if template.answer_choices is not None else "rouge_l",
        splits=splits,
        metadata=_metadata(form, template, left_out),
    )


def _metadata(form: P3Set, template: Template, left_out: dict[str, int]) -> dict[str, Any]:
    return {"dataset": form.templates, "template": template.name, "num_left_out": left_out}


def _example(key: str, template: Template, row: PlacedRow, seed: int) -> Example | None:
    try:
        made = template.render(row.fields, seed=seed)
        if made is None:
            return None
        texts: dict[str, Any] = dict(id=key, inputs=made.inputs, targets=(made.target,))
        return ChoiceExample(**texts, choices=made.choices) if template.answer_choices is not None else Example(**texts)
    except InputError as error:
        raise InputError(f"{row.place}: {error}") from error
