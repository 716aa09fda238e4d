"""Writes gpt2.npz and opt.npz: a tiny torch model's weights, a padded batch of prompts, what torch makes of it.

Run in the environment of `make parity`: python tests/golden/make_gpt.py
"""

import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
EOS = 47


def gpt2():
    sizes = dict(vocab_size=48, n_embd=12, n_head=3, n_layer=2, n_inner=20, n_positions=24)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=EOS, eos_token_id=EOS))


def opt():
    sizes = dict(vocab_size=48, hidden_size=12, num_attention_heads=3, num_hidden_layers=2, ffn_dim=20)
    like_350m = dict(word_embed_proj_dim=8, do_layer_norm_before=False, max_position_embeddings=24)
    return transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, **like_350m))


def main():
    for name, make in {"gpt2": gpt2, "opt": opt}.items():
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for key, weight in model.named_parameters():  # biases too, which start at zero
                is_scale = weight.ndim == 1 and key.endswith("weight")
                weight.copy_(is_scale + torch.randn_like(weight) * (0.15 if weight.ndim == 1 else 0.3))
        inputs = np.random.default_rng(0).integers(3, 46, (3, 9))
        mask = np.arange(9) >= np.array([[0], [4], [8]])
        inputs[~mask] = model.config.pad_token_id or EOS
        batch = dict(input_ids=torch.tensor(inputs), attention_mask=torch.tensor(mask).long())
        positions = {}
        if name == "gpt2":  # OPT counts tokens itself
            positions["position_ids"] = torch.tensor(np.maximum(np.cumsum(mask, 1) - 1, 0))
        with torch.no_grad():
            logits = model(**batch, **positions).logits.numpy()
            greedy = model.generate(
                **batch, max_new_tokens=10, do_sample=False, num_beams=1, pad_token_id=int(inputs[1, 0])
            )[:, 9:]
        weights = {f"weights/{key}": value.numpy() for key, value in model.state_dict().items() if "lm_head" not in key}
        arrays = dict(inputs=inputs, mask=mask, logits=logits, greedy=greedy.numpy()) | weights
        np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
