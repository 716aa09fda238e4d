"""Batches of supports and queries: of one task, all different, written as in evaluation, and resumed exactly."""

import functools
import itertools
import json

import numpy as np
import pytest
import tokenizers as hf_tokenizers

from jaxmtl import tokenizers
from jaxmtl.evals.icl_format import Format, encode_demonstrations, encode_queries
from jaxmtl.feed.supports import Writing, instructed_queries, support_stream
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks, cut
from jaxmtl.tasks import prompts
from jaxmtl.tasks.spec import Demonstration
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained

FORM = Format(query_token="<extra_id_9>", max_input_tokens=40, max_output_tokens=20)
NAMES = ["task001_first", "a"]
make = functools.partial(support_stream, form=FORM, num_supports=4, num_queries=6, seed=3, tasks=NAMES, num_shapes=2)


@pytest.fixture(scope="module")
def plain_store(tasks, tokenizer, tmp_path_factory):
    """Inputs as they are: prefixes are the stream's."""
    prompt = lambda task, example, **options: example.inputs
    preprocessing = Preprocessing(prompt=prompt, max_input_tokens=96, max_target_tokens=32)
    return cache_tasks(tasks, ["train"], tmp_path_factory.mktemp("plain"), preprocessing, tokenizer)


def rows_of(field, pad_id=0):
    return [row[row != pad_id].tolist() for row in field]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_supports_and_queries_are_written_as_in_evaluation(plain_store, tasks, tokenizer):
    by_name = {task.name: task for task in tasks}
    model = Pretrained(config=None, module=None, params=None, tokenizer=tokenizer)
    for batch in itertools.islice(make(plain_store), 6):
        (number,) = set(batch["task_ids"].tolist())
        examples = by_name[NAMES[number]].examples
        shown = [Demonstration(inputs=one.inputs, output=one.targets[0]) for one in examples]
        known = encode_demonstrations(model, shown, FORM)
        supports = rows_of(batch["support_inputs"])
        assert len(supports) == 4 and all(row in known for row in supports)
        asked = [examples[place] for place in batch["example_ids"]]
        assert rows_of(batch["inputs"]) == encode_queries(model, [one.inputs for one in asked], FORM)
        assert rows_of(batch["targets"]) == [tokenizer.encode(one.targets[0], True) for one in asked]
        np.testing.assert_array_equal(batch["loss_mask"], batch["targets"] != 0)
        places = {known.index(row) for row in supports} | set(batch["example_ids"].tolist())
        assert len(places) == 10  # nobody is asked about what is shown


def test_a_teacher_reads_written_queries_and_the_model_inputs_and_instructions(tasks, tokenizer, tmp_path):
    how = Preprocessing(
        prompt=lambda task, example, **options: example.inputs,
        max_input_tokens=96,
        max_target_tokens=32,
        instruction=functools.partial(prompts.definition_only, max_tokens=30),
    )
    store = cache_tasks(tasks, ["train"], tmp_path / "store", how, tokenizer)
    plain, instructed = make(store), make(store, asked=instructed_queries)
    for written, batch in itertools.islice(zip(plain, instructed, strict=True), 4):
        np.testing.assert_array_equal(batch["teacher_inputs"], written["inputs"])
        del written["inputs"]
        assert_equal({name: batch[name] for name in written}, written)
        examples = store.examples(NAMES[batch["task_ids"][0]], "train")
        for row, place in enumerate(batch["example_ids"]):
            own, instruction = batch["inputs"][row], batch["instructions"][row]
            assert own[own != 0].tolist() == cut(examples.row(int(place))[0].tolist(), 40, 1)
            assert instruction[instruction != 0].tolist() == examples.instruction(int(place)).tolist()


@pytest.mark.parametrize("special", [False, True])
def test_special_tokens_around_texts_are_as_in_evaluation(tasks, tmp_path, special):
    coder = hf_tokenizers.ByteLevelBPETokenizer()
    texts = [text for task in tasks for one in task.examples for text in (one.inputs, *one.targets)]
    coder.train_from_iterator(texts, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False)
    coder.post_processor = hf_tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    coder.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizers.load_tokenizer(tmp_path / "tokenizer.json")
    preprocessing = Preprocessing(prompt=lambda task, example, **options: example.inputs, max_input_tokens=96)
    store = cache_tasks(tasks, ["train"], tmp_path / "store", preprocessing, tokenizer)
    form = Format(query_token="", query_special_tokens=special, max_input_tokens=40, max_output_tokens=20)
    writing, model = Writing(store, form), Pretrained(config=None, module=None, params=None, tokenizer=tokenizer)
    for task in tasks:
        file = store.examples(task.name, "train")
        for number, one in enumerate(task.examples[:4]):
            inputs, targets = file.row(number)
            assert inputs[0] == targets[0] == 0
            shown = Demonstration(inputs=one.inputs, output=one.targets[0])
            assert [writing.support(inputs, targets)] == encode_demonstrations(model, [shown], form)
            assert [writing.asked(inputs)] == encode_queries(model, [one.inputs], form)


def test_a_stream_resumes_exactly(plain_store):
    whole = list(itertools.islice(make(plain_store), 7))
    stream = make(plain_store)
    for _ in range(3):
        next(stream)
    state = json.loads(json.dumps(stream.state()))
    resumed = make(plain_store)
    resumed.restore(state)
    for batch in whole[3:]:
        assert_equal(next(resumed), batch)
    assert not np.array_equal(whole[0]["example_ids"], next(make(plain_store, seed=4))["example_ids"])


def test_hosts_share_supports_and_queries(plain_store):
    hosts = [make(plain_store, host_index=index, num_hosts=2) for index in range(2)]
    for batch in itertools.islice(make(plain_store), 3):
        parts = [next(host) for host in hosts]
        assert_equal({name: np.concatenate([part[name] for part in parts]) for name in batch}, batch)


def test_tasks_come_at_their_rates_and_shapes_are_few(plain_store):
    stream = make(plain_store, rates=[1.0, 3.0])
    batches = list(itertools.islice(stream, 40))
    drawn, asked = stream.counts()
    np.testing.assert_allclose(drawn, asked, atol=1)
    assert drawn.tolist() == [sum(batch["task_ids"][0] == number for batch in batches) for number in (0, 1)]
    assert len({(batch["inputs"].shape, batch["targets"].shape) for batch in batches}) <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tasks=["task002-second"]), "task002-second has 7 examples; 4 supports and 6 queries of a step need 10"),
        (dict(multiple=4), "6 queries cannot be shared by 4 devices"),
        (dict(form=Format(query_token="<extra_id_99>")), "'<extra_id_99>', which is no token"),
    ],
)
def test_what_cannot_be_drawn_is_refused(plain_store, options, message):
    with pytest.raises(InputError, match=message):
        make(plain_store, **options)


def test_a_state_of_another_stream_is_refused(plain_store):
    with pytest.raises(InputError, match="taken with other supports"):
        make(plain_store, num_supports=2).restore(make(plain_store).state())
    with pytest.raises(InputError, match="damaged: step -1"):
        make(plain_store).restore(make(plain_store).state() | {"step": -1})
