"""T5 against Hugging Face's torch T5 on random weights, in float32."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packing_toy import examples, packed_batch, plain_batch

from jaxmtl.models.decoding import greedy
from jaxmtl.models.shifting import shift_right
from jaxmtl.training.objectives import EncoderDecoderLoss, sum_segments
from jaxmtl.weights import load_pretrained, resize_vocabulary, save_pretrained

pytestmark = pytest.mark.torch

V1_0 = dict(feed_forward_proj="relu", tie_word_embeddings=True)
V1_1 = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
# (kind, d_model, heads, d_kv, d_ff, encoder layers, decoder layers): heads x d_kv differs from d_model on purpose.
SIZES = [(V1_0, 20, 3, 7, 33, 2, 3), (V1_0, 16, 2, 8, 24, 1, 1), (V1_1, 24, 5, 6, 40, 3, 2), (V1_1, 18, 1, 4, 20, 2, 2)]


def make_torch(kind, d_model, num_heads, d_kv, d_ff, encoder, decoder, seed=0):
    import torch
    import transformers

    torch.manual_seed(seed)
    sizes = dict(d_model=d_model, num_heads=num_heads, d_kv=d_kv, d_ff=d_ff, num_layers=encoder)
    config = transformers.T5Config(
        vocab_size=101, num_decoder_layers=decoder, decoder_start_token_id=0, dropout_rate=0.0, **sizes, **kind
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    if not kind["tie_word_embeddings"]:
        # transformers 5 ties a fresh v1.1; checkpoints of v1.1 have a head of their own.
        model.lm_head.weight = torch.nn.Parameter(torch.randn(101, d_model) * d_model**-0.5)
        model.config.tie_word_embeddings = False
    return model


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]['feed_forward_proj']}-{'x'.join(map(str, size[1:]))}")
def pair(request, tmp_path):
    model = make_torch(*request.param)
    model.save_pretrained(tmp_path)
    return model, load_pretrained(tmp_path)


def padded_batch(seed=0, rows=4, source=13, target=9):
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(2, 101, (rows, source)), rng.integers(2, 101, (rows, target))
    for row in range(rows):
        inputs[row, source - 2 * row :] = 0
        targets[row, target - row :] = 0
    return inputs.astype(np.int32), targets.astype(np.int32)


def torch_forward(model, inputs, targets):
    import torch

    labels = torch.tensor(np.where(targets == 0, -100, targets)).long()
    mask = torch.tensor(inputs != 0).long()
    decoder_inputs = torch.tensor(np.array(shift_right(targets, 0))).long()
    return model(
        input_ids=torch.tensor(inputs).long(), attention_mask=mask, decoder_input_ids=decoder_inputs, labels=labels
    )


def our_loss(pretrained, params, inputs, targets):
    logits = pretrained.module.apply({"params": params}, inputs, shift_right(targets, 0))
    log_probs = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    return -(picked * (targets != 0)).sum() / (targets != 0).sum(), logits


def test_logits_and_loss_are_those_of_torch(pair):
    model, pretrained = pair
    inputs, targets = padded_batch()
    expected = torch_forward(model, inputs, targets)
    loss, logits = our_loss(pretrained, pretrained.params, inputs, targets)
    reference = expected.logits.detach().numpy()
    # Two float32 programs that sum in other orders: 1e-4 of the largest logit is far above rounding, far below a bug.
    assert np.abs(logits - reference).max() <= 1e-4 * np.abs(reference).max()
    assert abs(float(loss) - expected.loss.item()) <= 1e-5


def test_gradients_are_those_of_torch(pair):
    model, pretrained = pair
    inputs, targets = padded_batch(1)
    torch_forward(model, inputs, targets).loss.backward()
    grads = jax.grad(lambda p: our_loss(pretrained, p, inputs, targets)[0])(pretrained.params)
    theirs = model.encoder.block[0].layer[0].SelfAttention
    pairs = [
        (grads["encoder"]["attention"]["query"]["kernel"][0].T, theirs.q.weight.grad),
        (grads["encoder_bias"]["embedding"], theirs.relative_attention_bias.weight.grad),
        (grads["token_embedding"]["embedding"], model.shared.weight.grad),
        (grads["decoder"]["mlp"]["wo"]["kernel"][0].T, model.decoder.block[0].layer[2].DenseReluDense.wo.weight.grad),
    ]
    for ours, reference in pairs:
        reference = reference.numpy()
        assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()


def test_packed_examples_have_the_losses_and_the_gradient_that_torch_gives_them_one_by_one(pair):
    import torch

    model, pretrained = pair
    rng = np.random.default_rng(6)
    rows = [examples(rng, lengths, 101) for lengths in ([(5, 3), (11, 6), (2, 1)], [(17, 9), (8, 2)])]
    packed = packed_batch(rows, 25, 13)
    expected = torch.zeros(2, 3)
    for row, segment in np.ndindex(2, 3):
        if segment < len(rows[row]):
            example = rows[row][segment]
            alone = plain_batch([example], len(example[0]), len(example[1]))
            expected[row, segment] = torch_forward(model, alone["inputs"], alone["targets"]).loss * len(example[1])
    expected.sum().backward()

    def total(params):
        losses = EncoderDecoderLoss()(pretrained.module, {"params": params}, packed)
        return losses.objective.sum(), sum_segments(losses, packed["target_segments"], 3).loss

    grads, losses = jax.grad(total, has_aux=True)(pretrained.params)
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-5)
    pairs = [
        (grads["encoder_bias"], model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias),
        (grads["decoder_bias"], model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias),
        (grads["token_embedding"], model.shared),
    ]
    for ours, theirs in pairs:
        reference = theirs.weight.grad.numpy()
        assert np.abs(ours["embedding"] - reference).max() <= 1e-4 * np.abs(reference).max()


def test_greedy_generations_are_those_of_torch(pair):
    import torch

    model, pretrained = pair
    inputs, _ = padded_batch(2, rows=6)
    mask = torch.tensor(inputs != 0).long()
    reference = model.generate(
        input_ids=torch.tensor(inputs).long(),
        attention_mask=mask,
        max_new_tokens=17,
        do_sample=False,
        num_beams=1,
        use_cache=False,
    )[:, 1:].numpy()
    tokens = np.asarray(greedy(pretrained.module, {"params": pretrained.params}, inputs, inputs != 0, max_tokens=17))[
        :, : reference.shape[1]
    ]
    np.testing.assert_array_equal(tokens, reference)


def test_round_trip_through_our_format_is_bit_identical(pair, tmp_path):
    from safetensors.torch import load_file

    model, pretrained = pair
    save_pretrained(tmp_path / "again", pretrained)
    saved = load_file(tmp_path / "again" / "model.safetensors")
    reference = {name: tensor for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    if pretrained.config.tied_head:
        del reference["lm_head.weight"]
    assert saved.keys() == reference.keys()
    assert all(saved[name].equal(reference[name]) for name in reference)


def test_transformers_loads_what_we_save(pair, tmp_path):
    import transformers

    model, pretrained = pair
    save_pretrained(tmp_path / "again", pretrained)
    again, report = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    inputs, targets = padded_batch(3)
    expected = torch_forward(model, inputs, targets).logits
    assert torch_forward(again.eval(), inputs, targets).logits.equal(expected)


def test_sharded_index_loads_like_one_file(tmp_path):
    model = make_torch(*SIZES[2])
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = load_pretrained(tmp_path / "one"), load_pretrained(tmp_path / "many")
    assert one.config == many.config
    jax.tree.map(np.testing.assert_array_equal, one.params, many.params)


def test_a_tied_head_without_scaling_is_told_from_config_json(tmp_path):
    import transformers

    config = transformers.T5Config(
        vocab_size=101, d_model=16, num_heads=2, d_kv=4, d_ff=24, num_layers=1, **V1_1, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    pretrained = load_pretrained(tmp_path)
    inputs, targets = padded_batch(4)
    reference = torch_forward(model, inputs, targets).logits.detach().numpy()
    _, logits = our_loss(pretrained, pretrained.params, inputs, targets)
    assert np.abs(logits - reference).max() <= 1e-4 * np.abs(reference).max()


def test_bfloat16_weights_load_and_save_as_they_are(tmp_path):
    import torch
    from safetensors.torch import load_file

    model = make_torch(*SIZES[2]).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    save_pretrained(tmp_path / "again", load_pretrained(tmp_path / "half", dtype="bfloat16"))
    saved, reference = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "half"))
    assert all(saved[name].dtype == torch.bfloat16 and saved[name].equal(reference[name]) for name in saved)


def test_more_vocabulary_rows_leave_the_logits_of_real_tokens(pair):
    _, pretrained = pair
    inputs, targets = padded_batch(5)
    wide = resize_vocabulary(pretrained, 128)
    assert wide.config == dataclasses.replace(pretrained.config, vocab_size=128)
    _, narrow_logits = our_loss(pretrained, pretrained.params, inputs, targets)
    _, wide_logits = our_loss(wide, wide.params, inputs, targets)
    # The same products are summed in another blocking: rounding only.
    np.testing.assert_allclose(wide_logits[..., :101], narrow_logits, atol=1e-5)
