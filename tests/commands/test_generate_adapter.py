"""`jaxmtl generate_adapter`: what it writes answers as the hypernetwork's own model does."""

import dataclasses

import jax
import numpy as np
import pytest
from hyper_toy import EVERYTHING, LORA, random_like

from jaxmtl import tokenizers
from jaxmtl.adapters.adaptation import Instructed
from jaxmtl.adapters.hyper_config import GeneratorConfig, HyperConfig, MeanPooling
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.hypernet import Hyper, InstructionCache, read_tasks
from jaxmtl.evals.scoring import loss
from jaxmtl.main import main
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.weights import Pretrained, load_adapter, load_pretrained, save_pretrained
from jaxmtl.weights.adaptation_io import load_adaptation
from jaxmtl.weights.hyper_io import save_hyper

WORDS = "say the opposite of what is given or count its words".split()
PLAIN = HyperConfig(outputs=(LORA,), fusion="none", memory="input", generator=GeneratorConfig(hidden=6))
TEXTS = (["count its words"], ["given"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's folder, and the model as it is loaded."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tokenizers.train_sentencepiece([" ".join(WORDS)] * 50, folder / "spiece.model", 36, 10)
    sizes = dict(embed_dim=12, num_heads=3, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1)
    config = T5Config(vocab_size=tokenizer.vocab_size, **sizes)
    params = random_like(T5(config))
    save_pretrained(folder, Pretrained(config=config, module=T5(config), params=params, tokenizer=tokenizer))
    return folder, load_pretrained(folder)


@pytest.mark.long
@pytest.mark.parametrize("config", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_what_is_written_answers_as_the_hypernetwork_does(model, config, tmp_path, capsys):
    folder, pretrained = model
    params = random_like(HyperModel(config, pretrained.module), seed=2)
    hyper = Hyper(config=config, params={name: tree for name, tree in params.items() if name != "base"})
    save_hyper(tmp_path / "hyper", hyper, pretrained)
    words = ["--checkpoint", str(tmp_path / "hyper"), "--model", str(folder), "--out", str(tmp_path / "out")]
    (tmp_path / "shown.jsonl").write_text('{"input": "given", "output": "count"}\n')
    words += ["--examples", str(tmp_path / "shown.jsonl")]
    assert main(["generate_adapter", *words, "--instruction", "say the opposite"]) == 0
    said = capsys.readouterr().out
    read = "Definition: say the opposite.\n\n Positive Example 1 -\nInput: given.\n Output: count.\n\n"
    expected = loss(pretrained, *TEXTS, adapter=InstructionCache(hyper, pretrained).of([read]))
    assert "rank 3, alpha 6" in said
    adapter = load_adapter(tmp_path / "out", pretrained)
    if config is PLAIN:
        assert "leaves out" not in said
        np.testing.assert_allclose(loss(pretrained, *TEXTS, adapter=adapter), expected, rtol=1e-5)
    else:
        assert "leaves out prefixes of attention layers, bottleneck adapters, the encoder's look" in said
        kept = Instructed(adaptation=load_adaptation(tmp_path / "out", pretrained), index=np.zeros(1, np.int32))
        np.testing.assert_allclose(loss(pretrained, *TEXTS, adapter=kept), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--instruction", " "], "the instruction is empty"),
        (["--instruction_file", "nowhere.txt"], "nowhere.txt"),
        (["--instruction", "say it"], "holds no hypernet.json"),
        (["--instruction", "say it", "--examples", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["--task", "a", "--examples", "x"], "--task names a task that was learned"),
        (["--task", "a", "--prompt=plain"], "--task names a task that was learned"),
        (
            ["--instruction", "say it", "--examples", "x", "--prompt=plain"],
            "--prompt=plain takes the instruction",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(model, tmp_path, capsys, words, message):
    own = ["--checkpoint", str(tmp_path), "--model", str(model[0]), "--out", str(tmp_path / "out")]
    assert main(["generate_adapter", *own, *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_learned_tasks_are_asked_for_by_name(model, tmp_path, capsys):
    folder, pretrained = model
    config = dataclasses.replace(PLAIN, encoder="learned", pooling=MeanPooling(), tasks=("first", "second"))
    params = random_like(HyperModel(config, pretrained.module), seed=2)
    hyper = Hyper(config=config, params={name: tree for name, tree in params.items() if name != "base"})
    save_hyper(tmp_path / "hyper", hyper, pretrained)
    words = ["generate_adapter", "--checkpoint", str(tmp_path / "hyper"), "--model", str(folder)]
    assert main([*words, "--out", str(tmp_path / "out"), "--task", "second"]) == 0
    assert "(PEFT, rank 3, alpha 6; task second)" in capsys.readouterr().out
    vector = params["tasks"]["embedding"][1]
    alone = dataclasses.replace(config, tasks=("second",))
    own = hyper.params | {"tasks": {"embedding": vector[None]}}
    expected = read_tasks(Hyper(config=alone, params=own), pretrained, ["second"])
    adapter = load_adapter(tmp_path / "out", pretrained)
    for leaf, other in zip(jax.tree.leaves(adapter.tree), jax.tree.leaves(expected.generated["lora"]), strict=True):
        np.testing.assert_allclose(leaf, other[0], rtol=1e-6)
    assert main([*words, "--out", str(tmp_path / "none"), "--task", "secnd"]) == 1
    assert "secnd" in (error := capsys.readouterr().err) and "second" in error
    assert main([*words, "--out", str(tmp_path / "none"), "--instruction", "say it"]) == 1
    assert "knows its tasks by name" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
