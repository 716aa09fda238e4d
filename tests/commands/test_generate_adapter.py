"""`jaxmtl generate_adapter`: what it writes answers as the hypernetwork's own model does."""

import dataclasses

import jax
import numpy as np
import pytest
from hyper_toy import EVERYTHING, LORA, random_like

from jaxmtl import tokenizers
from jaxmtl.adapters.adaptation import Instructed
from jaxmtl.adapters.hyper_config import GeneratorConfig, HyperConfig, MeanPooling, PrefixOutput
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.hypernet import Hyper, InstructionCache, read_instructions, read_tasks
from jaxmtl.evals.scoring import loss
from jaxmtl.main import main
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained, load_adapter, load_pretrained, save_pretrained
from jaxmtl.weights.adaptation_io import load_adaptation
from jaxmtl.weights.hyper_io import save_hyper

FILES = {"adapter_config.json", "adapter_model.safetensors", "adaptation.safetensors"}
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


def saved(folder, config, pretrained):
    """A hypernetwork with random parameters in a folder, without those of the model."""
    params = random_like(HyperModel(config, pretrained.module), seed=2)
    hyper = Hyper(config=config, params={name: tree for name, tree in params.items() if name != "base"})
    save_hyper(folder, hyper, pretrained)
    return hyper


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.long
@pytest.mark.parametrize("config", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_what_is_written_answers_as_the_hypernetwork_does(model, config, tmp_path, capsys):
    folder, pretrained = model
    hyper = saved(tmp_path / "hyper", config, pretrained)
    words = ["--checkpoint", str(tmp_path / "hyper"), "--model", str(folder), "--out", str(tmp_path / "out")]
    (tmp_path / "shown.jsonl").write_text('{"input": "given", "output": "count"}\n')
    words += ["--examples", str(tmp_path / "shown.jsonl")]
    assert main(["generate_adapter", *words, "--instruction", "say the opposite"]) == 0
    said = capsys.readouterr().out
    read = "Definition: say the opposite.\n\n Positive Example 1 -\nInput: given.\n Output: count.\n\n"
    expected = loss(pretrained, *TEXTS, adapter=InstructionCache(hyper, pretrained).of([read]))
    assert "rank 3, alpha 6" in said and "has trained it" not in said
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
    hyper = saved(tmp_path / "hyper", config, pretrained)
    words = ["generate_adapter", "--checkpoint", str(tmp_path / "hyper"), "--model", str(folder)]
    assert main([*words, "--out", str(tmp_path / "out"), "--task", "second"]) == 0
    assert "(PEFT, rank 3, alpha 6; task second)" in capsys.readouterr().out
    vector = hyper.params["tasks"]["embedding"][1]
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


def test_of_a_model_that_was_trained_too_it_is_said_whose_adapter_it_is(model, tmp_path, capsys):
    folder, pretrained = model
    config = dataclasses.replace(PLAIN, base="all")
    params = random_like(HyperModel(config, pretrained.module), seed=2)
    save_hyper(tmp_path / "hyper", Hyper(config=config, params=params), pretrained)
    words = ["--checkpoint", str(tmp_path / "hyper"), "--model", str(folder), "--out", str(tmp_path / "out")]
    assert main(["generate_adapter", *words, "--prompt=plain", "--instruction", "count its words"]) == 0
    said = capsys.readouterr().out
    assert "leaves out what was trained of the model itself" in said
    trained = f"it adapts the model as {tmp_path / 'hyper'} has trained it, not the one that training began with\n"
    assert said.endswith(trained)
    # The instruction was read by the trained model, whose adapter it is.
    alone = Hyper(config=config, params={name: tree for name, tree in params.items() if name != "base"})
    after = dataclasses.replace(pretrained, params=params["base"])
    found = jax.tree.leaves(load_adapter(tmp_path / "out", pretrained).tree)
    for other, is_same in ((after, True), (pretrained, False)):
        expected = jax.tree.leaves(read_instructions(alone, other, ["count its words"]).generated["lora"])
        pairs = zip(found, expected, strict=True)
        assert all(np.allclose(leaf, one[0], rtol=1e-6) for leaf, one in pairs) == is_same


@pytest.fixture(scope="module")
def hypernets(model, tmp_path_factory):
    """Words for hypernetworks that write other files each, by name."""
    folder, pretrained = model
    prefixes = PrefixOutput(length=2)
    outputs = {"plain": (LORA,), "whole": (LORA, prefixes), "prefixes": (prefixes,)}
    home = tmp_path_factory.mktemp("hypernets")
    for name, made in outputs.items():
        saved(home / name, dataclasses.replace(PLAIN, outputs=made), pretrained)
    own = ["--model", str(folder), "--instruction", "say the opposite"]
    return {name: ["generate_adapter", "--checkpoint", str(home / name), *own] for name in outputs}


WRITTEN = {"plain": FILES - {"adaptation.safetensors"}, "whole": FILES, "prefixes": {"adaptation.safetensors"}}


@pytest.mark.long
def test_a_new_adapter_lies_beside_nothing_of_an_older_one(hypernets, tmp_path):
    for name in ("whole", "plain", "whole", "prefixes", "plain"):
        assert main([*hypernets[name], "--out", str(tmp_path)]) == 0
        assert names(tmp_path) == WRITTEN[name]
    (tmp_path / ".adapter_config.json.partial").touch()  # what a write leaves that the machine did not survive
    assert main([*hypernets["plain"], "--out", str(tmp_path)]) == 0
    assert names(tmp_path) == WRITTEN["plain"]


def test_an_adapter_that_is_not_written_to_its_end_lies_beside_nothing_of_an_older_one(
    hypernets, tmp_path, monkeypatch
):
    assert main([*hypernets["whole"], "--out", str(tmp_path)]) == 0

    def breaks(*_):
        raise InputError("the disk is full")

    monkeypatch.setattr("jaxmtl.weights.adaptation_io.save_adaptation", breaks)
    assert main([*hypernets["whole"], "--out", str(tmp_path)]) == 1
    assert names(tmp_path) == WRITTEN["plain"]


def test_an_older_adapter_stays_where_none_is_made(hypernets, tmp_path, capsys):
    assert main([*hypernets["whole"], "--out", str(tmp_path)]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main([*hypernets["plain"][:-2], "--task", "first", "--out", str(tmp_path)]) == 1
    assert "knows no task by name" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "model.safetensors", "hypernet.json", "README.md", "checkpoints/"]
)
def test_a_folder_that_holds_anything_else_is_refused_and_stays_as_it_is(hypernets, tmp_path, capsys, name):
    (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main([*hypernets["plain"], "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"holds {name.strip('/')!r}, which is no file of a generated adapter" in error and error.count("\n") == 1
    assert names(tmp_path) == {name.strip("/"), "adapter_config.json"}


def test_a_file_is_no_folder_to_write(hypernets, tmp_path, capsys):
    (tmp_path / "out").touch()
    assert main([*hypernets["plain"], "--out", str(tmp_path / "out")]) == 1
    assert "cannot be written (Not a directory)" in capsys.readouterr().err
