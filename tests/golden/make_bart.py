"""Writes bart.npz: a tiny torch BART's weights, one padded batch, and what torch computes from it.

Run in the environment of `make parity`: python tests/golden/make_bart.py
"""

import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
PAD, START = 1, 2


def main():
    torch.manual_seed(0)
    heads = dict(encoder_attention_heads=3, decoder_attention_heads=3)
    layers = dict(encoder_layers=2, decoder_layers=2, encoder_ffn_dim=20, decoder_ffn_dim=20)
    sizes = dict(vocab_size=48, d_model=12, max_position_embeddings=16, init_std=0.3)
    config = transformers.BartConfig(**sizes, **heads, **layers, dropout=0.0, forced_eos_token_id=None)
    model = transformers.BartForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # biases and norms start at 0 and 1, where a swap of two would not show
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.final_logits_bias += torch.randn_like(model.final_logits_bias)
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(4, 48, (2, 11)), rng.integers(4, 48, (2, 7))
    inputs[1, 8:], targets[1, 5:] = PAD, PAD
    decoder_inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    batch = dict(input_ids=torch.tensor(inputs), attention_mask=torch.tensor(inputs != PAD).long())
    with torch.no_grad():
        output = model(**batch, decoder_input_ids=torch.tensor(decoder_inputs))
        greedy = model.generate(**batch, max_new_tokens=12, do_sample=False, num_beams=1, use_cache=False)[:, 1:]
    weights = {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
    states = dict(encoded=output.encoder_last_hidden_state.numpy(), logits=output.logits.numpy())
    np.savez_compressed(HERE / "bart.npz", inputs=inputs, targets=targets, greedy=greedy.numpy(), **states, **weights)


if __name__ == "__main__":
    main()
