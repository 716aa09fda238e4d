"""Writes t5_v1_0.npz and t5_v1_1.npz: a tiny torch T5's weights, one padded batch, and what torch computes from it.

Run in the environment of `make parity`: python tests/golden/make_t5.py
"""

import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
SIZES = dict(vocab_size=48, d_model=12, num_heads=3, d_kv=5, d_ff=20, num_layers=2, num_decoder_layers=2)
KINDS = {
    "v1_0": dict(feed_forward_proj="relu", tie_word_embeddings=True),
    "v1_1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


def main():
    for name, kind in KINDS.items():
        torch.manual_seed(0)
        config = transformers.T5Config(**SIZES, **kind, decoder_start_token_id=0, dropout_rate=0.0)
        model = transformers.T5ForConditionalGeneration(config).eval()
        if not kind["tie_word_embeddings"]:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(48, 12) * 12**-0.5)
        rng = np.random.default_rng(0)
        # Longer than 128 positions, so that the last bucket of the relative bias is reached.
        inputs, targets = rng.integers(2, 48, (2, 150)), rng.integers(2, 48, (2, 7))
        inputs[1, 90:], targets[1, 5:] = 0, 0
        decoder_inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
        batch = dict(input_ids=torch.tensor(inputs), attention_mask=torch.tensor(inputs != 0).long())
        with torch.no_grad():
            logits = model(**batch, decoder_input_ids=torch.tensor(decoder_inputs)).logits.numpy()
            greedy = model.generate(**batch, max_new_tokens=12, do_sample=False, num_beams=1, use_cache=False)[:, 1:]
        weights = {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
        arrays = dict(inputs=inputs, targets=targets, logits=logits, greedy=greedy.numpy()) | weights
        np.savez_compressed(HERE / f"t5_{name}.npz", **arrays)


if __name__ == "__main__":
    main()
