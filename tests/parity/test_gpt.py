"""GPT-2 and OPT against Hugging Face's torch models on random weights, in float32."""

import functools

import jax
import numpy as np
import pytest

from jaxmtl.models.beam_search import BeamSearch
from jaxmtl.models.decoding import Generation, generate, greedy
from jaxmtl.models.logit_rules import NoRepeatNgram, RepetitionPenalty
from jaxmtl.models.sampling import Sampling
from jaxmtl.training.objectives import EncoderDecoderLoss
from jaxmtl.weights import load_pretrained, save_pretrained

pytestmark = pytest.mark.torch

VOCABULARY, EOS = 101, 100


def gpt2(width, num_heads, num_layers, **others):
    import transformers

    sizes = dict(n_embd=width, n_head=num_heads, n_layer=num_layers, n_positions=40)
    ids = dict(vocab_size=VOCABULARY, bos_token_id=EOS, eos_token_id=EOS)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ids, **others))


def opt(width, num_heads, num_layers, **others):
    import transformers

    sizes = dict(hidden_size=width, num_attention_heads=num_heads, num_hidden_layers=num_layers, ffn_dim=width + 9)
    ids = dict(vocab_size=VOCABULARY, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=1)
    return transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, **ids, max_position_embeddings=40, **others))


MODELS = {
    "gpt2": functools.partial(gpt2, 20, 5, 3),
    "gpt2 untied relu": functools.partial(
        gpt2, 18, 1, 2, n_inner=31, tie_word_embeddings=False, **{"activation_function": "relu"}
    ),
    "opt": functools.partial(opt, 24, 4, 3),
    "opt post-norm projected": functools.partial(opt, 18, 3, 2, do_layer_norm_before=False, word_embed_proj_dim=10),
    "opt pre-norm projected": functools.partial(opt, 14, 2, 1, word_embed_proj_dim=22, activation_function="gelu"),
}


def make_torch(name):
    import torch

    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():  # biases too, which start at zero
            is_scale = weight.ndim == 1 and key.endswith("weight")
            weight.copy_(is_scale + torch.randn_like(weight) * (0.15 if is_scale or weight.ndim == 1 else 0.3))
    return model


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    model = make_torch(request.param)
    model.save_pretrained(tmp_path)
    return model, load_pretrained(tmp_path)


def rows_of(seed, lengths):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, EOS, length) for length in lengths]


def padded(rows, width, pad_id, side):
    array = np.full((len(rows), width), pad_id, np.int32)
    for line, row in zip(array, rows, strict=True):
        line[slice(width - len(row), None) if side == "left" else slice(len(row))] = row
    return array


def mask_of(rows, width, side):
    return padded([np.ones(len(row)) for row in rows], width, 0, side).astype(bool)


def torch_forward(model, inputs, mask, **options):
    """Positions count tokens; OPT finds them itself."""
    import torch

    if model.config.model_type == "gpt2":
        options["position_ids"] = torch.tensor(np.maximum(np.cumsum(mask, 1) - 1, 0)).long()
    arrays = dict(input_ids=torch.tensor(inputs).long(), attention_mask=torch.tensor(mask).long())
    return model(**arrays, **options)


@pytest.mark.parametrize("side, lengths", [("right", (13, 9, 4, 1)), ("left", (13, 9, 4, 1)), ("none", (11, 11))])
def test_logits_and_what_is_kept_of_prompts_are_those_of_torch(pair, side, lengths):
    model, pretrained = pair
    rows = rows_of(1, lengths)
    width, pad_id = max(lengths), pretrained.config.pad_id
    inputs, mask = padded(rows, width, pad_id, side), mask_of(rows, width, side)
    expected = torch_forward(model, inputs, mask, use_cache=True)
    logits = pretrained.module.apply({"params": pretrained.params}, inputs)
    memory = pretrained.module.apply({"params": pretrained.params}, inputs, method="encode")
    # Two float32 programs that sum in other orders: 1e-4 of the largest logit is far above rounding, far below a bug.
    pairs = [(logits, expected.logits.detach().numpy())]
    for number, layer in enumerate(expected.past_key_values.layers):
        theirs = [np.swapaxes(part.detach().numpy(), 1, 2) for part in (layer.keys, layer.values)]
        pairs += zip((part[number] for part in memory), theirs, strict=True)
    for ours, reference in pairs:
        assert np.abs(ours - reference)[mask].max() <= 1e-4 * np.abs(reference[mask]).max()


def our_batch(prompts, targets, pad_id, side):
    widths = [max(map(len, rows)) for rows in (prompts, targets)]
    return {
        "inputs": padded(prompts, widths[0], pad_id, side),
        "targets": padded(targets, widths[1], pad_id, "right"),
        "loss_mask": mask_of(targets, widths[1], "right").astype(np.float32),
    }


def torch_target_loss(model, prompts, targets):
    """Loss of targets behind their prompts, as one sequence each."""
    import torch

    rows = [np.concatenate(both) for both in zip(prompts, targets, strict=True)]
    width = max(map(len, rows))
    labels = padded(rows, width, -100, "right")
    for line, prompt in zip(labels, prompts, strict=True):
        line[: len(prompt)] = -100
    inputs, mask = padded(rows, width, 0, "right"), mask_of(rows, width, "right")
    return torch_forward(model, inputs, mask, labels=torch.tensor(labels).long()).loss


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_loss_of_targets_and_its_gradient_are_those_of_torch(pair, side):
    model, pretrained = pair
    prompts, targets = rows_of(2, (12, 7, 1, 9)), rows_of(3, (5, 8, 3, 1))
    targets = [np.append(target, EOS) for target in targets]
    loss = torch_target_loss(model, prompts, targets)
    loss.backward()
    batch = our_batch(prompts, targets, pretrained.config.pad_id, side)

    def mean_loss(params):
        losses = EncoderDecoderLoss()(pretrained.module, {"params": params}, batch)
        return losses.objective.sum() / losses.tokens.sum()

    ours, grads = jax.value_and_grad(mean_loss)(pretrained.params)
    assert abs(float(ours) - loss.item()) <= 1e-5 * max(1, loss.item())
    key, mlp = (grads["layers"][part] for part in ("attention", "mlp"))
    if model.config.model_type == "gpt2":
        block, wpe, wte = model.transformer.h[0], model.transformer.wpe, model.transformer.wte
        width = pretrained.config.embed_dim
        pairs = [
            (key["key"]["kernel"][0], block.attn.c_attn.weight.grad[:, width : 2 * width]),
            (key["value"]["bias"][0], block.attn.c_attn.bias.grad[2 * width :]),
            (mlp["wo"]["kernel"][0], block.mlp.c_proj.weight.grad),
        ]
    else:
        decoder = model.model.decoder
        block, wpe, wte = decoder.layers[0], decoder.embed_positions, decoder.embed_tokens
        pairs = [
            (key["key"]["kernel"][0].T, block.self_attn.k_proj.weight.grad),
            (key["query"]["bias"][0], block.self_attn.q_proj.bias.grad),
            (mlp["wo"]["kernel"][0].T, block.fc2.weight.grad),
        ]
    pairs += [(grads["position_embedding"]["embedding"], wpe.weight.grad)]
    pairs += [(grads["token_embedding"]["embedding"], wte.weight.grad)]
    for ours, reference in pairs:
        reference = reference.numpy()
        assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()


def test_greedy_generations_are_those_of_torch(pair):
    import torch

    model, pretrained = pair
    rows = rows_of(4, (13, 9, 4, 1, 13, 6))
    inputs, mask = padded(rows, 13, pretrained.config.pad_id, "left"), mask_of(rows, 13, "left")
    reference = model.generate(
        input_ids=torch.tensor(inputs).long(),
        attention_mask=torch.tensor(mask).long(),
        max_new_tokens=17,
        do_sample=False,
        num_beams=1,
        pad_token_id=pretrained.config.pad_id,
    )[:, 13:].numpy()
    for side in ("left", "right"):
        inputs, mask = padded(rows, 13, pretrained.config.pad_id, side), mask_of(rows, 13, side)
        tokens = np.asarray(greedy(pretrained.module, {"params": pretrained.params}, inputs, mask, max_tokens=17))
        np.testing.assert_array_equal(tokens[:, : reference.shape[1]], reference)


@pytest.mark.parametrize("rules", ["none", "ngram and penalty"])
def test_beam_texts_are_those_of_torch(pair, rules):
    import torch

    model, pretrained = pair
    ours, theirs = (), {}
    if rules != "none":  # both read the prompt too
        ours, theirs = (RepetitionPenalty(1.3), NoRepeatNgram(2)), dict(repetition_penalty=1.3, no_repeat_ngram_size=2)
    # Few different tokens, so that prompts end with what they held before.
    rows = [2 + row % 4 if ours else row for row in rows_of(6, (13, 9, 4, 1, 12))]
    inputs, mask = padded(rows, 13, pretrained.config.pad_id, "left"), mask_of(rows, 13, "left")
    reference = model.generate(
        input_ids=torch.tensor(inputs).long(),
        attention_mask=torch.tensor(mask).long(),
        max_new_tokens=12,
        do_sample=False,
        num_beams=4,
        pad_token_id=pretrained.config.pad_id,
        **theirs,
    )[:, 13:].numpy()
    how = Generation(max_tokens=12, method=BeamSearch(num_beams=4), rules=ours)
    inputs, mask = padded(rows, 13, pretrained.config.pad_id, "right"), mask_of(rows, 13, "right")
    tokens = generate(pretrained.module, {"params": pretrained.params}, inputs, mask, np.zeros(5, np.uint32), how=how)
    np.testing.assert_array_equal(np.asarray(tokens)[:, : reference.shape[1]], reference)


def test_round_trip_through_our_format_is_bit_identical(pair, tmp_path):
    from safetensors.torch import load_file

    model, pretrained = pair
    save_pretrained(tmp_path / "again", pretrained)
    saved = load_file(tmp_path / "again" / "model.safetensors")
    reference = dict(model.state_dict())
    if pretrained.config.tied_head:
        del reference["lm_head.weight"]
    assert saved.keys() == reference.keys()
    assert all(saved[name].equal(reference[name]) for name in reference)


def test_transformers_loads_what_we_save(pair, tmp_path):
    model, pretrained = pair
    save_pretrained(tmp_path / "again", pretrained)
    again, report = type(model).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    inputs = np.array(rows_of(5, (9, 9)))
    expected = torch_forward(model, inputs, np.ones_like(inputs)).logits
    assert torch_forward(again.eval(), inputs, np.ones_like(inputs)).logits.equal(expected)
    assert load_pretrained(tmp_path / "again").config == pretrained.config


@pytest.mark.parametrize("name", ["gpt2", "opt post-norm projected"])
def test_a_model_saved_without_its_output_layer_is_the_same_model(name, tmp_path):
    model = make_torch(name)
    model.save_pretrained(tmp_path / "whole", max_shard_size="10KB")
    model.base_model.save_pretrained(tmp_path / "base")
    whole, base = (load_pretrained(tmp_path / folder) for folder in ("whole", "base"))
    assert whole.config == base.config
    jax.tree.map(np.testing.assert_array_equal, whole.params, base.params)


def test_drawn_tokens_have_the_probabilities_of_torch(pair):
    import torch
    from scipy import stats

    model, pretrained = pair
    draws = 4000
    for row in rows_of(7, (4, 7)):
        with torch.no_grad():
            logits = model(torch.tensor(row)[None].long()).logits[0, -1].double()
        wanted = draws * (logits / 1.7).softmax(-1).numpy()
        rows, mask = padded([row] * draws, 7, pretrained.config.pad_id, "right"), mask_of([row] * draws, 7, "right")
        how = Generation(max_tokens=1, method=Sampling(temperature=1.7, seed=2))
        streams = np.arange(draws, dtype=np.uint32)
        tokens = generate(pretrained.module, {"params": pretrained.params}, rows, mask, streams, how=how)
        counts, rare = np.bincount(np.asarray(tokens)[:, 0], minlength=len(wanted)), wanted < 5
        cells = np.array([np.append(values[~rare], values[rare].sum()) for values in (counts, wanted)])
        assert stats.chisquare(*cells[:, cells[1] > 0]).pvalue > 1e-6
