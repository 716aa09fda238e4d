"""Writes roberta.npz: three tiny torch RoBERTas, one per kind of head, a padded batch, and what torch computes from it.

Run in the environment of `make parity`: python tests/golden/make_roberta.py
"""

import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
SIZES = dict(vocab_size=30, hidden_size=8, num_attention_heads=2, intermediate_size=12, num_hidden_layers=2)
KINDS = {
    "class": transformers.RobertaForSequenceClassification,
    "tags": transformers.RobertaForTokenClassification,
    "span": transformers.RobertaForQuestionAnswering,
}


def main():
    rng = np.random.default_rng(0)
    inputs = rng.integers(4, 30, (3, 9))
    inputs[:, 0] = 0
    inputs[1, 5:], inputs[2, 3:] = 1, 1
    arrays = {"inputs": inputs}
    for kind, architecture in KINDS.items():
        torch.manual_seed(0)
        rest = dict(
            num_labels=2 if kind == "span" else 3, max_position_embeddings=16, type_vocab_size=1, layer_norm_eps=1e-5
        )
        model = architecture(transformers.RobertaConfig(**SIZES, **rest, initializer_range=0.4)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                torch.nn.init.normal_(parameter, mean=0.2, std=0.3)
        with torch.no_grad():
            out = model(input_ids=torch.tensor(inputs), attention_mask=torch.tensor(inputs != 1).long())
        logits = torch.stack([out.start_logits, out.end_logits], -1) if kind == "span" else out.logits
        arrays[f"logits/{kind}"] = logits.numpy()
        arrays |= {f"weights/{kind}/{key}": value.numpy() for key, value in model.state_dict().items()}
    np.savez_compressed(HERE / "roberta.npz", **arrays)


if __name__ == "__main__":
    main()
