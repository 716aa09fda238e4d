"""RoBERTa and XLM-R with heads against Hugging Face's torch models on random weights, in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models.roberta import Roberta
from jaxmtl.models.roberta_config import RobertaConfig
from jaxmtl.tasks.answers import CLASS, SPAN, TAGS
from jaxmtl.training.head_objectives import HeadsLoss
from jaxmtl.weights import load_pretrained, resize_vocabulary, save_pretrained

pytestmark = pytest.mark.torch

SUFFIXES = {CLASS: "ForSequenceClassification", TAGS: "ForTokenClassification", SPAN: "ForQuestionAnswering"}
# (class prefix, kind, D, heads, F, layers, labels, padding id): odd sizes on purpose.
SIZES = [
    ("Roberta", CLASS, 21, 3, 35, 3, 3, 1),
    ("XLMRoberta", CLASS, 16, 1, 24, 1, 2, 1),
    ("Roberta", TAGS, 18, 2, 33, 2, 7, 1),
    ("Roberta", SPAN, 20, 5, 28, 2, 2, 1),
    ("XLMRoberta", SPAN, 15, 3, 20, 1, 2, 4),
]
VOCAB = 101


def make_torch(prefix, kind, width, num_heads, mlp, layers, labels, pad, seed=0):
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=VOCAB,
        hidden_size=width,
        num_attention_heads=num_heads,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        max_position_embeddings=40,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        num_labels=labels,
        pad_token_id=pad,
        initializer_range=0.3,  # so that biases, norms and positions matter
    )
    model = getattr(transformers, prefix + SUFFIXES[kind])(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "LayerNorm" in name:  # these start as zeros and ones, which hide mistakes
            torch.nn.init.normal_(parameter, mean=0.2, std=0.3)
    return model


def name_of(size):
    return "-".join(map(str, size[:2])) + "-" + "x".join(map(str, size[2:]))


@pytest.fixture(params=SIZES, ids=name_of)
def pair(request, tmp_path):
    model = make_torch(*request.param)
    model.save_pretrained(tmp_path)
    return request.param[1], model, load_pretrained(tmp_path)


def inputs_of(config, lengths, width, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.integers(5, VOCAB, (len(lengths), width)).astype(np.int32)
    for row, length in enumerate(lengths):
        inputs[row, 0], inputs[row, length - 1], inputs[row, length:] = config.bos_id, config.eos_id, config.pad_id
    return inputs


PADDINGS = {"unpadded": [13] * 4, "padded": [13, 9, 2, 6]}


def torch_logits(model, inputs):
    import torch

    out = model(
        input_ids=torch.tensor(inputs).long(),
        attention_mask=torch.tensor(inputs != model.config.pad_token_id).long(),
        output_hidden_states=True,
    )
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], -1), out.hidden_states[-1]
    return out.logits, out.hidden_states[-1]


def our_logits(pretrained, params, inputs):
    logits = pretrained.module.apply({"params": params}, inputs)
    return next(one for one in (logits.classes, logits.tags, logits.spans) if one is not None)


def labels_of(kind, inputs, config, seed=1):
    """Targets and weights in our form, and targets in Hugging Face's."""
    rng, rows, length = np.random.default_rng(seed), *inputs.shape
    real = inputs != config.pad_id
    if kind == CLASS:
        targets = rng.integers(0, config.heads[0].num_labels, (rows, 1))
        return targets, np.ones((rows, 1)), targets[:, 0]
    if kind == SPAN:
        targets = rng.integers(0, real.sum(1)[:, None], (rows, 2))
        return targets, np.full((rows, 2), 0.5), targets
    targets = np.where(real & (rng.random((rows, length)) < 0.7), rng.integers(0, 7, (rows, length)), -100)
    targets[:, 0] = 3  # no row without a label
    counted = targets != -100
    return targets, counted / counted.sum(1, keepdims=True), targets


def batch_of(inputs, targets, weights):
    fields = dict(inputs=inputs, targets=targets.astype(np.int32), loss_mask=weights.astype(np.float32))
    return {**fields, "task_ids": np.zeros(len(inputs), np.int32)}


def torch_loss(kind, model, inputs, targets):
    """Mean over rows of Hugging Face's loss of each row alone, padding cut off: padding must not count."""
    import torch

    losses = []
    for row, target in zip(inputs, targets, strict=True):
        length = int((row != model.config.pad_token_id).sum())
        ids = torch.tensor(row[None, :length]).long()
        if kind == SPAN:
            labels = dict(start_positions=torch.tensor(target[:1]), end_positions=torch.tensor(target[1:]))
        else:
            labels = dict(labels=torch.tensor(target[None, :length] if kind == TAGS else target[None]))
        losses.append(model(input_ids=ids, **labels).loss)
    return torch.stack(losses).mean()


def our_loss(pretrained, params, batch):
    losses = HeadsLoss()(pretrained.module, {"params": params}, batch)
    return losses.objective.sum() / losses.tokens.sum()


@pytest.mark.parametrize("padding", PADDINGS)
def test_logits_and_hidden_states_are_those_of_torch(pair, padding):
    _, model, pretrained = pair
    inputs = inputs_of(pretrained.config, PADDINGS[padding], 13)
    reference, hidden = (one.detach().numpy() for one in torch_logits(model, inputs))
    real = inputs != pretrained.config.pad_id
    logits = np.asarray(our_logits(pretrained, pretrained.params, inputs))
    encoder = Roberta(dataclasses.replace(pretrained.config, heads=()))
    params = {name: leaf for name, leaf in pretrained.params.items() if name != "heads"}
    states = np.asarray(encoder.apply({"params": params}, inputs))
    if logits.ndim == 3:  # what stands on padding means nothing
        logits, reference = logits[real], reference[real]
    # Two float32 programs that sum in other orders: 1e-4 of the largest value is far above rounding, far below a bug.
    assert np.abs(logits - reference).max() <= 1e-4 * np.abs(reference).max()
    assert np.abs(states[real] - hidden[real]).max() <= 1e-4 * np.abs(hidden[real]).max()


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_loss_is_that_of_torch_on_each_row_alone(pair, padding):
    kind, model, pretrained = pair
    inputs = inputs_of(pretrained.config, PADDINGS[padding], 13)
    targets, weights, theirs = labels_of(kind, inputs, pretrained.config)
    expected = torch_loss(kind, model, inputs, theirs).item()
    assert abs(float(our_loss(pretrained, pretrained.params, batch_of(inputs, targets, weights))) - expected) <= 1e-5


def test_gradients_are_those_of_torch(pair):
    kind, model, pretrained = pair
    inputs = inputs_of(pretrained.config, PADDINGS["padded"], 13)
    targets, weights, theirs = labels_of(kind, inputs, pretrained.config)
    torch_loss(kind, model, inputs, theirs).backward()
    grads = jax.grad(lambda p: our_loss(pretrained, p, batch_of(inputs, targets, weights)))(pretrained.params)
    base = model.roberta
    layer = base.encoder.layer[0]
    pairs = [
        (grads["layers"]["attention"]["query"]["kernel"][0].T, layer.attention.self.query.weight.grad),
        (grads["layers"]["wo"]["bias"][0], layer.output.dense.bias.grad),
        (grads["layers"]["mlp_norm"]["scale"][0], layer.output.LayerNorm.weight.grad),
        (grads["position_embedding"]["embedding"], base.embeddings.position_embeddings.weight.grad),
    ]
    if kind == CLASS:
        pairs.append((grads["heads"]["class"]["dense"]["kernel"][0].T, model.classifier.dense.weight.grad))
        pairs.append((grads["heads"]["class"]["out"]["bias"][0], model.classifier.out_proj.bias.grad))
    else:
        head = model.classifier if kind == TAGS else model.qa_outputs
        pairs.append((grads["heads"][kind]["kernel"][0].T, head.weight.grad))
    for ours, reference in pairs:
        reference = reference.numpy()
        assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()
    words = base.embeddings.word_embeddings.weight.grad.numpy()  # torch gives the padding row no gradient
    ours = np.asarray(grads["token_embedding"]["embedding"])
    rows = np.arange(VOCAB) != pretrained.config.pad_id
    assert np.abs(ours - words)[rows].max() <= 1e-4 * np.abs(words).max()


def test_round_trip_through_our_format_is_bit_identical(pair, tmp_path):
    from safetensors.torch import load_file

    _, model, pretrained = pair
    save_pretrained(tmp_path / "again", pretrained)
    saved = load_file(tmp_path / "again" / "model.safetensors")
    reference = model.state_dict()
    assert saved.keys() == reference.keys()
    assert all(saved[name].equal(reference[name]) for name in reference)


def test_transformers_loads_what_we_save(pair, tmp_path):
    _, model, pretrained = pair
    save_pretrained(tmp_path / "again", pretrained)
    again, report = type(model).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert again.config.id2label == model.config.id2label
    inputs = inputs_of(pretrained.config, PADDINGS["padded"], 13)
    assert torch_logits(again.eval(), inputs)[0].equal(torch_logits(model, inputs)[0])


@pytest.mark.parametrize("name", ["RobertaModel", "RobertaForMaskedLM"])
def test_an_encoder_loads_from_models_with_and_without_prefix(name, tmp_path):
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCAB, hidden_size=12, num_attention_heads=2, intermediate_size=20, num_hidden_layers=2)
    model = getattr(transformers, name)(transformers.RobertaConfig(max_position_embeddings=40, **sizes)).eval()
    model.save_pretrained(tmp_path)
    pretrained = load_pretrained(tmp_path)
    assert pretrained.config.num_types == 2 and not pretrained.config.heads
    inputs = inputs_of(pretrained.config, PADDINGS["padded"], 13)
    mask = torch.tensor(inputs != 1)
    reference = getattr(model, "roberta", model)(torch.tensor(inputs).long(), attention_mask=mask.long())[0]
    states = pretrained.module.apply({"params": pretrained.params}, inputs)
    real = inputs != 1
    np.testing.assert_allclose(states[real], reference.detach().numpy()[real], atol=1e-4)
    save_pretrained(tmp_path / "again", pretrained)
    again = transformers.RobertaModel.from_pretrained(tmp_path / "again", add_pooling_layer=False).eval()
    assert again(torch.tensor(inputs).long(), attention_mask=mask.long())[0].equal(reference)


def test_left_padding_gives_the_logits_of_torch(tmp_path):
    model = make_torch(*SIZES[2])
    model.save_pretrained(tmp_path)
    pretrained = load_pretrained(tmp_path)
    inputs = inputs_of(pretrained.config, [8, 5], 8)
    inputs[1] = np.roll(inputs[1], 3)
    reference, _ = torch_logits(model, inputs)
    logits = our_logits(pretrained, pretrained.params, inputs)
    real = inputs != 1
    np.testing.assert_allclose(logits[real], reference.detach().numpy()[real], atol=1e-4)


def test_more_vocabulary_rows_leave_the_logits(pair):
    _, _, pretrained = pair
    inputs = inputs_of(pretrained.config, PADDINGS["padded"], 13)
    wide = resize_vocabulary(pretrained, 128)
    assert wide.config.vocab_size == 128
    before, after = (our_logits(one, one.params, jnp.asarray(inputs)) for one in (pretrained, wide))
    np.testing.assert_array_equal(before, after)


def test_named_sizes_are_those_of_hugging_face_configs():
    import transformers

    from jaxmtl.models.roberta_config import SIZES as NAMED
    from jaxmtl.weights import roberta_map

    for name in NAMED:
        ours = roberta_map.config_to_hf(RobertaConfig(**NAMED[name]))
        kind = transformers.XLMRobertaConfig if name.startswith("xlm") else transformers.RobertaConfig
        assert ours["model_type"] == kind.model_type
        assert (
            kind(**{key: value for key, value in ours.items() if key != "model_type"}).vocab_size == ours["vocab_size"]
        )
