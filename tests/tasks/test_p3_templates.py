"""Templates render what promptsource renders; expected texts were written by hand from its rules."""

import pathlib

import jinja2
import pytest

from jaxmtl.tasks.p3_templates import Template, chosen_templates, read_templates
from jaxmtl.types import InputError, UnknownNameError

REAL = pathlib.Path(__file__).parents[3] / "shared" / "data" / "p3_t0" / "promptsource_templates"
FILE = r"""
dataset: pets
templates:
  0b: !Template
    answer_choices: Yes ||| No
    id: 0b
    jinja: "{{ text }}  \n\nTrue?   ||| \n{{ answer_choices[label] }} "
    metadata: !TemplateMetadata
      choices_in_prompt: false
      languages:
      - en
      metrics:
      - Accuracy
      original_task: true
    name: true?
    reference: ''
  0a: !Template
    answer_choices: null
    id: 0a
    jinja: '{{ text }} ||| {{ text | length }}'
    metadata: !TemplateMetadata {}
    name: count
    reference: ''
"""


def template(jinja, answer_choices=None, name="t"):
    return Template(name=name, jinja=jinja, answer_choices=answer_choices, original_task=True, where="here: 't'")


def rendered(jinja, answer_choices=None, **row):
    made = template(jinja, answer_choices).render(row)
    return None if made is None else (made.inputs, made.target, made.choices)


def test_a_file_gives_its_templates_by_name(tmp_path):
    (tmp_path / "templates.yaml").write_text(FILE)
    count, true = read_templates(tmp_path / "templates.yaml")
    assert (count.name, count.answer_choices, count.original_task) == ("count", None, False)
    assert (true.name, true.answer_choices, true.original_task) == ("true?", "Yes ||| No", True)
    assert true.fields == {"text", "label"}
    # Spaces at both ends go, those inside and line breaks stay.
    made = true.render({"text": " A cat.", "label": 1, "more": 3})
    assert made is not None and (made.inputs, made.target, made.choices) == ("A cat.  \n\nTrue?", "No", ("Yes", "No"))
    assert chosen_templates([count, true], ["true?"]) == [true]
    with pytest.raises(UnknownNameError, match="template 'tru'; closest: true"):
        chosen_templates([count, true], ["tru"])


def test_a_template_that_does_not_apply_makes_nothing():
    one_sided = '{% if question == "cause" %}Why {{ x }}? ||| {{ x }}{% endif %}'
    assert rendered(one_sided, question="cause", x="a") == ("Why a?", "a", ())
    assert rendered(one_sided, question="effect", x="a") is None
    assert rendered("{{ x }} ||| {% if label != -1 %}{{ label }}{% endif %}", x="a", label=-1) is None
    assert rendered("{{ x }} ||| b ||| c", x="a") is None


def test_an_instruction_is_what_is_left_without_the_row():
    jinja = "{% if x %}{{premise}} Using  only the\n{{ x }}\nabove, {{ hypothesis }}?{% endif %} ||| {{ answer }}"
    assert template(jinja).instruction == "Using only the\nabove, ?"
    constants = 'Is {{ claim }} {{"true"}}, {{ answer_choices[1] }} or {{ answer_choices[2] | lower }}? ||| {{ x }}'
    assert template(constants, "a ||| b ||| C").instruction == "Is true, b or c?"
    assert template(constants, "a ||| {{ b }} ||| C").instruction == "Is true, or ?"
    chosen = "{% set all = ['How?', 'Why?'] %}{{ all | choice }} {% for one in rows %}({{ one }}){% endfor %} ||| x"
    assert template(chosen).instruction in ("How? ( )", "Why? ( )")
    assert template(chosen).instruction == template(chosen).instruction


def test_choices_may_depend_on_fields_and_their_number_may_vary():
    endings = '{{ endings | join(" ||| ") }}'
    row = dict(endings=["a b", " c "], label="1")
    assert rendered("{{ answer_choices | length }} ||| {{ answer_choices[label | int()] }}", endings, **row) == (
        "2",
        "c",
        ("a b", "c"),
    )
    assert rendered("x ||| {{ answer_choices[0] }}", "{{ a }} ||| {{ b }}", a="1", b=2) == ("x", "1", ("1", "2"))


def test_bars_in_a_row_s_own_text_do_not_separate():
    made = rendered("{{ text }} ||| {{ text }}", "{{ text }} ||| no", text="a ||| b")
    assert made == ("a ||| b", "a ||| b", ("a ||| b", "no"))


def test_helpers_are_those_of_promptsource():
    assert rendered("{{ words | most_frequent | join(',') }} ||| y", words=["a", "b", "a", "b", "c"])[0] == "a,b"
    assert rendered("x{{ words | most_frequent }} ||| y", words=[])[0] == "xNone"
    assert rendered("{% for a, b in zip(x, y) %}{{ a }}{{ b }} {% endfor %}|||z", x=[1, 2], y="pq")[0] == "1p 2q"
    assert rendered("{% for n in range(3) %}{{ n }}{% endfor %}|||z")[0] == "012"
    assert rendered('{{ text.split(" ")[1:] | join(" ") | replace("it", "Tom") }} ||| y', text="a it b")[0] == "Tom b"
    # What is printed is shortened at a word's end; what is computed is not.
    long = "word " * 500
    made = rendered("{{ text }} ||| {{ text | length }}", text=long)
    assert made[0] == jinja2.Environment().from_string("{{ t | truncate(2048) }}").render(t=long)
    assert made[0].endswith("word...") and len(made[0]) <= 2048 and made[1] == "2500"


def test_random_choices_depend_on_row_and_seed_alone():
    made = template("{{ ['a', 'b', 'c', 'd'] | choice }} ||| {{ n }}")
    texts = [made.render({"n": n}).inputs for n in range(40)]
    assert set(texts) == set("abcd") and texts == [made.render({"n": n}).inputs for n in range(40)]
    assert texts != [made.render({"n": n}, seed=1).inputs for n in range(40)]


def test_templates_cannot_reach_out_of_their_sandbox():
    for attack in ("{{ text.__class__.__mro__ }}", "{{ zip.__self__ }}", "{% include 'setup.py' %}"):
        with pytest.raises(InputError, match=r"here: 't': fails on a row"):
            rendered(f"{attack} ||| y", text="a")


@pytest.mark.parametrize(
    "text, message",
    [
        ("templates: [", "no YAML of templates"),
        ("- a", "has no 'templates'"),
        ("templates:\n  0a: text", "template 0a: found str, expected the fields name, jinja"),
        ("templates:\n  0a: !Template {name: 3, jinja: x}", "name and jinja are 3 and str; expected two texts"),
        ("templates:\n  0a: !Template {name: a, jinja: x, answer_choices: 3}", "answer_choices is 3; expected a text"),
        ("templates:\n  0a: !Template {name: a, jinja: '{{ x'}", "'a': no Jinja template"),
        ("templates:\n  0a: !Template {name: a, jinja: '{{ x | nofilter }}'}", "'a': no Jinja template .*nofilter"),
        ("templates:\n  0a: {name: a, jinja: x}\n  0b: {name: a, jinja: x}", "two templates are called 'a'"),
        ("templates:\n  0a: !!python/object/apply:os.getcwd []", "no YAML of templates"),
        ("templates:\n  0a: !Template [1]", "no YAML of templates"),
    ],
)
def test_bad_files_are_one_line(tmp_path, text, message):
    (tmp_path / "templates.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_templates(tmp_path / "templates.yaml")
    assert "\n" not in str(error.value) and "templates.yaml" in str(error.value)


def test_bad_rows_are_one_line():
    with pytest.raises(InputError, match="uses the field 'text'; rows have label, words"):
        rendered("{{ text }} ||| a", words="b", label=3)
    with pytest.raises(InputError, match=r"fails on a row \(TypeError: "):
        rendered("{% set both = label + text %}{{ both }} ||| a", text="b", label=3)
    with pytest.raises(InputError, match="fails on a row .*has no element 5"):
        rendered("a ||| {{ answer_choices[label] }}", "x ||| y", label=5)


@pytest.mark.real_data
def test_all_real_templates_are_read():
    templates = [one for file in sorted(REAL.rglob("templates.yaml")) for one in read_templates(file)]
    assert len(templates) == 608
    without_words = [one.name for one in templates if not one.instruction]
    assert len(without_words) == 7, "they show the row alone"
    (claim,) = {one.instruction for one in templates if one.name == "claim true/false/inconclusive"}
    assert claim == 'Based on that information, is the claim: " " true, false, or inconclusive?'
