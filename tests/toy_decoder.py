"""A text-to-text module without a network: the scores of the next token are looked up by all that was written."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

V, MAX_TOKENS = 6, 4


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = V
    pad_id: int = 0
    eos_id: int = 1


class ToyDecoder(nn.Module):
    """Row i's logits after tokens t1 ... tn are table[first input token, the number that the tokens spell]."""

    config: ToyConfig = ToyConfig()

    def first_tokens(self, inputs, input_mask=None):
        return jnp.full(inputs.shape[:1], 2, jnp.int32)

    def prompt_tokens(self, inputs, input_mask=None):
        return self.first_tokens(inputs)[:, None], jnp.ones((inputs.shape[0], 1), bool)

    def encode(self, inputs, input_mask=None):
        return inputs[:, 0]

    def start_cache(self, memory, max_length, rows_per_input=1):
        spelt = jnp.zeros((memory.shape[0] * rows_per_input, 1, 1, 1), jnp.int32)
        return {"memory": memory, "self": spelt}

    def decode_step(self, tokens, position, cache, input_mask):
        table = self.variables["params"]["table"]
        rows_per_input = tokens.shape[0] // input_mask.shape[0]
        # Digits from 1, so that texts of different lengths are different numbers; the first token is not spelt.
        spelt = jnp.where(position == 0, 0, cache["self"] * V + tokens[:, None, None, None] + 1)
        logits = table[jnp.repeat(cache["memory"], rows_per_input), spelt[:, 0, 0, 0]]
        return logits, {**cache, "self": spelt}


def spell(tokens):
    number = 0
    for token in tokens:
        number = number * V + int(token) + 1
    return number


def make_table(seed, num_inputs=3):
    """Random logits float32 [inputs, numbers, V]; the end token is likelier than the others, so that texts end."""
    size = spell([V - 1] * MAX_TOKENS) + 1
    table = np.random.default_rng(seed).normal(size=(num_inputs, size, V)).astype(np.float32) * 1.5
    table[..., 1] += 0.5
    return table


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def ask(decode, table, **options):
    """Decodes the inputs 0 ... n-1; returns each text up to its end token."""
    inputs = jnp.arange(len(table), dtype=jnp.int32)[:, None]
    streams = jnp.arange(len(table), dtype=jnp.uint32)
    variables = {"params": {"table": jnp.asarray(table)}}
    tokens = decode(ToyDecoder(), variables, inputs, jnp.ones(inputs.shape, bool), streams, **options)
    return [until_end(row) for row in jax.device_get(tokens).tolist()]


def until_end(row):
    return row[: row.index(1) + 1] if 1 in row else row
