"""LoRA training against PEFT, step by step: the same start, data and order, no dropout, in float32."""

import jax
import numpy as np
import pytest

from jaxmtl.adapters.lora import Adapter, LoRA
from jaxmtl.models.trees import flat
from jaxmtl.training.fit_rows import Fit
from jaxmtl.training.fits import FitProgram
from jaxmtl.training.fitting import Schedule, fit_all
from jaxmtl.training.tuning import LowRankTuning
from jaxmtl.weights import load_adapter, load_pretrained, save_adapter

pytestmark = [
    pytest.mark.torch,
    # PEFT looks at a property of transformers that has another name by now.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

LORA = LoRA(rank=4, alpha=8.0)
SCHEDULE = Schedule(epochs=10, batch_size=6, tokens=200, num_shapes=1)
RATE = 2e-3
TOLERANCE = 1e-4
"""Nats per token. Both sides round to float32 in other orders; 20 steps of Adam add this up to about 1e-6."""


def make_t5():
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = dict(d_model=24, num_heads=3, d_kv=6, d_ff=40, num_layers=2, num_decoder_layers=1, vocab_size=60)
    config = transformers.T5Config(**sizes, dropout_rate=0.0, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


def make_bart():
    import torch
    import transformers

    torch.manual_seed(0)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=40, decoder_ffn_dim=40)
    none = dict(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    config = transformers.BartConfig(
        vocab_size=60,
        d_model=24,
        encoder_layers=1,
        decoder_layers=2,
        max_position_embeddings=40,
        init_std=0.2,
        **heads,
        **none,
    )
    return transformers.BartForConditionalGeneration(config)


def make_fit(count=12, eos_id=1):
    draw = np.random.default_rng(0)
    ids = lambda low, high: [*draw.integers(4, 60, draw.integers(low, high)).tolist(), eos_id]
    inputs, targets = [ids(3, 20) for _ in range(count)], [ids(1, 6) for _ in range(count)]
    return Fit(name="task", inputs=inputs, targets=targets, learning_rate=RATE, seed=3)


def peft_losses(model, folder, fit, pad_id, start_id):
    """Trains the adapter in the folder with torch and gives it back under PEFT's names, with the loss of every step."""
    import peft
    import torch

    def padded(rows, filler):
        return torch.tensor([row + [filler] * (max(map(len, rows)) - len(row)) for row in rows])

    model = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    losses = []
    for step in fit.steps(SCHEDULE.epochs, SCHEDULE.batch_size):
        inputs, labels = padded([fit.inputs[i] for i in step], pad_id), padded([fit.targets[i] for i in step], -100)
        starts = torch.full((len(step), 1), start_id)
        decoder_inputs = torch.cat([starts, labels[:, :-1].clamp(min=0)], dim=1)
        mask = (inputs != pad_id).long()
        logits = model(input_ids=inputs, attention_mask=mask, decoder_input_ids=decoder_inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.save_pretrained(folder / "trained")
    return np.array(losses)


@pytest.mark.parametrize("make", [make_t5, make_bart])
def test_twenty_steps_equal_pefts(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "base")
    pretrained = load_pretrained(tmp_path / "base")
    fit = make_fit(eos_id=pretrained.config.eos_id)
    start = FitProgram(pretrained.module, LowRankTuning(LORA)).start(pretrained.params, [fit])
    tree = jax.tree.map(lambda leaf: leaf[0], start.tree)
    save_adapter(tmp_path / "start", Adapter(tree=tree, rank=LORA.rank, alpha=LORA.alpha), pretrained)
    config = pretrained.config
    expected = peft_losses(model, tmp_path / "start", fit, config.pad_id, config.decoder_start_id)
    found = fit_all(pretrained.module, pretrained.params, [fit], LORA, SCHEDULE)[0]
    assert len(expected) == 20 and expected[-2:].mean() < expected[:2].mean() - 0.02
    np.testing.assert_allclose(found.losses, expected, atol=TOLERANCE)
    trained = flat(load_adapter(tmp_path / "start" / "trained", pretrained).tree)
    for path, leaf in flat(found.learnt.tree).items():
        # Where a gradient is about 0 Adam makes much of its rounding: up to a step of the rate.
        np.testing.assert_allclose(leaf, trained[path], atol=RATE / 10, err_msg=path)
