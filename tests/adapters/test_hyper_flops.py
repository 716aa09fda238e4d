import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.adapters import hyper_flops, hyper_presets
from jaxmtl.adapters.hyper_config import BottleneckOutput, PrefixOutput
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.lora import LoRA
from jaxmtl.models import flops
from jaxmtl.models.attention import einsum_attention
from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import OPTConfig, named_config
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.models.t5_config import named_config as t5_config

SIZES = dict(vocab_size=512, embed_dim=64, num_heads=4, mlp_dim=128)
BASE = T5(T5Config(**SIZES, head_dim=16, num_encoder_layers=1, num_decoder_layers=1, attention=einsum_attention))
GPT_BASE = GPT(OPTConfig(**SIZES, num_layers=1))
LORA = (LoRA(rank=8, alpha=8.0, targets=(r".*/(query|value)", ".*/wo")),)
SMALL = dict(
    tagi=dict(outputs=LORA),
    tagi_code=dict(outputs=LORA),
    hint=dict(outputs=(PrefixOutput(length=6), BottleneckOutput(width=8))),
    hypertuning=dict(outputs=(PrefixOutput(length=6),)),
    hypter=dict(outputs=(BottleneckOutput(width=8),)),
    text_to_lora=dict(tasks=("x", "y", "z"), outputs=(LoRA(rank=8, alpha=8.0),)),
)
INSTRUCTION, SOURCE, TARGET = 96, 64, 48


def model(name):
    hyper = hyper_presets.PRESETS[name](**SMALL[name])
    own = hyper.encoder in ("frozen", "separate")
    return HyperModel(hyper, GPT_BASE if name == "text_to_lora" else BASE, BASE if own else None)


def counted(function, *shapes):
    """What the compiler counts, before it leaves out or fuses anything."""
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


DEFAULT = ("tagi", "hint")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.long) for name in SMALL]
)
def test_the_compiler_counts_nearly_the_same_of_every_method(name):
    module = model(name)
    params = nn.unbox(abstract_params(module))
    tokens = lambda length: jax.ShapeDtypeStruct((1, length), jnp.int32)
    instruction = tokens(1 if name == "text_to_lora" else INSTRUCTION)
    adapt = lambda params, read: module.apply({"params": params}, read, method="adapt")
    adaptation = jax.eval_shape(adapt, params, instruction)
    index = np.zeros(1, np.int32)
    answer = lambda params, made, inputs, targets: module.apply(
        {"params": params}, made.collections(index), inputs, targets, method="answer"
    )
    length = instruction.shape[1]
    # The compiler also counts softmax, norms, activations and biases, some operations per element of each result.
    once = counted(adapt, params, instruction)
    assert 0.8 * once < float(hyper_flops.reading(module, length)) <= once
    source = tokens(1 if name == "text_to_lora" else SOURCE)  # of one block alone, all but keys and values is left out
    each = counted(answer, params, adaptation, source, tokens(TARGET))
    assert 0.8 * each < float(hyper_flops.answering(module, length, source.shape[1], TARGET)) <= each


def test_following_an_instruction_costs_what_is_added_up_by_hand():
    module = model("tagi")
    # Of one layer each, width 64 = heads x head width: four low-rank updates of rank 8 on 64 + 64 numbers see the input
    # (encoder query and value, value of cross-attention) or the target (query and value of the decoder, cross query),
    # and one on 128 + 64 each; fusion projects twice and looks at 96 tokens, as cross-attention does.
    input_side, target_side = 3 * 2 * 8 * 128 + 2 * 8 * 192, 3 * 2 * 8 * 128 + 2 * 8 * 192
    fusion = SOURCE * (2 * 2 * 64 * 64 + 4 * 64 * INSTRUCTION)
    expected = SOURCE * input_side + TARGET * target_side + fusion + 4 * 64 * TARGET * INSTRUCTION
    found = hyper_flops.answering(module, INSTRUCTION, SOURCE, TARGET) - flops.forward(BASE.config, SOURCE, TARGET)
    assert float(found) == expected


def test_a_kept_prompt_is_not_read_again():
    config = named_config("gpt2-124m")
    # Per layer: tokens through the kernels, and 4 x 768 operations for each pair of a token and one that it sees.
    kernels, pairs = (
        (SOURCE + TARGET) * 2 * 768 * (4 * 768 + 2 * 3072),
        4 * 768 * (SOURCE * (INSTRUCTION + SOURCE) + TARGET * (INSTRUCTION + SOURCE + TARGET)),
    )
    expected = 12 * (kernels + pairs) + TARGET * 2 * 768 * 50257
    assert float(hyper_flops.after_kept_prompt(config, INSTRUCTION, SOURCE, TARGET)) == pytest.approx(
        expected, rel=1e-9
    )


def test_papers_count_by_parameters():
    found = hyper_flops.by_parameters(10.0, 300, 100, 100)
    assert found == {"concatenated": 400_000.0, "read once": 103_000.0, "decoder-only": 206_000.0}


def test_reading_once_costs_two_fifths_of_reading_always():
    # Means of 99 test tasks of SNI: 297 tokens of definition and two positive examples, 115 of input, 8 of target.
    module = HyperModel(hyper_presets.tagi(), T5(t5_config("t5-v1.1-base")))
    ours = hyper_flops.reading(module, 297) + 100 * hyper_flops.answering(module, 297, 115, 8)
    theirs = 100 * hyper_flops.concatenated(module.config, 297, 115, 8)
    assert 0.25 < float(ours / theirs) <= 0.39
