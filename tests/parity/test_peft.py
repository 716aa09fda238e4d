"""Adapters against PEFT's own, in torch, on random weights in float32: theirs in our models, ours in theirs."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hyper_toy import random_like

from jaxmtl.adapters import rows
from jaxmtl.adapters.hyper_config import HyperConfig
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.hypernet import Hyper, generate_adapter, read_instructions
from jaxmtl.adapters.lora import LoRA, init_adapter, merge
from jaxmtl.models.trees import flat, nested
from jaxmtl.weights import load_adapter, load_pretrained, save_adapter, save_pretrained

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT reads it
    # transformers 5 says that every T5 is tied; v1.1's is not.
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied after merging:UserWarning"),
]

VOCABULARY = 31
INPUTS = np.random.default_rng(0).integers(5, VOCABULARY, (3, 6))
DECODER_INPUTS = np.random.default_rng(1).integers(5, VOCABULARY, (3, 4))


def t5():
    import torch
    import transformers

    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=12,
        num_heads=2,
        d_kv=5,
        d_ff=14,
        num_layers=1,
        num_decoder_layers=2,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    model = transformers.T5ForConditionalGeneration(config)
    # transformers 5 ties a fresh v1.1; checkpoints of v1.1 have a head of their own.
    model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, 12))
    model.config.tie_word_embeddings = False
    return model


def bart():
    import transformers

    sizes = dict(d_model=12, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=14, decoder_ffn_dim=14)
    heads = dict(encoder_attention_heads=3, decoder_attention_heads=3)
    config = transformers.BartConfig(vocab_size=VOCABULARY, **sizes, **heads, max_position_embeddings=12)
    return transformers.BartForConditionalGeneration(config)


def gpt2():
    import transformers

    sizes = dict(n_embd=12, n_head=3, n_layer=2, n_positions=12, vocab_size=VOCABULARY)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))


def opt():
    import transformers

    sizes = dict(hidden_size=12, num_attention_heads=3, num_hidden_layers=2, ffn_dim=14, word_embed_proj_dim=8)
    ids = dict(vocab_size=VOCABULARY, bos_token_id=2, eos_token_id=2, pad_token_id=1)
    config = transformers.OPTConfig(**sizes, **ids, max_position_embeddings=12, do_layer_norm_before=False)
    return transformers.OPTForCausalLM(config)


def roberta(kind="ForTokenClassification"):
    import transformers

    sizes = dict(hidden_size=12, num_attention_heads=3, num_hidden_layers=2, intermediate_size=14, num_labels=5)
    config = transformers.XLMRobertaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=12, type_vocab_size=1, pad_token_id=1, **sizes
    )
    return getattr(transformers, f"XLMRoberta{kind}")(config)


FAMILIES = {"t5": t5, "bart": bart, "gpt2": gpt2, "opt": opt, "roberta": roberta}
OF_DECODERS_PAIRS = ("t5", "bart")
QUERY, KEY, VALUE = (f"layers/attention/{part}" for part in ("query", "key", "value"))


def filled(model, spread=0.3):
    """Random values everywhere, also where models start with zeros and ones."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_scale = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(is_scale + spread * torch.randn_like(weight))
    return model.eval()


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of models by family."""
    import torch

    torch.manual_seed(0)
    folders = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    for name, folder in folders.items():
        filled(FAMILIES[name]()).save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def ours(bases):
    return {name: load_pretrained(folder) for name, folder in bases.items()}


def torch_base(bases, name):
    import transformers

    kind = type(FAMILIES[name]()).__name__
    return getattr(transformers, kind).from_pretrained(bases[name]).eval()


def torch_logits(model, name):
    import torch

    arrays = dict(input_ids=torch.tensor(INPUTS).long(), attention_mask=torch.ones(INPUTS.shape).long())
    if name in OF_DECODERS_PAIRS:
        arrays["decoder_input_ids"] = torch.tensor(DECODER_INPUTS).long()
    with torch.no_grad():
        return model(**arrays).logits.numpy()


@functools.partial(jax.jit, static_argnums=0)
def applied(module, variables, arrays):
    found = module.apply(variables, **arrays)
    return found.tags if hasattr(found, "tags") else found


def our_logits(pretrained, name, adapter=None, params=None):
    variables = rows.variables(params or pretrained.params, adapter and adapter.collection())
    arrays = dict(inputs=INPUTS) | (dict(decoder_inputs=DECODER_INPUTS) if name in OF_DECODERS_PAIRS else {})
    return np.asarray(applied(pretrained.module, variables, arrays))


def assert_close(found, expected):
    # Two float32 programs that sum in other orders: 1e-4 of the largest logit is far above rounding, far below a bug.
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"relative difference {difference:.1e}")
    assert difference <= 1e-4


def with_peft(model, **fields):
    """PEFT's adapter on a model, with factors that are not zero."""
    import peft
    import torch

    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=5, **fields))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_" in name:
                weight.copy_(0.3 * torch.randn_like(weight))
    return adapted.eval()


THEIRS = {
    "t5 default": ("t5", dict(task_type="SEQ_2_SEQ_LM")),
    "t5 all": ("t5", dict(target_modules="all-linear", use_rslora=True)),
    "t5 ranks": (
        "t5",
        dict(
            target_modules=["q", "v", "wo"],
            rank_pattern={"wo": 5, "decoder.block.1.layer.1.EncDecAttention.q": 2},
            alpha_pattern={"^encoder.block.0.layer.0.SelfAttention.v": 2},
        ),
    ),
    "bart": ("bart", dict(target_modules=r".*decoder.*\.(q_proj|fc1|out_proj)", task_type="SEQ_2_SEQ_LM")),
    "bart layers": ("bart", dict(target_modules=["v_proj", "fc2"], layers_to_transform=[0])),
    "gpt2 default": ("gpt2", dict(task_type="CAUSAL_LM", fan_in_fan_out=True)),
    "gpt2 all": (
        "gpt2",
        dict(target_modules="all-linear", rank_pattern={"c_attn": 4}, use_rslora=True, fan_in_fan_out=True),
    ),
    "opt": ("opt", dict(target_modules="all-linear", exclude_modules=["fc1"], init_lora_weights="gaussian")),
    "roberta": ("roberta", dict(target_modules=["query", "attention.output.dense", "intermediate.dense"])),
}


@pytest.mark.parametrize("case", THEIRS)
def test_an_adapter_of_peft_does_the_same_here(bases, ours, case, tmp_path):
    import torch

    torch.manual_seed(1)
    name, fields = THEIRS[case]
    model = with_peft(torch_base(bases, name), **fields)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    adapter = load_adapter(tmp_path, ours[name])
    expected = torch_logits(model, name)
    assert np.abs(expected - our_logits(ours[name], name)).max() > 1e-2 * np.abs(expected).max()
    assert_close(our_logits(ours[name], name, adapter), expected)
    assert_same_merged(model, ours[name], adapter, tmp_path / "merged")


def assert_same_merged(model, pretrained, adapter, folder):
    """Our merged parameters are those of `merge_and_unload`."""
    model.merge_and_unload().save_pretrained(folder)
    theirs, merged = flat(load_pretrained(folder).params), flat(merge(pretrained.params, adapter))
    assert theirs.keys() == merged.keys()
    for path in theirs:  # one product and one sum in float32
        np.testing.assert_allclose(merged[path], theirs[path], atol=2e-6, err_msg=path)


OURS = {
    "t5": ("t5", "q,v", "standard", []),
    "t5 some": ("t5", ["encoder/attention/key", "decoder/cross_attention/out"], "rank_stabilised", []),
    "bart": ("bart", "all", "standard", []),
    "gpt2 query and value": ("gpt2", "q,v", "standard", []),
    "gpt2 query and value of one a": ("gpt2", "q,v", "rank_stabilised", [QUERY, VALUE]),
    "gpt2 all": ("gpt2", "all", "rank_stabilised", []),
    "gpt2 all, one a": ("gpt2", "all", "standard", [QUERY, KEY, VALUE]),
    "gpt2 some": ("gpt2", [VALUE, "layers/mlp/wo"], "standard", []),
    "opt": ("opt", "all", "standard", []),
    "opt some": ("opt", "layers/mlp/.*", "rank_stabilised", []),
    "roberta": ("roberta", "all", "standard", []),
    "roberta some": ("roberta", "layers/wo", "standard", []),
}


def our_adapter(pretrained, targets, scaling, of_one_a):
    lora = LoRA(rank=3, alpha=4.0, targets=targets, scaling=scaling)
    adapter, rng = init_adapter(pretrained.module, lora, jax.random.key(0)), np.random.default_rng(2)
    leaves = {
        path: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32) for path, leaf in flat(adapter.tree).items()
    }
    leaves |= {f"{path}/a": leaves[f"{of_one_a[0]}/a"] for path in of_one_a}
    return dataclasses.replace(adapter, tree=nested(leaves))


def loaded_by_peft(base, folder):
    """What PEFT makes of a folder; where keys are missing or left over it warns, and warnings are errors."""
    import peft

    model = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    report = model.load_adapter(str(folder), adapter_name="default")
    assert not report.unexpected_keys and not [key for key in report.missing_keys if ".lora_" in key]
    return model


@pytest.mark.parametrize("case", OURS)
def test_peft_loads_what_we_save_and_it_does_the_same_there(bases, ours, case, tmp_path):
    import safetensors.numpy

    name, *how = OURS[case]
    adapter = our_adapter(ours[name], *how)
    save_adapter(tmp_path, adapter, ours[name])
    model = loaded_by_peft(torch_base(bases, name), tmp_path)
    stored = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    factors = {key.replace(".default", "") for key, _ in model.named_parameters() if ".lora_" in key}
    assert factors == stored.keys()
    assert_close(our_logits(ours[name], name, adapter), torch_logits(model, name))
    assert_same_merged(model, ours[name], adapter, tmp_path / "merged")


def test_an_encoder_alone_has_the_paths_of_its_own_class(bases, tmp_path):
    import torch
    import transformers

    roberta("Model").save_pretrained(tmp_path / "base")
    pretrained = load_pretrained(tmp_path / "base")
    save_pretrained(tmp_path / "ours", pretrained)
    adapter = our_adapter(pretrained, "q,k,v,o", "standard", [])
    save_adapter(tmp_path / "adapter", adapter, pretrained)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["task_type"] == "FEATURE_EXTRACTION"
    base = transformers.XLMRobertaModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False).eval()
    model = loaded_by_peft(base, tmp_path / "adapter")
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(INPUTS).long()).last_hidden_state.numpy()
    apply = jax.jit(lambda params: pretrained.module.apply({"params": params}, inputs=INPUTS))
    assert_close(np.asarray(apply(merge(pretrained.params, adapter))), expected)


class Words:
    """A tokenizer of numbers."""

    eos_token_id = 1

    def encode_batch(self, texts):
        return [[*map(int, text.split()), self.eos_token_id] for text in texts]


@pytest.mark.parametrize("name", ["t5", "bart", "opt"])
def test_an_adapter_of_an_instruction_does_the_same_in_peft(bases, ours, name, tmp_path):
    """The hypernetwork's own model and the exported folder in PEFT give the same logits."""
    import peft

    config = HyperConfig(outputs=(LoRA(rank=3, alpha=5.0),), fusion="none", memory="input")
    module = HyperModel(config, ours[name].module)
    params = random_like(module, spread=0.2)
    own = {part: tree for part, tree in params.items() if part != "base"}
    hyper, pretrained = Hyper(config=config, params=own), dataclasses.replace(ours[name], tokenizer=Words())
    save_adapter(tmp_path, generate_adapter(hyper, pretrained, "7 8 9"), ours[name])
    theirs = torch_logits(peft.PeftModel.from_pretrained(torch_base(bases, name), tmp_path).eval(), name)
    kept = read_instructions(hyper, pretrained, ["7 8 9"]).collections(np.zeros(len(INPUTS), np.int32))
    arrays = dict(inputs=INPUTS) | (dict(decoder_inputs=DECODER_INPUTS) if name in OF_DECODERS_PAIRS else {})
    found = np.asarray(applied(ours[name].module, {"params": ours[name].params} | kept, arrays))
    assert np.abs(found - our_logits(ours[name], name)).max() > 1e-2 * np.abs(found).max()
    assert_close(found, theirs)
