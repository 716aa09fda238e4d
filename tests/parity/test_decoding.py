"""Every way of decoding against Hugging Face's `generate`, in float32 on random weights."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models.beam_search import BeamSearch
from jaxmtl.models.decoding import Generation, generate
from jaxmtl.models.logit_rules import ForcedToken, MinTokens, NoRepeatNgram, RepetitionPenalty
from jaxmtl.models.sampling import Greedy, Sampling
from jaxmtl.weights import load_pretrained

pytestmark = pytest.mark.torch

V, MAX_TOKENS, ROWS = 31, 14, 12
V1_0 = dict(feed_forward_proj="relu", tie_word_embeddings=True)
V1_1 = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
# (kind, d_model, heads, d_kv, d_ff, encoder layers, decoder layers, seed, loudness of the decoder's layers)
SIZES = [(V1_1, 24, 5, 6, 40, 3, 2, 2, 5), (V1_0, 20, 3, 7, 33, 2, 2, 8, 14)]
BEAMS = BeamSearch(num_beams=4)


def make_torch(kind, d_model, num_heads, d_kv, d_ff, encoder, decoder, seed, loudness):
    """Makes a T5 whose texts differ from input to input, end at different lengths and repeat themselves little."""
    import torch
    import transformers

    torch.manual_seed(seed)
    sizes = dict(d_model=d_model, num_heads=num_heads, d_kv=d_kv, d_ff=d_ff, num_layers=encoder)
    config = transformers.T5Config(
        vocab_size=V, num_decoder_layers=decoder, decoder_start_token_id=0, dropout_rate=0.0, **sizes, **kind
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    if not kind["tie_word_embeddings"]:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(V, d_model) * d_model**-0.5)
        model.config.tie_word_embeddings = False
    with torch.no_grad():
        for block in model.decoder.block:
            for attention in (block.layer[0].SelfAttention, block.layer[1].EncDecAttention):
                for part in (attention.q, attention.k, attention.o):
                    part.weight *= loudness
            block.layer[2].DenseReluDense.wo.weight *= loudness
        model.get_output_embeddings().weight[1] *= 1.6
    return model


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size[0]['feed_forward_proj']}-{size[1]}")
def pair(request, tmp_path_factory):
    model = make_torch(*request.param)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return model, load_pretrained(folder)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(3)
    rows = rng.integers(2, V, (ROWS, 11)).astype(np.int32)
    for row, length in enumerate(rng.integers(2, 12, ROWS)):
        rows[row, length:] = 0
    return rows


def torch_texts(model, inputs, **options):
    import torch

    seen = torch.tensor(inputs != 0).long()
    settings = dict(do_sample=False, num_beams=1, max_new_tokens=MAX_TOKENS) | options
    tokens = model.generate(input_ids=torch.tensor(inputs).long(), attention_mask=seen, **settings)
    return [until_end(row) for row in tokens[:, 1:].tolist()]


def our_texts(pretrained, inputs, method, *rules):
    how = Generation(max_tokens=MAX_TOKENS, method=method, rules=rules)
    streams = jnp.arange(len(inputs), dtype=jnp.uint32)
    tokens = generate(pretrained.module, {"params": pretrained.params}, inputs, inputs != 0, streams, how=how)
    return [until_end(row) for row in np.asarray(tokens).tolist()]


def until_end(row):
    return row[: row.index(1) + 1] if 1 in row else row


def test_texts_of_the_models_differ_and_end_at_different_lengths(pair, inputs):
    texts = torch_texts(pair[0], inputs, num_beams=4)
    assert len({tuple(text) for text in texts}) >= ROWS // 2
    assert len({len(text) for text in texts}) >= 3


RULES = {
    "none": ((), {}),
    "ngram": ((NoRepeatNgram(3),), dict(no_repeat_ngram_size=3)),
    "unigram": ((NoRepeatNgram(1),), dict(no_repeat_ngram_size=1)),
    "penalty": ((RepetitionPenalty(1.7),), dict(repetition_penalty=1.7)),
    "least": ((MinTokens(6),), dict(min_new_tokens=6)),
    "forced": (
        (ForcedToken(7, 0), ForcedToken(1, MAX_TOKENS - 1)),
        dict(forced_bos_token_id=7, forced_eos_token_id=1),
    ),
    "all": (
        (RepetitionPenalty(1.3), NoRepeatNgram(2), MinTokens(5), ForcedToken(9, 0), ForcedToken(1, MAX_TOKENS - 1)),
        dict(
            repetition_penalty=1.3,
            no_repeat_ngram_size=2,
            min_new_tokens=5,
            forced_bos_token_id=9,
            forced_eos_token_id=1,
        ),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_greedy_texts_under_rules_are_those_of_torch(pair, inputs, name):
    rules, options = RULES[name]
    assert our_texts(pair[1], inputs, Greedy(), *rules) == torch_texts(pair[0], inputs, **options)


@pytest.mark.parametrize("name", RULES)
def test_beam_texts_under_rules_are_those_of_torch(pair, inputs, name):
    rules, options = RULES[name]
    assert our_texts(pair[1], inputs, BEAMS, *rules) == torch_texts(pair[0], inputs, num_beams=4, **options)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [0.6, 1.0, 2.0, -1.0])
def test_beam_texts_are_those_of_torch(pair, inputs, length_penalty, early_stopping):
    options = dict(length_penalty=length_penalty, early_stopping=early_stopping)
    ours = our_texts(pair[1], inputs, dataclasses.replace(BEAMS, **options))
    assert ours == torch_texts(pair[0], inputs, num_beams=4, **options)


@pytest.mark.parametrize("options", [dict(temperature=1.6), dict(temperature=3.0, top_k=12, top_p=0.8)], ids=str)
def test_drawn_tokens_have_the_probabilities_of_torch(pair, inputs, options):
    import torch
    from scipy import stats
    from transformers.generation import logits_process

    model, pretrained = pair
    draws, prompt = 3000, inputs[:1]
    warpers = dict(
        temperature=logits_process.TemperatureLogitsWarper,
        top_k=logits_process.TopKLogitsWarper,
        top_p=logits_process.TopPLogitsWarper,
    )
    how = Generation(max_tokens=2, method=Sampling(seed=1, **options))
    rows, streams = np.repeat(prompt, draws, axis=0), jnp.arange(draws, dtype=jnp.uint32)
    tokens = np.asarray(generate(pretrained.module, {"params": pretrained.params}, rows, rows != 0, streams, how=how))

    def probabilities(*written):
        with torch.no_grad():
            seen, so_far = torch.tensor(prompt != 0).long(), torch.tensor([[0, *written]])
            scores = model(torch.tensor(prompt).long(), seen, decoder_input_ids=so_far).logits[:, -1]
            for name, value in options.items():
                scores = warpers[name](value)(None, scores)
            return scores[0].double().softmax(-1).numpy()

    first = int(np.argmax(probabilities()))
    for drawn, expected in ((tokens[:, 0], probabilities()), (tokens[tokens[:, 0] == first, 1], probabilities(first))):
        counts = np.bincount(drawn, minlength=V)
        assert counts[expected == 0].sum() == 0
        # Rare tokens are counted together, as the test asks for.
        rare, wanted = expected * len(drawn) < 5, expected * len(drawn)
        counts = np.append(counts[~rare], counts[rare].sum())
        wanted = np.append(wanted[~rare], wanted[rare].sum())
        possible = wanted > 0
        assert stats.chisquare(counts[possible], wanted[possible]).pvalue > 1e-6
