"""Presets against plain NumPy computations, written from the descriptions of the published methods."""

import math

import jax
import numpy as np
import pytest
from hyper_toy import BASE, DECODER_INPUTS, INDEX, INPUTS, INSTRUCTIONS, LORA, T5_CONFIG, adapt, logits, toy

from jaxmtl.adapters.hyper_config import BottleneckOutput, GeneratorConfig, PrefixOutput
from jaxmtl.adapters.hyper_presets import hint, tagi, tagi_code
from jaxmtl.models.t5 import T5
from jaxmtl.models.trees import flat

D, H, K = T5_CONFIG.embed_dim, T5_CONFIG.num_heads, T5_CONFIG.head_dim


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiles 2.5 times as fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rms(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def layer_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def heads(x):
    return x.reshape(-1, H, K)


def look(query, key, value, bias=0.0):
    """Attention [T, H, K] to [S, H, K], unscaled, as in T5; bias [H, T, S]."""
    scores = np.einsum("thk,shk->hts", query, key) + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shk->thk", weights / weights.sum(-1, keepdims=True), value).reshape(len(query), -1)


class NumpyT5:
    """T5 v1.0 with an untied head, one text at a time, with prefixes and bottleneck adapters; texts below 8 tokens."""

    def __init__(self, params, adapters=None):
        self.params, self.adapters = params, adapters or {}

    def bias(self, name, length, *, is_decoder):
        """Below the exact buckets' end a bucket is the distance; an encoder looks ahead in the second half."""
        table = self.params[name]["embedding"]
        relative = np.arange(length)[None] - np.arange(length)[:, None]
        ahead = 0 if is_decoder else 16
        bias = table[np.where(relative > 0, ahead + np.abs(relative), np.abs(relative))].transpose(2, 0, 1)
        return np.where(is_decoder & (relative > 0), -1e30, bias)

    def attend(self, part, stack, layer, x, memory, bias=None):
        own = lambda name: self.params[stack][part][name]["kernel"][layer]
        key, value = heads(memory @ own("key")), heads(memory @ own("value"))
        bias = np.zeros((H, len(x), len(memory))) if bias is None else bias
        if self.adapters:
            prefix = self.adapters["prefix"][f"{stack}/{part}"]
            key = np.concatenate([heads(prefix["key"][layer]), key])
            value = np.concatenate([heads(prefix["value"][layer]), value])
            bias = np.concatenate([np.zeros((H, len(x), len(prefix["key"][layer]))), bias], axis=-1)
        return look(heads(x @ own("query")), key, value, bias) @ own("out")

    def feed_forward(self, stack, layer, x):
        own = lambda name: self.params[stack]["mlp"][name]["kernel"][layer]
        y = np.maximum(x @ own("wi"), 0) @ own("wo")
        if self.adapters:
            one = {name: leaf[layer] for name, leaf in self.adapters["bottleneck"][f"{stack}/mlp"].items()}
            y = y + gelu(x @ one["down"] + one["down_bias"]) @ one["up"] + one["up_bias"]
        return y

    def norm(self, stack, name, layer, x):
        return rms(x, self.params[stack][name]["scale"][layer])

    def encode(self, ids):
        x, bias = (
            self.params["token_embedding"]["embedding"][ids],
            self.bias("encoder_bias", len(ids), is_decoder=False),
        )
        for layer in range(T5_CONFIG.num_encoder_layers):
            normed = self.norm("encoder", "attention_norm", layer, x)
            x = x + self.attend("attention", "encoder", layer, normed, normed, bias)
            x = x + self.feed_forward("encoder", layer, self.norm("encoder", "mlp_norm", layer, x))
        return rms(x, self.params["encoder_norm"]["scale"])

    def decode(self, ids, memory):
        x, bias = self.params["token_embedding"]["embedding"][ids], self.bias("decoder_bias", len(ids), is_decoder=True)
        for layer in range(T5_CONFIG.num_decoder_layers):
            normed = self.norm("decoder", "self_attention_norm", layer, x)
            x = x + self.attend("self_attention", "decoder", layer, normed, normed, bias)
            normed = self.norm("decoder", "cross_attention_norm", layer, x)
            x = x + self.attend("cross_attention", "decoder", layer, normed, memory)
            x = x + self.feed_forward("decoder", layer, self.norm("decoder", "mlp_norm", layer, x))
        return rms(x, self.params["decoder_norm"]["scale"]) @ self.params["lm_head"]["kernel"]


def wide(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def states_of(params, row):
    return NumpyT5(params["base"]).encode(row[row != 0])


P, A = 3, 4
HINT = hint(outputs=(PrefixOutput(length=P), BottleneckOutput(width=A)))
ATTENTIONS = ("decoder/cross_attention", "decoder/self_attention", "encoder/attention")
"""Attention layers in the order of their slots; then the feed-forward layers."""


def hint_adapters(params, states):
    """What HINT generates from an instruction's states [I, D]: prefixes and bottleneck adapters of every layer."""
    network, pool = params["network"], params["network"]["pooling"]
    kernel = lambda name: pool[name]["kernel"]
    query = heads(network["slots"] @ kernel("query"))
    pooled = look(query, heads(states @ kernel("key")), heads(states @ kernel("value"))) @ kernel("out")
    taken = 0

    def generate(name, rows):
        nonlocal taken
        own, taken = pooled[taken : taken + 2 * rows], taken + 2 * rows
        made = gelu(own @ network[name]["hidden"]["kernel"]) @ network[name]["output"]["kernel"] / math.sqrt(D)
        return made.reshape(2, rows, -1)  # two layers

    prefix = {path: {part: generate(f"prefix_attention_{part}", P) for part in ("key", "value")} for path in ATTENTIONS}
    bottleneck = {}
    for path in ("decoder/mlp", "encoder/mlp"):
        sizes = {"down": A, "up": A, "down_bias": 1, "up_bias": 1}
        bottleneck[path] = {part: generate(f"bottleneck_mlp_{part}", rows) for part, rows in sizes.items()}
        bottleneck[path]["down"] = bottleneck[path]["down"].transpose(0, 2, 1)
    assert taken == len(pooled)
    return {"prefix": prefix, "bottleneck": bottleneck}


def test_hint_computes_what_its_description_says():
    module, params = toy(HINT)
    found = logits(module, params, INPUTS, DECODER_INPUTS, INSTRUCTIONS, INDEX)
    params = wide(params)
    for row, number in enumerate(INDEX):
        states = states_of(params, INSTRUCTIONS[number])
        model = NumpyT5(params["base"], hint_adapters(params, states))
        memory = np.concatenate([states, model.encode(INPUTS[row][INPUTS[row] != 0])])
        expected = model.decode(DECODER_INPUTS[row], memory)
        # float32 against float64: a few 1e-7 for each of some hundred operations on values of size 10.
        np.testing.assert_allclose(found[row], expected, atol=2e-4)


TAGI = tagi(outputs=(LORA,), generator=GeneratorConfig(sharing="layer", hidden=5))
KINDS = ("decoder/cross_attention", "decoder/self_attention", "encoder/attention")


def test_tagi_generates_with_one_network_for_each_layer_that_queries_and_values_share():
    module, params = toy(TAGI)
    found = adapt(module, params, INSTRUCTIONS).generated["lora"]
    params = wide(params)
    network, pool = params["network"], params["network"]["pooling"]
    slots = iter(network["slots"])
    # Slots lie kind by kind, query before value, layer by layer; both factors of a projection share its slots.
    slot_of = {
        (f"{kind}/{part}", layer): next(slots) for kind in KINDS for part in ("query", "value") for layer in (0, 1)
    }
    assert not list(slots)
    for number, row in enumerate(INSTRUCTIONS):
        states = states_of(params, row)
        kernel = lambda name: pool[name]["kernel"]
        for (path, layer), slot in slot_of.items():
            query = heads(slot[None] @ kernel("query"))
            pooled = look(query, heads(states @ kernel("key")), heads(states @ kernel("value"))) @ kernel("out")
            for factor, shape in (("a", (D, 3)), ("b", (3, H * K))):
                mlp = network["_".join(("lora", *path.split("/")[:-1], factor))]
                x = layer_norm(pooled, mlp["norm"]["scale"], mlp["norm"]["bias"]) + slot
                x = gelu(x @ mlp["hidden"]["kernel"][layer] + mlp["hidden"]["bias"][layer])
                made = x @ mlp["output"]["kernel"][layer] + mlp["output"]["bias"][layer]
                leaf = flat(found)[f"{path}/{factor}"][number, layer]
                np.testing.assert_allclose(leaf, made.reshape(shape), atol=1e-4)


def test_tagis_code_pools_over_padding_and_numbers_its_slots():
    module, params = toy(tagi_code(outputs=(LORA,)), BASE, T5(T5_CONFIG))
    found = flat(adapt(module, params, INSTRUCTIONS).generated["lora"])
    params = wide(params)
    network, reader = params["network"], params["reader"]
    is_real = INSTRUCTIONS[0] != 0
    # Padding is masked as a key, but its own states count.
    model = MaskedEncoder(reader)
    first, last = model.encode(INSTRUCTIONS[0], is_real)
    pooled = (last + first).mean(0) @ network["pooling"]["pooler"]["kernel"] + network["pooling"]["pooler"]["bias"]
    for layer in (0, 1):
        for place, part in enumerate(("query", "value")):
            features = np.append(np.tanh(pooled), 2 * layer + place)
            for factor, shape in (("a", (D, 3)), ("b", (3, H * K))):
                mlp = network[f"lora_encoder_attention_{factor}"]
                hidden = np.maximum(features @ mlp["hidden"]["kernel"] + mlp["hidden"]["bias"], 0)
                made = (hidden @ mlp["output"]["kernel"] + mlp["output"]["bias"]).reshape(shape)
                expected = made / math.sqrt(3) if factor == "b" else made
                np.testing.assert_allclose(found[f"encoder/attention/{part}/{factor}"][0, layer], expected, atol=1e-4)


class MaskedEncoder(NumpyT5):
    """The encoder with padding in its text; returns the states behind its first layer and the last ones."""

    def encode(self, ids, is_real):
        x = self.params["token_embedding"]["embedding"][ids]
        bias = np.where(is_real, self.bias("encoder_bias", len(ids), is_decoder=False), -1e30)
        outputs = []
        for layer in range(T5_CONFIG.num_encoder_layers):
            normed = self.norm("encoder", "attention_norm", layer, x)
            x = x + self.attend("attention", "encoder", layer, normed, normed, bias)
            x = x + self.feed_forward("encoder", layer, self.norm("encoder", "mlp_norm", layer, x))
            outputs.append(x)
        return outputs[0], rms(x, self.params["encoder_norm"]["scale"])


@pytest.mark.parametrize("style", ["pre_norm", "post_norm"])
def test_fusion_computes_what_its_description_says(style):
    module, params = toy(tagi(outputs=(), fusion=style, memory="input"))
    found = logits(module, params, INPUTS, DECODER_INPUTS, INSTRUCTIONS, INDEX)
    params = wide(params)
    fusion = params["fusion"]

    class Fused(NumpyT5):
        def encode(self, ids):
            x, bias = (
                self.params["token_embedding"]["embedding"][ids],
                self.bias("encoder_bias", len(ids), is_decoder=False),
            )
            for layer in range(T5_CONFIG.num_encoder_layers):
                normed = self.norm("encoder", "attention_norm", layer, x)
                x = x + self.attend("attention", "encoder", layer, normed, normed, bias)
                x = self.fuse(x, {name: leaf[layer] for name, leaf in fusion.items()})
                x = x + self.feed_forward("encoder", layer, self.norm("encoder", "mlp_norm", layer, x))
            return rms(x, self.params["encoder_norm"]["scale"])

        def fuse(self, x, own):
            reader = rms(x, own["scale"]) if style == "pre_norm" else x
            key, value = heads(self.states @ own["key"]), heads(self.states @ own["value"])
            x = x + look(heads(reader @ own["query"]), key, value) @ own["out"]
            return x if style == "pre_norm" else rms(x, own["scale"])

    for row, number in enumerate(INDEX):
        model = Fused(params["base"])
        model.states = states_of(params, INSTRUCTIONS[number])
        expected = model.decode(DECODER_INPUTS[row], model.encode(INPUTS[row][INPUTS[row] != 0]))
        np.testing.assert_allclose(found[row], expected, atol=2e-4)
