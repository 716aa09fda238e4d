"""Local tasks of lm-evaluation-harness give a jaxmtl model the scores that they give its torch twin."""

import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxmtl.evals import lm_eval as ours
from jaxmtl.models.gpt import GPT
from jaxmtl.models.gpt_config import GPT2Config
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.tokenizers import load_tokenizer, train_sentencepiece
from jaxmtl.weights import Pretrained, save_pretrained

pytestmark = [
    pytest.mark.lm_eval,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROWS = [
    {"question": "a cat and a dog", "choices": ["cat", "a bird"], "label": 0},
    {"question": "the sky is", "choices": ["blue", "green"], "label": 0},
    {"question": "is water wet", "choices": ["no", "yes"], "label": 1},
    {"question": "is it", "choices": ["no", "yes"], "label": 0},
]
TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "texts": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}} ",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["ab"], "max_gen_toks": 7, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "whole": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{question}} {{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """YAML files of tasks over a local file; nothing asks the hub."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    for name, own in TASKS.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **data, **own}))
    return folder


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt")
    pieces = ["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    sizes = dict(vocab_size=28, embed_dim=16, num_heads=2, num_layers=2, mlp_dim=24, max_positions=24)
    return of_module(GPT(GPT2Config(**sizes, pad_id=0, eos_id=0, init_stddev=0.5)), load_tokenizer(folder), folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    texts = [f"{row['question']} {' '.join(row['choices'])}" for row in ROWS]
    tokenizer = train_sentencepiece(texts * 8, folder / "spiece.model", 40, 10)
    sizes = dict(embed_dim=16, num_heads=2, head_dim=8, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=2)
    config = T5Config(vocab_size=tokenizer.vocab_size, **sizes, mlp_activations=("gelu", "linear"), tied_head=False)
    return of_module(T5(config), tokenizer, folder)


def of_module(module, tokenizer, folder):
    tokens = jnp.ones((1, 4), jnp.int32)
    given = (tokens, tokens) if isinstance(module, T5) else (tokens,)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(1), *given)["params"])
    pretrained = Pretrained(module.config, module, params, tokenizer)
    save_pretrained(folder, pretrained)
    return pretrained, folder


def answers(model, tasks, names, **options):
    """Returns the scores of tasks, and the model's answers to every request."""
    harness = pytest.importorskip("lm_eval.evaluator")
    manager = pytest.importorskip("lm_eval.tasks").TaskManager(include_path=str(tasks), include_defaults=False)
    done = harness.simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0, **options)
    given = {name: [sample["resps"] for sample in done["samples"][name]] for name in names}
    return done["results"], given


def same(ours, theirs):
    """Compares numbers to 1e-4: float32 sums of a few dozen terms of size 1, in another order."""
    if isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-5)
    else:
        assert ours == theirs


@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_a_task_scores_our_model_as_its_torch_twin(family, request, tasks):
    pytest.importorskip("lm_eval")
    (pretrained, folder), names = request.getfixturevalue(family), list(TASKS)[: 3 if family == "gpt" else 2]
    scores, found = answers(ours.register()(pretrained, batch_size=4), tasks, names)
    torch_model = pytest.importorskip("lm_eval.models.huggingface").HFLM(
        pretrained=torch_twin(pretrained, folder), tokenizer=torch_tokenizer(folder, family), batch_size=1
    )
    expected_scores, expected = answers(torch_model, tasks, names)
    if family == "t5":
        # Of encoder-decoders the harness's own model counts the context as part of what is generated, and goes on.
        pairs = zip(found.pop("texts"), expected.pop("texts"), strict=True)
        texts = [(one[0][0], theirs[0][0]) for one, theirs in pairs]
        assert all(theirs.startswith(one) and one for one, theirs in texts)
    for name in found:
        same(found[name], expected[name])
        for metric in TASKS[name]["metric_list"]:
            key = f"{metric['metric']},none"
            assert scores[name][key] == pytest.approx(expected_scores[name][key], rel=1e-4)


def torch_twin(pretrained, folder):
    import transformers

    kind = "T5ForConditionalGeneration" if isinstance(pretrained.module, T5) else "GPT2LMHeadModel"
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    model.config.tie_word_embeddings = pretrained.config.tied_head  # else the harness's model would tie the head again
    return model


def torch_tokenizer(folder, family):
    import transformers

    kind = transformers.T5Tokenizer if family == "t5" else transformers.GPT2Tokenizer
    return kind.from_pretrained(folder)


def test_a_model_is_named_as_the_harness_names_models(gpt, tasks):
    pytest.importorskip("lm_eval")
    pretrained, folder = gpt
    ours.register()
    scores, found = answers("jaxmtl", tasks, ["choices"], model_args=f"pretrained={folder},batch_size=3,count_end=True")
    _, plain = answers(ours.register()(pretrained), tasks, ["choices"])
    assert found["choices"][0][0][0][0] < plain["choices"][0][0][0][0]  # the end token costs something
    assert scores["choices"]["alias"] == "choices"


def test_as_a_command_it_refuses_perplexities_of_an_encoder_decoder_in_one_line(t5, tasks, monkeypatch):
    pytest.importorskip("lm_eval")
    words = [
        "--model",
        "jaxmtl",
        "--model_args",
        f"pretrained={t5[1]}",
        "--include_path",
        str(tasks),
        "--tasks",
        "whole",
    ]
    monkeypatch.setattr(sys, "argv", ["lm_eval", "run", *words])
    with pytest.raises(SystemExit, match="error: perplexity of whole texts .* needs a decoder-only model"):
        ours.main()
