"""Rows of labels, tags and spans against what Hugging Face's tokenizers make of the same texts."""

import json
import random

import pytest
from roberta_like import roberta_like

from jaxmtl.feed.answers import Windows, answer_rows
from jaxmtl.tasks.answers import IGNORED, Answer, AnsweredExample, with_answer
from jaxmtl.tasks.spec import TaskSpec

pytestmark = pytest.mark.torch

WORDS = "the king in thé inn had ten things, 'to' think of: in the thin (light) 42 你好".split()
TAGS = ("B-X", "I-X", "O")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return roberta_like(tmp_path_factory.mktemp("vocabulary"))


def theirs(tokenizer, *, add_prefix_space=False):
    import tokenizers
    import transformers

    rules = json.loads(tokenizer.files["tokenizer.json"])
    rules["pre_tokenizer"]["add_prefix_space"] = add_prefix_space
    rules["post_processor"]["add_prefix_space"] = add_prefix_space
    pipeline = tokenizers.Tokenizer.from_str(json.dumps(rules))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pipeline, bos_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>"
    )


def task(answer, examples):
    splits = {"train": tuple(range(len(examples)))}
    metadata = with_answer({}, answer)
    return TaskSpec(name="t", category="c", definition="", examples=examples, splits=splits, metadata=metadata)


def example(key, texts, answer, targets=("x",)):
    return AnsweredExample(id=str(key), inputs="x", targets=targets, texts=texts, answer=answer)


def text(draw, longest):
    return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))


def test_pairs_are_framed_and_cut_alike(tokenizer):
    draw = random.Random(0)
    pairs = [(text(draw, 9), text(draw, 9)) for _ in range(40)] + [(text(draw, 20),) for _ in range(20)]
    made = task(Answer(kind="class", labels=("a",)), tuple(example(k, pair, "a") for k, pair in enumerate(pairs)))
    rows = answer_rows(made, "train", Windows(max_input_tokens=48, stride=8), tokenizer)
    other = theirs(tokenizer)
    for pair, ids in zip(pairs, rows.inputs, strict=True):
        assert ids == other(*pair, truncation=True, max_length=48)["input_ids"]


def test_tags_stand_where_run_ner_puts_them(tokenizer):
    draw = random.Random(1)
    sentences = [tuple(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(40)]
    tags = [tuple(draw.choices(TAGS, k=len(sentence))) for sentence in sentences]
    examples = tuple(example(k, *pair) for k, pair in enumerate(zip(sentences, tags, strict=True)))
    rows = answer_rows(
        task(Answer(kind="tags", labels=TAGS), examples), "train", Windows(max_input_tokens=32, stride=4), tokenizer
    )
    other = theirs(tokenizer, add_prefix_space=True)
    for number, sentence in enumerate(sentences):
        coded = other(list(sentence), is_split_into_words=True, truncation=True, max_length=32)
        words, labels = coded.word_ids(), []
        for place, word in enumerate(words):
            begins = word is not None and word != (words[place - 1] if place else None)
            labels.append(TAGS.index(tags[number][word]) if begins else IGNORED)
        assert rows.inputs[number] == coded["input_ids"]
        assert rows.targets[number] == labels


@pytest.mark.parametrize("most, stride", [(40, 8), (64, 20), (200, 0)])
def test_windows_and_places_are_those_of_run_qa(tokenizer, most, stride):
    draw = random.Random(2)
    examples = []
    for key in range(40):
        context, first = text(draw, 40), draw.randrange(5)
        words = context.split()
        span = words[first : first + draw.randint(1, 4)] or words[:1]
        answer = " ".join(span)
        start = context.index(answer)
        examples.append(example(key, (text(draw, 2), context), (start,), (answer,)))
    rows = answer_rows(
        task(Answer(kind="span"), tuple(examples)), "train", Windows(max_input_tokens=most, stride=stride), tokenizer
    )
    expected = [row for one in examples for row in run_qa_rows(theirs(tokenizer), one, most, stride)]
    assert list(zip(rows.inputs, rows.targets, strict=True)) == expected


def run_qa_rows(tokenizer, example, most, stride):
    """Windows and labels by the rules of Hugging Face's example for question answering."""
    coded = tokenizer(
        *example.texts,
        truncation="only_second",
        max_length=most,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    start, end = example.answer[0], example.answer[0] + len(example.targets[0])
    for index, ids in enumerate(coded["input_ids"]):
        offsets, sides = coded["offset_mapping"][index], coded.sequence_ids(index)
        places = [place for place, side in enumerate(sides) if side == 1]
        first, last = places[0], places[-1]
        if not (offsets[first][0] <= start and offsets[last][1] >= end):
            yield ids, [0, 0]
            continue
        # The example goes on past the context to </s>, whose offset is 0; that is its mistake and not repeated here.
        while first <= places[-1] and offsets[first][0] <= start:
            first += 1
        while offsets[last][1] >= end:
            last -= 1
        yield ids, [first - 1, last + 1]
