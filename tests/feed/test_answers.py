import dataclasses

import numpy as np
import pytest
from roberta_like import roberta_like

from jaxmtl.feed.answers import Windows, answer_rows, cache_answers
from jaxmtl.feed.eval_stream import eval_stream
from jaxmtl.feed.grouping import grouped
from jaxmtl.feed.sampler import PooledSampler
from jaxmtl.feed.stream import train_stream
from jaxmtl.tasks.answers import IGNORED, Answer, AnsweredExample, with_answer
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.tokenizers import train_sentencepiece
from jaxmtl.types import InputError


def task(name, answer, *examples):
    rows = tuple(
        AnsweredExample(id=f"{name}{k}", inputs="x", targets=targets, texts=texts, answer=right)
        for k, (texts, right, targets) in enumerate(examples)
    )
    return TaskSpec(
        name=name,
        category="c",
        definition="",
        examples=rows,
        splits={"train": tuple(range(len(rows)))},
        metadata=with_answer({}, answer),
    )


PAIRS = task(
    "pairs",
    Answer(kind="class", labels=("no", "yes")),
    (("ab", "c"), "yes", ("yes",)),
    (("abcdefghij", "klm"), "no", ("no",)),
    (("one",), "no", ("no",)),
)
NAMES = task(
    "names",
    Answer(kind="tags", labels=("B-X", "I-X", "O")),
    (("the", "in", "q"), ("O", "B-X", "I-X"), ("O B-X I-X",)),
)
CONTEXT = "in the end 42 is the answer in the book"
QUESTIONS = task("questions", Answer(kind="span"), (("what", CONTEXT), (11,), ("42",)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return roberta_like(tmp_path_factory.mktemp("vocabulary"))


def pieces(tokenizer, ids):
    return [tokenizer.decode([index], skip_special_tokens=False) for index in ids]


def test_pairs_are_framed_and_the_longer_text_is_cut(tokenizer):
    rows = answer_rows(PAIRS, "train", Windows(max_input_tokens=12, stride=2), tokenizer)
    text = ["".join(pieces(tokenizer, ids)) for ids in rows.inputs]
    assert text == ["<s>ab</s></s>c</s>", "<s>abcde</s></s>klm</s>", "<s>one</s>"]
    assert [list(target) for target in rows.targets] == [[1], [0], [0]]


def test_tags_stand_on_the_first_piece_of_each_word(tokenizer):
    rows = answer_rows(NAMES, "train", Windows(), tokenizer)
    # By hand: " the" is one piece by the merges, " in" is a space and "in", " q" a space and "q".
    assert pieces(tokenizer, rows.inputs[0]) == ["<s>", " the", " ", "in", " ", "q", "</s>"]
    assert rows.targets[0] == [IGNORED, 2, 0, IGNORED, 1, IGNORED, IGNORED]
    short = answer_rows(NAMES, "train", Windows(max_input_tokens=6, stride=0), tokenizer)
    assert len(short.inputs[0]) == len(short.targets[0]) == 6


@pytest.mark.parametrize("most, stride", [(24, 4), (22, 0), (60, 8), (19, 7)])
def test_windows_cover_the_context_and_point_at_the_answer_or_at_the_start(tokenizer, most, stride):
    rows = answer_rows(QUESTIONS, "train", Windows(max_input_tokens=most, stride=stride), tokenizer)
    whole = tokenizer.encode(CONTEXT, False)
    offset, covered, found = 4 + 3, [], 0
    for inputs, (first, last) in zip(rows.inputs, rows.targets, strict=True):
        assert len(inputs) <= most and "".join(pieces(tokenizer, inputs[:offset])) == "<s>what</s></s>"
        window = inputs[offset:-1]
        covered = window if not covered else [*covered, *window[stride:]]
        if first:
            found += 1
            # "42" follows a space that is a piece of its own here.
            assert tokenizer.decode(inputs[first : last + 1]) == "42"
        else:
            assert last == 0
    assert covered == whole and found >= 1
    assert rows.ids == ["questions0"] * len(rows.inputs)


def test_a_question_that_leaves_no_room_is_refused(tokenizer):
    with pytest.raises(InputError, match="a question of 4 tokens leaves 8 for its context; expected more than .* 8"):
        answer_rows(QUESTIONS, "train", Windows(max_input_tokens=16, stride=8), tokenizer)
    with pytest.raises(InputError, match="max_input_tokens is 4"):
        Windows(max_input_tokens=4)


def test_a_vocabulary_that_does_not_frame_texts_is_refused(tmp_path):
    t5 = train_sentencepiece(["a b c"] * 9, tmp_path / "spiece.model", 9, 2)
    with pytest.raises(InputError, match="adds 1 ids to a text; a model with heads reads"):
        cache_answers([PAIRS], ["train"], tmp_path / "store", t5)


def test_a_store_keeps_kinds_and_labels_and_weighs_examples_alike(tokenizer, tmp_path):
    tasks = [PAIRS, NAMES, QUESTIONS]
    store = cache_answers(tasks, ["train"], tmp_path / "store", tokenizer)
    entries = [store.entry(one.name, "train") for one in tasks]
    assert [entry.answer for entry in entries] == ["class", "tags", "span"]
    assert [entry.labels for entry in entries] == [["no", "yes"], ["B-X", "I-X", "O"], []]
    assert cache_answers(tasks, ["train"], tmp_path / "store", tokenizer).manifest == store.manifest
    for batch in eval_stream(store, "train", batch_size=5):
        np.testing.assert_allclose(batch["loss_mask"].sum(1), 1.0, rtol=1e-6)
        row = int(np.flatnonzero(batch["task_ids"] == 1)[0])
        expected = [0, 1 / 3, 1 / 3, 0, 1 / 3, 0, 0]
        np.testing.assert_allclose(batch["loss_mask"][row, :7], expected, rtol=1e-6)


def test_mixed_batches_come_from_one_permutation_of_all_examples(tokenizer, tmp_path):
    store = cache_answers([PAIRS, NAMES, QUESTIONS], ["train"], tmp_path / "store", tokenizer)
    stream = train_stream(store, batch_size=5, sampler=PooledSampler, layout=grouped, window=4)
    batches = [next(stream) for _ in range(4)]
    drawn = sorted(
        (int(task), int(example))
        for batch in batches
        for task, example in zip(batch["task_ids"], batch["example_ids"], strict=True)
    )
    every = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    assert drawn == sorted(every * 4)
    # Each example weighs 1, however many labels it has.
    np.testing.assert_allclose([batch["expected_tokens"].sum() for batch in batches], 5.0, rtol=1e-6)


def test_other_labels_make_another_store(tokenizer, tmp_path):
    cache_answers([PAIRS], ["train"], tmp_path / "store", tokenizer)
    turned = with_answer({}, Answer(kind="class", labels=("yes", "no")))
    with pytest.raises(InputError, match="holds other examples of task pairs"):
        cache_answers([dataclasses.replace(PAIRS, metadata=turned)], ["train"], tmp_path / "store", tokenizer)
