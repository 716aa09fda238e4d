import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.adapters.lora import LoRA, init_adapter
from jaxmtl.feed.parts import Part
from jaxmtl.feed.writer import Rows, StoreWriter
from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import GPT2Config
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.tokenizers import load_tokenizer, train_sentencepiece
from jaxmtl.weights import Pretrained

SENTENCES = [
    "the cat sat on the mat and looked at the dog",
    "a dog ran over the green hill to find a ball",
    "name the colour of the sky in one word: blue",
    "say yes or no: is water wet? yes, it is wet",
    "count the birds: one two three four five six",
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    return train_sentencepiece(SENTENCES * 4, path, 70, 10)


@pytest.fixture(scope="session")
def pretrained(tokenizer):
    """A tiny T5 with random weights, large enough that texts really differ; 8 embedding rows are padding."""
    config = T5Config(
        vocab_size=tokenizer.vocab_size + 8,
        embed_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=24,
        num_encoder_layers=2,
        num_decoder_layers=2,
        mlp_activations=("gelu", "linear"),
        tied_head=False,
    )
    module = T5(config)
    tokens = jnp.ones((1, 4), jnp.int32)
    params = jax.jit(module.init)(jax.random.key(0), tokens, tokens)["params"]
    return Pretrained(config=config, module=module, params=nn.unbox(params), tokenizer=tokenizer)


@pytest.fixture(scope="session")
def decoder_only(tmp_path_factory):
    """A tiny GPT-2 whose vocabulary of letters pads with the end of a text and frames nothing."""
    folder, end = tmp_path_factory.mktemp("letters"), 0
    pieces = ["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    sizes = dict(vocab_size=32, embed_dim=16, num_heads=2, num_layers=2, mlp_dim=24, max_positions=32)
    config = GPT2Config(**sizes, pad_id=end, eos_id=end, init_stddev=0.5)
    module = GPT(config)
    params = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    return Pretrained(config=config, module=module, params=nn.unbox(params), tokenizer=load_tokenizer(folder))


@pytest.fixture(scope="session")
def make_adapter():
    """Makes adapters whose `b` is not zero."""

    def make(pretrained, seed, rank=2, targets="q,v"):
        empty = init_adapter(pretrained.module, LoRA(rank=rank, alpha=3.0, targets=targets), jax.random.key(seed))
        leaves, treedef = jax.tree.flatten(empty.tree)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        draw = lambda key, leaf: np.asarray(jax.random.normal(key, leaf.shape) * 0.3)
        return dataclasses.replace(empty, tree=jax.tree.unflatten(treedef, map(draw, keys, leaves)))

    return make


TASKS = {
    "task1_colour": (
        "Word Analogy",
        "exact_match",
        [("name the colour of the sky", ["blue"]), ("the hill", ["green", "a green hill"])],
    ),
    "task2_wet": (
        "Textual Entailment",
        "rouge_l",  # not the metric that stands for the category
        [("is water wet?", ["yes"]), ("is the dog wet?", ["no"]), ("is it?", ["yes"])],
    ),
    "task3_count": ("Title Generation", "rouge_l", [("count the birds " * 3, ["one two three"])]),
}


@pytest.fixture(scope="session")
def store(tokenizer, tmp_path_factory):
    """Three tasks of three categories in two splits, made with the writer that all stores are made with."""
    folder = tmp_path_factory.mktemp("store") / "store"
    with StoreWriter(folder, tokenizer, {"prompt": "bare"}) as writer:
        for name, (category, metric, examples) in TASKS.items():
            for split, end in (("test", ""), ("validation", ":")):  # what is learnt is not tested word for word
                rows = Rows(
                    ids=[f"{name}-{number}" for number in range(len(examples))],
                    inputs=[tokenizer.encode(text + end) for text, _ in examples],
                    targets=[tokenizer.encode(references[0]) for _, references in examples],
                    references=[references for _, references in examples],
                )
                writer.add(Part(task=name, split=split, category=category, metric=metric, origin=name), rows)
        return writer.finish()
