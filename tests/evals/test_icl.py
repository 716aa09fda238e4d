import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.evals import icl, icl_memory, reading, scoring
from jaxmtl.evals.icl_format import PLAIN_QUERY, Format, encode_demonstrations, encode_queries
from jaxmtl.models.bart import BART
from jaxmtl.models.bart_config import BARTConfig
from jaxmtl.models.initial import abstract_params
from jaxmtl.partitioning import make_mesh, shardings_for
from jaxmtl.tasks.spec import Demonstration
from jaxmtl.tokenizers import load_tokenizer
from jaxmtl.types import InputError

REAL_DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
TOLERANCE = 1e-5  # relative; sums of a few losses of size 4, in float32
FORM = Format(query_token="<extra_id_9>")  # a sentinel of the tiny vocabulary, id 60
SHOWN = [("is water wet?", "yes"), ("", "no"), ("", "")]
DEMONSTRATIONS = [Demonstration(inputs=inputs, output=output) for inputs, output in SHOWN]
INPUTS = ["the cat sat on the mat", "", "is water wet?"]
CHOICES = [["yes", "no"], ["blue", "", "green"], ["one"]]


def encoder(pretrained):
    """Returns a function of ids that encodes one text without padding."""
    run = jax.jit(lambda ids: pretrained.module.apply({"params": pretrained.params}, ids, method="encode"))
    kept = {}

    def encode(ids):
        key = tuple(ids)
        if key not in kept:
            kept[key] = np.asarray(run(np.array([ids], np.int32)))[0]
        return kept[key]

    return encode


def decoder(pretrained):
    """Returns a function of memory [S, D] and a target that gives its NLL, the softmax by hand in float64.

    Memory is padded, and the decoder's later positions hold rubbish, so that it compiles once.
    """
    variables = {"params": pretrained.params}
    run = jax.jit(lambda inputs, *memory: pretrained.module.apply(variables, inputs, *memory, method="decode"))

    def decode(memory, target):
        inputs = np.full((1, 8), 7, np.int32)
        inputs[0, : len(target)] = [pretrained.config.decoder_start_id, *target[:-1]]
        padded = np.pad(memory, ((0, 128 - len(memory)), (0, 0)))[None]
        logits = np.asarray(run(inputs, padded, np.arange(128)[None] < len(memory)), np.float64)[0, : len(target)]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -log_probs[np.arange(len(target)), target]

    return decode


@pytest.fixture(scope="module")
def plain(pretrained):
    encode, decode = encoder(pretrained), decoder(pretrained)

    def concat(shown, query, target):
        return decode(encode([token for ids in shown for token in ids] + query), target)

    def fid(shown, query, target):
        return decode(np.concatenate([*map(encode, shown), encode(query)]), target)

    def ensemble(shown, query, target):
        return np.mean([decode(encode(ids + query), target) for ids in shown], axis=0)

    return {icl.concat_losses: concat, icl.fid_losses: fid, icl.ensemble_losses: ensemble}


WAYS = [icl.concat_losses, icl.fid_losses, icl.ensemble_losses]


@pytest.mark.parametrize("way, count", [*((way, 3) for way in WAYS), (icl.fid_losses, 1)])
def test_scores_equal_a_loop_over_single_texts(pretrained, plain, way, count):
    shown = encode_demonstrations(pretrained, DEMONSTRATIONS[:count], FORM)
    queries = encode_queries(pretrained, INPUTS, FORM)
    targets = scoring.encode_choices(pretrained, CHOICES)
    found = icl.score_choices(pretrained, DEMONSTRATIONS[:count], INPUTS, CHOICES, way=way, form=FORM)
    means = icl.score_choices(pretrained, DEMONSTRATIONS[:count], INPUTS, CHOICES, way=way, form=FORM, normalise=True)
    for query, rows, total, mean in zip(queries, targets, found, means, strict=True):
        losses = [plain[way](shown, query, row) for row in rows]
        np.testing.assert_allclose(total, [-row.sum() for row in losses], rtol=TOLERANCE)
        np.testing.assert_allclose(mean, [-row.mean() for row in losses], rtol=TOLERANCE)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_target_losses_are_means_over_tokens(pretrained, way):
    targets = [row[0] for row in CHOICES]
    found = icl.loss(pretrained, DEMONSTRATIONS, INPUTS, targets, way=way, form=FORM)
    means = icl.score_choices(
        pretrained, DEMONSTRATIONS, INPUTS, [[text] for text in targets], way=way, form=FORM, normalise=True
    )
    np.testing.assert_allclose(found, [-row[0] for row in means], rtol=TOLERANCE)


@pytest.mark.long
@pytest.mark.parametrize("scores", [icl.concat_scores, icl.fid_scores, icl.ensemble_scores])
def test_without_demonstrations_scores_are_plain_ones(pretrained, scores):
    expected = scoring.score_choices(pretrained, INPUTS, CHOICES)
    for one, other in zip(scores(pretrained, [], INPUTS, CHOICES, form=PLAIN_QUERY), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=TOLERANCE)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_demonstrations_without_tokens_change_nothing(pretrained, way):
    queries, targets = encode_queries(pretrained, INPUTS, FORM), scoring.encode_choices(pretrained, CHOICES)
    expected = scoring.scores_of(scoring.choice_losses(pretrained, queries, targets))
    found = scoring.scores_of(way(pretrained, [[], []], queries, targets))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=TOLERANCE)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_scores_depend_on_neither_order_nor_batch_size(pretrained, way):
    options = dict(way=way, form=FORM)
    whole = icl.score_choices(pretrained, DEMONSTRATIONS, INPUTS, CHOICES, **options)
    order = [2, 0, 1]
    turned = [[rows[i] for i in order] for rows in (INPUTS, CHOICES)]
    single = icl.score_choices(pretrained, DEMONSTRATIONS, *turned, batch_size=1, **options)
    for place, row in zip(order, single, strict=True):
        np.testing.assert_allclose(row, whole[place], rtol=TOLERANCE)


def test_demonstrations_are_encoded_once_for_all_queries(pretrained, monkeypatch):
    calls, rows = [], []
    plain_encode = reading.encode
    monkeypatch.setattr(reading, "encode", lambda *a: calls.append(a[2].shape) or plain_encode(*a))
    memory = icl_memory.read_demonstrations(pretrained, [[5, 6, 1], [7, 1]])
    assert len(calls) == 1 and calls[0][0] == 2
    reader = icl_memory.reader_after(memory)
    read = lambda module, *args: rows.append(args[1].shape) or reader(module, *args)
    found = scoring.choice_losses(pretrained, [[5, 1]] * 5, [[[6, 1]]] * 5, reader=read, batch_size=2)
    assert [shape[0] for shape in rows] == [2, 2, 1] and len(found) == 5
    monkeypatch.setattr(reading, "encode", plain_encode)
    again = icl.fid_losses(pretrained, [[5, 6, 1], [7, 1]], [[5, 1]], [[[6, 1]]])
    np.testing.assert_allclose(found[0][0], again[0][0], rtol=TOLERANCE)


def test_memory_holds_real_states_alone(pretrained):
    rows = [[5] * 9 + [1], [], [6, 1], [7, 8, 9, 1]]
    memory = icl_memory.read_demonstrations(pretrained, rows, batch_size=2)
    encode = encoder(pretrained)
    assert memory.states.shape == (16, 16) and int(memory.mask.sum()) == 16
    expected = np.concatenate([encode(ids) for ids in rows if ids])
    np.testing.assert_allclose(memory.states, expected, rtol=TOLERANCE, atol=1e-6)
    none = icl_memory.read_demonstrations(pretrained, [[]])
    assert none.states.shape == (0, 16) and none.mask.shape == (0,)


@pytest.mark.long
def test_scores_are_the_same_on_a_mesh(pretrained):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = jax.device_put(pretrained.params, shardings_for(abstract_params(pretrained.module), mesh))
    spread = dataclasses.replace(pretrained, params=placed)
    for one, other in zip(
        icl.fid_scores(spread, DEMONSTRATIONS, INPUTS, CHOICES, form=FORM),
        icl.fid_scores(pretrained, DEMONSTRATIONS, INPUTS, CHOICES, form=FORM),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=TOLERANCE)


@pytest.mark.long
def test_bart_fuses_too(pretrained):
    sizes = dict(embed_dim=16, num_heads=2, mlp_dim=24, num_encoder_layers=1, num_decoder_layers=1, max_positions=32)
    config = BARTConfig(vocab_size=70, **sizes)
    tokens = jnp.ones((1, 4), jnp.int32)
    params = nn.unbox(jax.jit(BART(config).init)(jax.random.key(0), tokens, tokens)["params"])
    bart = dataclasses.replace(pretrained, config=config, module=BART(config), params=params)
    shown, query, target = [[5, 6, 2], [7, 2]], [8, 9, 2], [5, 7, 2]
    memory = np.concatenate([*map(encoder(bart), shown), encoder(bart)(query)])
    found = icl.fid_losses(bart, shown, [query], [[target]])[0][0]
    np.testing.assert_allclose(found, decoder(bart)(memory, target), rtol=TOLERANCE)
    with pytest.raises(InputError, match="demonstrations: row 0 has 33 input"):
        icl.fid_losses(bart, [[5] * 33], [query], [[target]])


def test_demonstrations_are_written_as_the_papers_code_does(pretrained):
    tokenizer = pretrained.tokenizer
    ids = lambda text: tokenizer.encode(text, add_special_tokens=False)
    rows = encode_demonstrations(pretrained, DEMONSTRATIONS, FORM)
    for (inputs, output), row in zip(SHOWN, rows, strict=True):
        assert row == [*ids("# Input #"), *ids(inputs), *ids(" # Output #"), *ids(output), tokenizer.eos_token_id]
    assert encode_queries(pretrained, ["the cat"], FORM) == [[60, *ids("the cat")]]
    assert encode_queries(pretrained, ["the cat"], PLAIN_QUERY) == [tokenizer.encode("the cat")]


@pytest.mark.real_data
def test_queries_of_t5_begin_with_the_papers_sentinel(pretrained):
    model = dataclasses.replace(pretrained, tokenizer=load_tokenizer(REAL_DATA / "tokenizers" / "t5"))
    assert encode_queries(model, ["the cat"])[0][0] == 32000  # methods 3.6


def test_long_texts_are_cut_with_their_prefixes(pretrained):
    long = Demonstration(inputs="the cat " * 9, output="a dog " * 9)
    bare = dict(input_prefix="", output_prefix="", query_token="<extra_id_9>")
    whole = encode_demonstrations(pretrained, [long], Format(**bare))[0]
    source = pretrained.tokenizer.encode(long.inputs, add_special_tokens=False)
    row = encode_demonstrations(pretrained, [long], Format(**bare, max_input_tokens=5, max_output_tokens=4))[0]
    assert row == [*source[:5], *whole[len(source) : len(source) + 3], pretrained.tokenizer.eos_token_id]
    assert encode_queries(pretrained, [long.inputs], Format(**bare, max_input_tokens=5)) == [[60, *source[:4]]]


def test_wrong_requests_are_named(pretrained):
    with pytest.raises(InputError, match="begin with '<extra_id_99>', which is no special token of .*PLAIN_QUERY"):
        icl.fid_scores(pretrained, [], ["a"], [["b"]])
    with pytest.raises(InputError, match="begin with 'wet', which is no special token"):
        icl.fid_scores(pretrained, [], ["a"], [["b"]], form=Format(query_token="wet"))
    with pytest.raises(InputError, match="demonstration 1 holds token id 99"):
        icl.fid_losses(pretrained, [[5], [99]], [[5]], [[[6]]])
    with pytest.raises(InputError, match="choices of input 0 are"):
        icl.concat_scores(pretrained, [], ["a"], [[]], form=FORM)
    with pytest.raises(InputError, match="leave no room"):
        icl.concat_scores(pretrained, [], ["a"], [["b"]], form=Format(max_output_tokens=2))
    with pytest.raises(InputError, match="max_input_tokens of in-context learning is 1"):
        Format(max_input_tokens=1)
