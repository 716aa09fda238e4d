"""The playground over HTTP: what its page asks for, and what it refuses."""

import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest
from hyper_toy import LORA, random_like

from jaxmtl import tokenizers
from jaxmtl.adapters.hyper_config import GeneratorConfig, HyperConfig
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.hypernet import Hyper
from jaxmtl.commands import playground
from jaxmtl.models.t5 import T5
from jaxmtl.models.t5_config import T5Config
from jaxmtl.weights import Pretrained

WORDS = "Now complete the following example Input Output Definition say the opposite of what is given".split()
CONFIG = HyperConfig(outputs=(LORA,), fusion="none", memory="input", generator=GeneratorConfig(hidden=6))


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer = tokenizers.train_sentencepiece([" ".join(WORDS)] * 50, folder / "spiece.model", 44, 10)
    sizes = dict(embed_dim=12, num_heads=3, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1)
    module = T5(T5Config(vocab_size=tokenizer.vocab_size, **sizes))
    params = random_like(HyperModel(CONFIG, module), seed=2, spread=1.0)
    pretrained = Pretrained(module.config, module, params.pop("base"), tokenizer)
    own = playground.Playground(pretrained, Hyper(config=CONFIG, params=params), max_tokens=3)
    with playground.make_server(own, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def asked(address, content, **headers):
    """Status and answer of a prediction."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(f"{address}/predict", data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_page_gives_three_answers_for_each_input(address):
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()
    assert answer.headers["Content-Type"].startswith("text/html") and 'fetch("predict"' in page
    content = {"instruction": "say the opposite", "inputs": ["given", "what is"]}
    status, plain = asked(address, content)
    assert status == 200 and plain["inputs"] == ["given", "what is"]
    assert all(len(plain[name]) == 2 and plain["seconds"][name] > 0 for name in playground.NAMES)
    _, shown = asked(address, {**content, "examples": '{"input": "given", "output": "what"}'})
    assert shown["base"] == plain["base"] and shown["concatenated"] != plain["concatenated"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"inputs": ["x"]}, "the instruction is empty"),
        ({"instruction": "say", "inputs": []}, "expected 1 to 64 texts"),
        ({"instruction": "say", "inputs": "x"}, "expected 1 to 64 texts"),
        ({"instruction": "say", "inputs": ["x"], "examples": "{"}, "examples line 1: not JSON"),
        ([1], "expected a JSON object"),
        (b"{", "the request is not JSON"),
    ],
)
def test_what_it_cannot_answer_it_says_in_one_line(address, content, message):
    status, answer = asked(address, content)
    assert status == 400 and message in answer["error"] and "\n" not in answer["error"]


def test_too_much_and_pages_of_others_are_refused(address):
    content = {"instruction": "say", "inputs": ["x"]}
    assert "bytes of JSON" in asked(address, content, **{"Content-Length": str(playground.MOST_BYTES + 1)})[1]["error"]
    assert "content type" in asked(address, content, **{"Content-Type": "text/plain"})[1]["error"]
    assert "for this machine only" in asked(address, content, Host="elsewhere.example")[1]["error"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}/other")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser on this machine")
def test_a_browser_shows_what_was_predicted(address, tmp_path, monkeypatch):
    monkeypatch.setattr(playground, "MOST_KEPT", 1)
    link = f"{address}/#" + urllib.parse.urlencode({"instruction": "say the opposite", "inputs": "given\nwhat is"})
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --virtual-time-budget=20000"
    command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", link]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("<tr>") == 3 and "<td>given</td>" in done.stdout
