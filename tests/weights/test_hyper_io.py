import json

import jax
import numpy as np
import pytest
from hyper_toy import BASE, EVERYTHING, LORA, T5_CONFIG, random_like

from jaxmtl.adapters.hyper_config import GeneratorConfig, HyperConfig
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.hyper_presets import PRESETS
from jaxmtl.adapters.hypernet import Hyper
from jaxmtl.models.t5 import T5
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained
from jaxmtl.weights.hyper_io import from_json, load_hyper, save_hyper, to_json


@pytest.fixture(scope="module")
def pretrained():
    return Pretrained(config=T5_CONFIG, module=BASE, params=random_like(BASE), tokenizer=None)


def made(config, reader=None):
    params = random_like(HyperModel(config, BASE, reader))
    return Hyper(config=config, params={name: tree for name, tree in params.items() if name != "base"}, reader=reader)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_survives_json(preset):
    config = PRESETS[preset](**({"tasks": ("a", "b", "c")} if preset == "text_to_lora" else {}))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_a_hypernetwork_comes_back_as_it_was(pretrained, tmp_path):
    reader = T5(T5_CONFIG)
    config = HyperConfig(encoder="separate", outputs=EVERYTHING.outputs, generator=GeneratorConfig(hidden=3))
    hyper = made(config, reader)
    save_hyper(tmp_path, hyper, pretrained)
    back = load_hyper(tmp_path, pretrained)
    assert back.config == config
    assert back.reader.config.embed_dim == reader.config.embed_dim
    assert jax.tree.structure(back.params) == jax.tree.structure(hyper.params)
    jax.tree.map(np.testing.assert_array_equal, back.params, hyper.params)


@pytest.fixture
def saved(pretrained, tmp_path):
    hyper = made(HyperConfig(outputs=(LORA,), fusion="none", generator=GeneratorConfig(hidden=3)))
    save_hyper(tmp_path, hyper, pretrained)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw | {"fusion": "pre"}, "unknown fusion of a hypernetwork 'pre'"),
        (lambda raw: raw | {"speed": 3}, "unknown field of HyperConfig 'speed'"),
        (lambda raw: raw["generator"], "holds a GeneratorConfig; expected a HyperConfig"),
        (lambda raw: raw | {"pooling": {"kind": "Pool"}}, "unknown part of a hypernetwork 'Pool'"),
        (lambda raw: raw | {"generator": raw["generator"] | {"hidden": 4}}, "asks for"),
        (lambda raw: raw | {"outputs": 3}, "is damaged"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(saved, pretrained, change, message):
    file = saved / "hypernet.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(InputError, match=message) as caught:
        load_hyper(saved, pretrained)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


def test_another_models_hypernetwork_and_an_empty_folder_are_refused(saved, pretrained, tmp_path):
    other = Pretrained(config=T5_CONFIG, module=BASE, params=random_like(BASE, seed=9), tokenizer=None)
    with pytest.raises(InputError, match="load the model that it was trained on"):
        load_hyper(saved, other)
    with pytest.raises(InputError, match="holds no hypernet.json"):
        load_hyper(tmp_path / "nothing", pretrained)
