import dataclasses
import functools
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmtl.tasks import catalog, prompts
from jaxmtl.tasks.sni_selection import OfficialTest
from jaxmtl.tasks.spec import Demonstration, TaskSpec
from jaxmtl.types import Example, InputError


def demo(inputs, output, explanation=None):
    return Demonstration(inputs=inputs, output=output, explanation=explanation)


def example(inputs="Is it?", key="q"):
    return Example(id=key, inputs=inputs, targets=("yes",))


def task(**changes):
    fields = {
        "name": "task040_qasc_question_generation",
        "category": "C",
        "definition": "Say yes or no",
        "positive": (
            demo("Is snow white?", "yes", "It is known"),
            demo("2 < 1", "no", "2 is more."),
            demo("\u65e5\u672c\u3002", "ja\u201d", ""),
        ),
        "negative": (demo("Is tar white?", "yes", "Tar is black"), demo("Why", "no")),
        "examples": (),
    }
    return TaskSpec(**(fields | changes))


class Letters:
    """One token per character and an end mark: lengths can be counted by hand."""

    def encode(self, text):
        return [*map(ord, text), 0]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(i) for i in ids if i)


LETTERS = Letters()
INSTANCE = "Now complete the following example -\nInput: Is it?\nOutput: "
DEFINITION = "Definition: Say yes or no.\n\n"
FIRST = " Positive Example 1 -\nInput: Is snow white?\n Output: yes.\n\n"
SECOND = " Positive Example 2 -\nInput: 2 < 1.\n Output: no.\n\n"


def test_definition_alone_gets_its_full_stop():
    assert prompts.tk_instruct(task(), example(), tokenizer=LETTERS) == (
        "Definition: Say yes or no.\n\nNow complete the following example -\nInput: Is it?\nOutput: "
    )


def test_instance_alone():
    assert prompts.tk_instruct(task(), example(), definition=False, tokenizer=LETTERS) == INSTANCE


def test_task_name_comes_first():
    text = prompts.tk_instruct(task(), example(), task_name=True, definition=False, tokenizer=LETTERS)
    assert text == "task040_qasc_question_generation. " + INSTANCE


def test_positive_and_negative_demonstrations():
    text = prompts.tk_instruct(task(), example(), num_positive=2, num_negative=2, tokenizer=LETTERS)
    assert text == (
        "Definition: Say yes or no.\n\n"
        " Positive Example 1 -\nInput: Is snow white?\n Output: yes.\n\n"
        " Positive Example 2 -\nInput: 2 < 1.\n Output: no.\n\n"
        " Negative Example 1 -\nInput: Is tar white?\n Output: yes.\n\n"
        " Negative Example 2 -\nInput: Why.\n Output: no.\n\n"
        "Now complete the following example -\nInput: Is it?\nOutput: "
    )


def test_explanations_stand_where_the_file_has_them():
    text = prompts.tk_instruct(
        task(), example(), definition=False, num_positive=3, num_negative=2, explanation=True, tokenizer=LETTERS
    )
    # The third explanation is an empty text, the second negative example has none at all.
    assert text == (
        " Positive Example 1 -\nInput: Is snow white?\n Output: yes.\n Explanation: It is known.\n\n"
        " Positive Example 2 -\nInput: 2 < 1.\n Output: no.\n Explanation: 2 is more.\n\n"
        " Positive Example 3 -\nInput: \u65e5\u672c\u3002.\n Output: ja\u201d.\n Explanation: .\n\n"
        " Negative Example 1 -\nInput: Is tar white?\n Output: yes.\n Explanation: Tar is black.\n\n"
        " Negative Example 2 -\nInput: Why.\n Output: no.\n\n"
        "Now complete the following example -\nInput: Is it?\nOutput: "
    )


@pytest.mark.parametrize(
    ("inputs", "line"),
    [
        ("", "Input: ."),
        (" \n ", "Input: ."),
        ("  padded \n", "Input: padded."),
        ("He said \u201cno\u201d", "Input: He said \u201cno\u201d."),
        ("and so on\u2026", "Input: and so on\u2026."),
        ("\u7d42\u308f\u308a\u3002", "Input: \u7d42\u308f\u308a\u3002."),
        ("2 > 1 >", "Input: 2 > 1 >"),
        ("under_", "Input: under_"),
        ("two\nlines", "Input: two\nlines."),
    ],
)
def test_full_stop_rule_of_the_input(inputs, line):
    text = prompts.tk_instruct(task(), example(inputs), definition=False, tokenizer=LETTERS)
    assert text == f"Now complete the following example -\n{line}\nOutput: "


def test_empty_definition_is_a_full_stop():
    text = prompts.tk_instruct(task(definition=""), example(), tokenizer=LETTERS)
    assert text == "Definition: .\n\n" + INSTANCE


def test_a_demonstration_that_just_fits_is_kept_and_one_token_less_drops_it():
    exact = len(DEFINITION + FIRST + INSTANCE) + 1  # and the end mark
    build = functools.partial(prompts.tk_instruct, task(), example(), num_positive=1, tokenizer=LETTERS)
    assert build(max_tokens=exact) == DEFINITION + FIRST + INSTANCE
    assert build(max_tokens=exact - 1) == DEFINITION + INSTANCE


def test_kept_demonstrations_are_measured_with_a_space_between():
    positive = (demo("a", "b"), demo("c", "d"), demo("e", "f"))
    spec, blocks = (
        task(positive=positive),
        [
            f" Positive Example {n} -\nInput: {i}.\n Output: {o}.\n\n"
            for n, i, o in [(1, "a", "b"), (2, "c", "d"), (3, "e", "f")]
        ],
    )
    build = functools.partial(prompts.tk_instruct, spec, example(), num_positive=3, tokenizer=LETTERS)
    whole = DEFINITION + "".join(blocks) + INSTANCE
    assert build(max_tokens=len(whole) + 2) == whole  # the end mark, and the space between the first two
    assert build(max_tokens=len(whole) + 1) == DEFINITION + blocks[0] + blocks[1] + INSTANCE


def test_the_first_demonstration_that_does_not_fit_ends_the_list():
    spec = task(positive=(demo("a", "b"), demo("long " * 60, "c"), demo("d", "e")))
    text = prompts.tk_instruct(spec, example(), num_positive=3, max_tokens=200, tokenizer=LETTERS)
    assert text == DEFINITION + " Positive Example 1 -\nInput: a.\n Output: b.\n\n" + INSTANCE


def test_negative_ones_are_still_tried_after_a_positive_one_did_not_fit():
    spec = task(positive=(demo("long " * 60, "c"),))
    text = prompts.tk_instruct(spec, example(), num_positive=1, num_negative=1, max_tokens=200, tokenizer=LETTERS)
    assert text == DEFINITION + " Negative Example 1 -\nInput: Is tar white?\n Output: yes.\n\n" + INSTANCE


def test_the_task_name_does_not_count_for_the_demonstrations_but_is_cut_with_the_rest():
    room = len(DEFINITION + FIRST + INSTANCE) + 1
    text = prompts.tk_instruct(task(), example(), task_name=True, num_positive=1, max_tokens=room, tokenizer=LETTERS)
    assert text == ("task040_qasc_question_generation. " + DEFINITION + FIRST + INSTANCE)[:room]


def test_an_over_long_source_keeps_its_first_tokens_and_loses_the_cue(words):
    text = prompts.tk_instruct(task(), example("a b c d e f"), definition=False, max_tokens=8, tokenizer=words)
    assert text == "Now complete the following example - Input: a"


def test_mixture_uses_all_five_encodings_evenly_and_by_example_only(words):
    spec = task()
    drawn = [prompts.tk_instruct_mixture(spec, example(key=str(n)), tokenizer=words) for n in range(1000)]
    expected = [
        DEFINITION + INSTANCE,
        FIRST + SECOND + INSTANCE,
        DEFINITION + FIRST + SECOND + INSTANCE,
        prompts.tk_instruct(spec, example(), num_positive=2, num_negative=2, tokenizer=words),
        prompts.tk_instruct(spec, example(), num_positive=2, explanation=True, tokenizer=words),
    ]
    # 200 expected of each, standard deviation 12.6; five of them are allowed.
    assert [abs(drawn.count(text) - 200) < 63 for text in expected] == [True] * 5
    assert sum(drawn.count(text) for text in expected) == 1000
    assert drawn[17] == prompts.tk_instruct_mixture(spec, example(key="17"), tokenizer=words)
    other = [prompts.tk_instruct_mixture(spec, example(key=str(n)), seed=1, tokenizer=words) for n in range(50)]
    assert other != drawn[:50]


def test_unique_id_in_the_printed_and_in_other_styles():
    build = functools.partial(prompts.unique_id, task(), example(" x? "), tokenizer=LETTERS)
    assert build() == "task_040_qasc: x?"
    assert build(style=prompts.number_id) == "task040: x?"
    assert build(style=prompts.full_id) == "task040_qasc_question_generation: x?"
    assert build(style=str.upper) == "TASK040_QASC_QUESTION_GENERATION: x?"


@pytest.mark.parametrize(
    ("name", "printed", "number"),
    [
        ("task040_qasc_question_generation", "task_040_qasc", "task040"),
        ("task1_a", "task_1_a", "task1"),
        ("task12", "task_12", "task12"),
        ("toy_mood", "toy_mood", "toy_mood"),
        ("tasks", "tasks", "tasks"),
    ],
)
def test_short_ids(name, printed, number):
    assert (prompts.printed_id(name), prompts.number_id(name)) == (printed, number)


def test_instruction_is_the_definition_and_the_instance():
    spec = task(definition=" Turn the fact into a question. ")
    text = prompts.instruction(spec, example("Fact: rain helps plants."), tokenizer=LETTERS)
    assert text == "Turn the fact into a question.\nFact: rain helps plants."


def test_context_ends_in_the_label_and_the_instance():
    positive = tuple(demo(f"x{n} ", f"y{n}") for n in range(5))
    text = prompts.context(task(positive=positive), example("x"), tokenizer=LETTERS)
    assert text == "input: x0\noutput: y0\ninput: x1\noutput: y1\ninput: x2\noutput: y2\ninput:\nx"


def test_context_takes_the_exemplars_there_are():
    text = prompts.context(task(positive=(demo("a", "b"),)), example("x"), tokenizer=LETTERS)
    assert text == "input: a\noutput: b\ninput:\nx"
    assert prompts.context(task(), example("x"), num_exemplars=0, tokenizer=LETTERS) == "input:\nx"


def test_a_special_token_can_lead_every_prompt():
    led = prompts.Led(prompt=prompts.bare)
    assert led(task(), example(), tokenizer=LETTERS) == "</s>" + prompts.bare(task(), example(), tokenizer=LETTERS)


def test_bare_is_the_stripped_instance():
    assert prompts.bare(task(), example(" x \n"), tokenizer=LETTERS) == "x"


def test_a_definition_alone_is_cut_and_must_not_be_empty():
    whole = prompts.definition_only(task(), example(), tokenizer=LETTERS)
    assert whole == task().definition
    assert whole.startswith(prompts.definition_only(task(), example(), max_tokens=5, tokenizer=LETTERS))
    with pytest.raises(InputError, match="its definition is empty"):
        prompts.definition_only(dataclasses.replace(task(), definition=" "), example(), tokenizer=LETTERS)


@pytest.mark.parametrize("prompt", [prompts.unique_id, prompts.instruction, prompts.context, prompts.bare])
def test_every_prompt_is_cut_after_its_first_tokens(prompt):
    whole = prompt(task(), example("a long question about it"), tokenizer=LETTERS)
    assert prompt(task(), example("a long question about it"), max_tokens=9, tokenizer=LETTERS) == whole[:9]


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"num_positive": -1}, {"num_negative": -1}])
def test_senseless_numbers_are_refused(options):
    with pytest.raises(InputError, match="expected"):
        prompts.tk_instruct(task(), example(), tokenizer=LETTERS, **options)


def rederived(spec, inputs, shown, explain, limit, tokenizer):
    """The rules of the methods sheet once more, straight from its table, tokenising the whole text every time."""

    def dot(text):
        return text + ("" if text and text[-1] in string.punctuation else ".")

    size = lambda text: len(tokenizer.encode(text))  # noqa: E731 - a name for one formula
    head = dot("Definition: " + spec.definition.strip()) + "\n\n"
    tail = "Now complete the following example -\n" + dot("Input: " + inputs.strip()) + "\nOutput: "
    groups = []
    for word, demos, most in (("Positive", spec.positive, shown[0]), ("Negative", spec.negative, shown[1])):
        groups.append([])
        for k in range(min(most, len(demos))):
            block = f" {word} Example {k + 1} -\n" + dot("Input: " + demos[k].inputs.strip()) + "\n"
            block += dot(" Output: " + demos[k].output.strip()) + "\n"
            if explain and demos[k].explanation is not None:
                block += dot(" Explanation: " + demos[k].explanation.strip()) + "\n"
            block += "\n"
            if size(head + "".join(" ".join(group) for group in groups) + block + tail) > limit:
                break
            groups[-1].append(block)
    source = head + "".join("".join(group) for group in groups) + tail
    return source if size(source) <= limit else tokenizer.decode(tokenizer.encode(source)[:limit])


TEXT = st.text(st.sampled_from("ab.?\u201d\n "), max_size=12)


@given(
    definition=TEXT,
    demos=st.lists(st.tuples(TEXT, TEXT, st.none() | TEXT), max_size=6),
    inputs=TEXT,
    shown=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    explain=st.booleans(),
    limit=st.integers(1, 500),
)
def test_agrees_with_a_second_derivation(definition, demos, inputs, shown, explain, limit):
    made = tuple(demo(*parts) for parts in demos)
    spec = task(definition=definition, positive=made[::2], negative=made[1::2])
    text = prompts.tk_instruct(
        spec,
        example(inputs),
        num_positive=shown[0],
        num_negative=shown[1],
        explanation=explain,
        max_tokens=limit,
        tokenizer=LETTERS,
    )
    assert text == rederived(spec, inputs, shown, explain, limit, LETTERS)


def test_tokenizers_that_split_on_whitespace_measure_fixed_parts_once(words):
    words.splits_on_whitespace = True
    build = functools.partial(prompts.tk_instruct, task(), num_positive=2, num_negative=1, tokenizer=words)
    texts = [build(example(f"number {n}")) for n in range(20)]
    # The empty text, the definition, three demonstrations and a space once; then one instance each.
    assert len(words.encoded) <= 7 + 20
    words.splits_on_whitespace = False
    assert texts == [build(example(f"number {n}")) for n in range(20)]


def test_a_source_is_not_tokenised_twice_to_measure_it(words):
    prompts.tk_instruct(task(), example(), num_positive=1, tokenizer=words)
    assert len(words.encoded) == 1


@pytest.mark.real_data
def test_real_tasks_agree_with_the_second_derivation_under_t5(real_sni, t5_tokenizer):
    class PartByPart(type(t5_tokenizer)):
        splits_on_whitespace = True

        def __init__(self):
            self.__dict__ = t5_tokenizer.__dict__

    quick = PartByPart()
    tasks = catalog.load("sni", real_sni, task_list="test_tasks_held.txt", selection=OfficialTest(limit=2))
    for spec in tasks.values():
        for item in spec.split("test"):
            for limit in (1024, 160):
                expected = rederived(spec, item.inputs, (2, 2), True, limit, t5_tokenizer)
                options = {"num_positive": 2, "num_negative": 2, "explanation": True, "max_tokens": limit}
                assert prompts.tk_instruct(spec, item, tokenizer=t5_tokenizer, **options) == expected
                assert prompts.tk_instruct(spec, item, tokenizer=quick, **options) == expected


@pytest.mark.parametrize("options", [{}, {"num_positive": 2}, {"num_positive": 1, "num_negative": 2}])
def test_an_instruction_and_the_instance_behind_it_are_the_whole_input(options):
    alone = prompts.instruction_only(task(), example(), tokenizer=LETTERS, **options)
    instance = prompts.tk_instruct(task(), example(), definition=False, tokenizer=LETTERS)
    assert alone + instance == prompts.tk_instruct(task(), example(), tokenizer=LETTERS, **options)


def test_an_instruction_leaves_out_what_does_not_fit_and_is_never_empty():
    options = dict(num_positive=2, tokenizer=LETTERS)
    room = len(DEFINITION + FIRST) + 1
    assert prompts.instruction_only(task(), example(), max_tokens=room, **options) == DEFINITION + FIRST
    assert prompts.instruction_only(task(), example(), max_tokens=room - 1, **options) == DEFINITION
    with pytest.raises(InputError, match="its instruction would be empty"):
        prompts.instruction_only(task(), example(), definition=False, tokenizer=LETTERS)
