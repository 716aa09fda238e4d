"""BART against Hugging Face's torch BART on random weights, in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from packing_toy import examples, packed_batch

from jaxmtl.models.beam_search import BeamSearch
from jaxmtl.models.decoding import Generation, generate, greedy
from jaxmtl.models.logit_rules import NoRepeatNgram
from jaxmtl.models.shifting import shift_right
from jaxmtl.training.objectives import EncoderDecoderLoss, sum_segments
from jaxmtl.weights import load_pretrained, resize_vocabulary, save_pretrained

pytestmark = pytest.mark.torch

PAD, START = 1, 2
# (d_model, heads, ffn, encoder layers, decoder layers, scaled embedding)
SIZES = [(21, 3, 33, 2, 3, False), (16, 4, 24, 1, 1, True), (18, 1, 40, 3, 2, False)]


def make_torch(d_model, heads, ffn, encoder, decoder, scaled, seed=0):
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.BartConfig(
        vocab_size=101,
        d_model=d_model,
        encoder_layers=encoder,
        decoder_layers=decoder,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn,
        max_position_embeddings=31,
        scale_embedding=scaled,
        init_std=0.3,
        dropout=0.0,
        forced_eos_token_id=None,
    )
    model = transformers.BartForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # biases and norms start at 0 and 1, where a swap of two would not show
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.final_logits_bias += torch.randn_like(model.final_logits_bias)
    return model


@pytest.fixture(params=SIZES, ids=lambda size: "x".join(map(str, size)))
def pair(request, tmp_path):
    model = make_torch(*request.param)
    model.save_pretrained(tmp_path)
    return model, load_pretrained(tmp_path)


def padded_batch(seed=0, rows=4, source=13, target=9):
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(4, 101, (rows, source)), rng.integers(4, 101, (rows, target))
    for row in range(rows):
        inputs[row, source - 2 * row :] = PAD
        targets[row, target - row :] = PAD
    return inputs.astype(np.int32), targets.astype(np.int32)


def torch_forward(model, inputs, targets):
    import torch

    labels = torch.tensor(np.where(targets == PAD, -100, targets)).long()
    decoder_inputs = torch.tensor(np.array(shift_right(targets, START))).long()
    return model(
        input_ids=torch.tensor(inputs).long(),
        attention_mask=torch.tensor(inputs != PAD).long(),
        decoder_input_ids=decoder_inputs,
        labels=labels,
        output_hidden_states=True,
    )


def our_loss(pretrained, params, inputs, targets):
    logits = pretrained.module.apply({"params": params}, inputs, shift_right(targets, START))
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    return -(picked * (targets != PAD)).sum() / (targets != PAD).sum(), logits


def assert_near(ours, theirs):
    # Two float32 programs that sum in other orders: 1e-4 of the largest is far above rounding, far below a bug.
    theirs = theirs.detach().numpy()
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_logits_loss_and_the_encoder_s_states_are_those_of_torch(pair):
    model, pretrained = pair
    inputs, targets = padded_batch()
    expected = torch_forward(model, inputs, targets)
    loss, logits = our_loss(pretrained, pretrained.params, inputs, targets)
    assert_near(logits, expected.logits)
    assert abs(float(loss) - expected.loss.item()) <= 1e-5
    states = pretrained.module.apply({"params": pretrained.params}, inputs, method="encode")
    real = inputs != PAD
    assert_near(np.asarray(states)[real], expected.encoder_last_hidden_state[real])


def test_gradients_are_those_of_torch(pair):
    model, pretrained = pair
    inputs, targets = padded_batch(1)
    torch_forward(model, inputs, targets).loss.backward()
    grads = jax.grad(lambda p: our_loss(pretrained, p, inputs, targets)[0])(pretrained.params)
    encoder, decoder = model.model.encoder, model.model.decoder
    pairs = [
        (grads["encoder"]["attention"]["query"]["kernel"][0].T, encoder.layers[0].self_attn.q_proj.weight),
        (grads["encoder"]["mlp"]["wi"]["bias"][0], encoder.layers[0].fc1.bias),
        (grads["decoder"]["cross_attention"]["out"]["kernel"][0].T, decoder.layers[0].encoder_attn.out_proj.weight),
        (grads["decoder"]["mlp_norm"]["scale"][0], decoder.layers[0].final_layer_norm.weight),
        (grads["decoder_embedding_norm"]["bias"], decoder.layernorm_embedding.bias),
        (grads["encoder_positions"]["embedding"], encoder.embed_positions.weight),
    ]
    embedding = np.array(grads["token_embedding"]["embedding"])
    embedding[PAD] = 0  # torch leaves the row of padding alone
    shared = model.model.shared.weight.grad.clone()
    shared[PAD] = 0
    for ours, theirs in [*((ours, theirs.grad) for ours, theirs in pairs), (embedding, shared)]:
        assert_near(ours, theirs)
    assert not np.any(grads["final_logits_bias"])  # a buffer there, no parameter


def test_packed_examples_have_the_losses_that_torch_gives_them_one_by_one(pair):
    model, pretrained = pair
    rng = np.random.default_rng(6)
    rows = [examples(rng, lengths, 101) for lengths in ([(5, 3), (11, 6), (2, 2)], [(17, 9), (8, 2)])]
    packed = packed_batch(rows, 35, 13)  # longer than the model has positions: these are counted per example
    expected = np.zeros((2, 3))
    for row, segment in np.ndindex(2, 3):
        if segment < len(rows[row]):
            inputs, targets = (np.asarray(ids, np.int32)[None] for ids in rows[row][segment][:2])
            expected[row, segment] = our_sum(model, inputs, targets)
    losses = EncoderDecoderLoss()(pretrained.module, {"params": pretrained.params}, packed)
    np.testing.assert_allclose(sum_segments(losses, packed["target_segments"], 3).loss, expected, rtol=1e-5)


def our_sum(model, inputs, targets):
    """Sums torch's loss over an example's tokens, whatever their ids are."""
    import torch

    decoder_inputs = torch.tensor(np.array(shift_right(targets, START))).long()
    output = model(
        input_ids=torch.tensor(inputs).long(),
        attention_mask=torch.ones(inputs.shape).long(),
        decoder_input_ids=decoder_inputs,
    )
    log_probs = output.logits.log_softmax(-1).detach().numpy()
    return -np.take_along_axis(log_probs, targets[..., None].astype(np.int64), -1).sum()


def generated(model, inputs, tokens, **options):
    import torch

    return model.generate(
        input_ids=torch.tensor(inputs).long(),
        attention_mask=torch.tensor(inputs != PAD).long(),
        max_new_tokens=tokens,
        do_sample=False,
        **({"num_beams": 1, "use_cache": False} | options),
    )[:, 1:].numpy()


def test_greedy_generations_are_those_of_torch(pair):
    model, pretrained = pair
    inputs, _ = padded_batch(2, rows=6)
    reference = generated(model, inputs, 17)
    tokens = np.asarray(greedy(pretrained.module, {"params": pretrained.params}, inputs, inputs != PAD, max_tokens=17))
    np.testing.assert_array_equal(tokens[:, : reference.shape[1]], reference)


def test_the_released_models_way_of_generating_gives_the_tokens_of_torch(pair):
    # What the config.json of released BARTs asks for, here asked for in words: four beams, no trigram twice.
    model, pretrained = pair
    inputs, _ = padded_batch(3, rows=6)
    reference = generated(model, inputs, 12, num_beams=4, no_repeat_ngram_size=3, use_cache=True)
    how = Generation(max_tokens=12, method=BeamSearch(num_beams=4), rules=(NoRepeatNgram(3),))
    streams = np.zeros(len(inputs), np.uint32)
    tokens = generate(pretrained.module, {"params": pretrained.params}, inputs, inputs != PAD, streams, how=how)
    np.testing.assert_array_equal(np.asarray(tokens)[:, : reference.shape[1]], reference)


def test_a_round_trip_is_bit_identical_and_transformers_loads_it(pair, tmp_path):
    import transformers

    model, pretrained = pair
    save_pretrained(tmp_path / "ours", pretrained)
    theirs = safetensors.numpy.load_file(str(tmp_path / "model.safetensors"))
    ours = safetensors.numpy.load_file(str(tmp_path / "ours" / "model.safetensors"))
    assert ours.keys() <= theirs.keys() and len(ours) >= len(theirs) - 2  # but for aliases of the embedding
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name])
    again = load_pretrained(tmp_path / "ours")
    assert again.config == pretrained.config
    jax.tree.map(np.testing.assert_array_equal, again.params, pretrained.params)
    loaded, info = transformers.BartForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    inputs, targets = padded_batch(3)
    expected = torch_forward(model, inputs, targets).logits
    np.testing.assert_array_equal(torch_forward(loaded.eval(), inputs, targets).logits.detach(), expected.detach())
    np.testing.assert_array_equal(generated(loaded, inputs, 7), generated(model, inputs, 7))


def test_a_model_saved_without_its_output_layer_is_read(tmp_path):
    model = make_torch(*SIZES[0])
    model.final_logits_bias.zero_()
    model.save_pretrained(tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "base")
    names = safetensors.numpy.load_file(str(tmp_path / "base" / "model.safetensors")).keys()
    assert "shared.weight" in names and "final_logits_bias" not in names
    whole, base = load_pretrained(tmp_path / "whole"), load_pretrained(tmp_path / "base")
    assert base.config == whole.config
    jax.tree.map(np.testing.assert_array_equal, base.params, whole.params)


def test_more_embedding_rows_change_no_other_logit(pair):
    _, pretrained = pair
    inputs, targets = padded_batch(4)
    larger = resize_vocabulary(pretrained, 128)
    logits = larger.module.apply({"params": larger.params}, inputs, targets)
    expected = pretrained.module.apply({"params": pretrained.params}, inputs, targets)
    np.testing.assert_allclose(logits[..., :101], expected, atol=1e-5)
    assert dataclasses.replace(larger.config, vocab_size=101) == pretrained.config


def test_bfloat16_stays_near_float32(pair, tmp_path):
    _, pretrained = pair
    save_pretrained(tmp_path / "ours", pretrained)
    half = load_pretrained(tmp_path / "ours", dtype="bfloat16")
    inputs, targets = padded_batch(5)
    ours, exact = (one.module.apply({"params": one.params}, inputs, targets) for one in (half, pretrained))
    assert ours.dtype == jnp.float32
    # bfloat16 keeps 8 bits: a few hundredths of the scale after some layers.
    assert np.abs(ours - exact).max() <= 0.1 * np.abs(exact).max()
