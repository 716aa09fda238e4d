"""Templates of promptsource: YAML files with Jinja templates that turn a row of a data set into input and target.

A template renders "input ||| target" and, for tasks with answer choices, "choice ||| choice". What it renders is
promptsource's to the letter, but for three things: templates run in Jinja's sandbox, random choices are seeded, and
printing what is not there (a label without a choice) is an error instead of an empty text.
"""

import dataclasses
import functools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox
import yaml
from jinja2 import nodes

from jaxmtl.tasks.fewshot import stable_hash
from jaxmtl.types import InputError, unknown_name

SEPARATOR = "|||"
MAX_VALUE_LENGTH = 2048
"""Printed values are cut to this many characters, at a word's end, as promptsource does unless told otherwise."""
_PROTECTED = "\x00\x01\x02"  # as long as the separator; what stands for the separator where a row's own text holds it
_ANSWER_CHOICES = "answer_choices"
_RANDOM = "jaxmtl_random"

Row = Mapping[str, Any]
"""A row of a data set: field name to value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendered:
    """What a template makes of a row.

    Attributes:
      inputs: the text that a model reads.
      target: the text that it should answer.
      choices: the texts that it may choose from; none for open answers.
    """

    inputs: str
    target: str
    choices: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """A template of promptsource.

    Attributes:
      name: unique in its file.
      jinja: renders "input ||| target".
      answer_choices: renders "choice ||| choice"; None for open answers.
      original_task: whether it asks for what its data set was made for.
      where: file and name, for messages.
    """

    name: str
    jinja: str
    answer_choices: str | None
    original_task: bool
    where: str

    @functools.cached_property
    def fields(self) -> frozenset[str]:
        """Names of the fields of a row that it may look at."""
        texts = [self.jinja, *([] if self.answer_choices is None else [self.answer_choices])]
        try:
            names = set().union(*(jinja2.meta.find_undeclared_variables(_environment().parse(text)) for text in texts))
        except jinja2.TemplateError as error:
            raise InputError(f"{self.where}: no Jinja template ({_one_line(error)})") from error
        return frozenset(names - {_ANSWER_CHOICES} - set(_environment().globals))

    @property
    def instruction(self) -> str:
        """The text of the input without the row: what a hypernetwork reads of the task; see `blanked`."""
        choices = None
        if self.answer_choices is not None and not _names(_environment().parse(self.answer_choices)):
            choices = _parts(_compiled(self.answer_choices), {})
        try:
            return blanked(self.jinja, {} if choices is None else {_ANSWER_CHOICES: choices})
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InputError(f"{self.where}: fails without a row ({_one_line(error)})") from error

    def render(self, row: Row, *, seed: int = 0) -> Rendered | None:
        """Renders a row.

        Args:
          row: the row.
          seed: decides random choices, together with the template's name and the row.

        Returns:
          Input, target and choices; None if the template makes no input, no target, or more than the two: it then
          does not apply to the row.

        Raises:
          InputError: if the row lacks a field, or the template fails.
        """
        missing = sorted(self.fields - row.keys())
        if missing:
            raise InputError(f"{self.where}: uses the field {missing[0]!r}; rows have {', '.join(sorted(row))}")
        # Made when a template chooses, which few do.
        drawn = functools.cache(
            lambda: random.Random(stable_hash(seed, self.name, "template", sorted(map(str, row.items()))))
        )
        values = {key: _protect(value) for key, value in row.items()} | {_RANDOM: drawn}
        choices = None
        try:
            if self.answer_choices is not None:
                choices = _parts(_compiled(self.answer_choices), values)
            parts = _parts(_compiled(_shortened(self.jinja)), {**values, _ANSWER_CHOICES: choices})
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InputError(f"{self.where}: fails on a row ({type(error).__name__}: {_one_line(error)})") from error
        if len(parts) != 2 or not all(parts):
            return None
        return Rendered(inputs=parts[0], target=parts[1], choices=tuple(choices or ()))


def blanked(jinja: str, known: Mapping[str, Any]) -> str:
    """Renders what a template says of every row, with nothing where a row's fields would stand.

    Of a condition both sides remain, of a loop one round; what a template chooses at random is chosen once for all.

    Args:
      jinja: the template.
      known: values of names that do not depend on the row.

    Returns:
      The text of the input, without empty lines and repeated blanks.

    Source: choice 11 of methods 8.
    """
    drawn = random.Random(stable_hash(0, jinja, "instruction"))
    kept: list[nodes.Node] = []  # assignments of what does not depend on a row
    names = {*known, *_environment().globals}
    texts: list[str] = []

    def visit(node: nodes.Node) -> None:
        if isinstance(node, nodes.TemplateData):
            texts.append(node.data)
        elif isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name) and _names(node.node) <= names:
            kept.append(node)
            names.add(node.target.name)
        elif isinstance(node, nodes.Output):
            for part in node.nodes:
                visit(part)
        elif isinstance(node, nodes.Expr):
            texts.append(value_of(node) if _names(node) <= names else " ")
        else:
            for child in node.iter_child_nodes(only=("body", "elif_", "else_")):
                visit(child)

    def value_of(node: nodes.Expr) -> str:
        output = nodes.Output([node], lineno=1, environment=_environment())
        whole = nodes.Template([*kept, output], lineno=1, environment=_environment())
        return _environment().from_string(whole).render({**known, _RANDOM: lambda: drawn})

    visit(_environment().parse(jinja))
    lines = (" ".join(line.split()) for line in "".join(texts).split(SEPARATOR)[0].splitlines())
    return "\n".join(line for line in lines if line)


def _names(node: nodes.Node) -> set[str]:
    """Returns the names that a node reads."""
    itself = [node] if isinstance(node, nodes.Name) else []
    return {name.name for name in (*itself, *node.find_all(nodes.Name)) if name.ctx == "load"}


def read_templates(file: Path) -> list[Template]:
    """Reads the templates of a data set.

    Args:
      file: its `templates.yaml`.

    Returns:
      The templates, sorted by name.

    Raises:
      InputError: if it cannot be read or is no file of promptsource; names the template.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); expected promptsource's templates.yaml") from error
    except yaml.YAMLError as error:
        raise InputError(f"{file}: no YAML of templates ({_one_line(error)})") from error
    entries = content.get("templates") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise InputError(f"{file}: has no 'templates'; expected promptsource's templates.yaml")
    templates = sorted((_template(file, str(key), entry) for key, entry in entries.items()), key=lambda one: one.name)
    for one, other in zip(templates, templates[1:], strict=False):
        if one.name == other.name:
            raise InputError(f"{file}: two templates are called {one.name!r}; names must differ")
    return templates


def chosen_templates(templates: Sequence[Template], names: Sequence[str]) -> list[Template]:
    """Returns templates by name.

    Args:
      templates: those of a file.
      names: names of some of them.

    Returns:
      The templates, in the names' order.

    Raises:
      UnknownNameError: if there is none of a name.
    """
    by_name = {one.name: one for one in templates}
    for name in names:
        if name not in by_name:
            raise unknown_name("template", name, by_name)
    return [by_name[name] for name in names]


class _Loader(yaml.SafeLoader):
    """Reads promptsource's two tags as plain mappings; makes no other objects."""


def _mapping(loader: yaml.SafeLoader, node: yaml.Node) -> dict[Any, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(None, None, "expected a mapping", node.start_mark)
    return loader.construct_mapping(node, deep=True)


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, _mapping)


def _template(file: Path, key: str, entry: Any) -> Template:
    where = f"{file}, template {key}"
    if not isinstance(entry, dict):
        raise InputError(f"{where}: found {type(entry).__name__}, expected the fields name, jinja, answer_choices")
    name, jinja, choices = (entry.get(field) for field in ("name", "jinja", _ANSWER_CHOICES))
    metadata = entry.get("metadata") or {}
    if not isinstance(name, str) or not isinstance(jinja, str):
        raise InputError(f"{where}: name and jinja are {name!r} and {type(jinja).__name__}; expected two texts")
    if choices is not None and not isinstance(choices, str):
        raise InputError(f"{where} ({name}): answer_choices is {choices!r}; expected a text or null")
    if not isinstance(metadata, dict):
        raise InputError(f"{where} ({name}): metadata is a {type(metadata).__name__}; expected fields")
    original = bool(metadata.get("original_task"))
    made = Template(name=name, jinja=jinja, answer_choices=choices, original_task=original, where=f"{file}: {name!r}")
    _ = made.fields  # finds out here and not at the first row whether it is a template
    return made


@jinja2.pass_context  # without it Jinja would choose once, when the template is compiled
def _choice(context: jinja2.runtime.Context, values: Sequence[Any]) -> Any:
    return context[_RANDOM]().choice(list(values))


def _most_frequent(values: Sequence[Any]) -> list[Any] | None:
    """Returns the values that appear most often, or None of nothing: promptsource's filter."""
    counts = Counter(values).most_common()
    return [value for value, count in counts if count == counts[0][1]] if counts else None


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)
    environment.globals.update(zip=zip)
    environment.filters.update(choice=_choice, random=_choice, most_frequent=_most_frequent)
    return environment


@functools.lru_cache(maxsize=1024)
def _compiled(text: str) -> jinja2.Template:
    return _environment().from_string(text)


def _shortened(text: str) -> str:
    return text.replace("}}", f" | string | truncate({MAX_VALUE_LENGTH}) }}}}")


def _parts(template: jinja2.Template, values: Mapping[str, Any]) -> list[str]:
    return [part.strip().replace(_PROTECTED, SEPARATOR) for part in template.render(values).split(SEPARATOR)]


def _protect(value: Any) -> Any:
    return value.replace(SEPARATOR, _PROTECTED) if isinstance(value, str) else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
