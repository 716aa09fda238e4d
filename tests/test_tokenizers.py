import json
import pathlib

import hypothesis
import pytest
import sentencepiece
import tokenizers as hf_tokenizers
from hypothesis import strategies as st

from jaxmtl import tokenizers
from jaxmtl.types import InputError

DATA = pathlib.Path(__file__).parent.parent.parent / "shared" / "data"
FILES = DATA / "tokenizers"
CORPUS = [
    f"the quick brown fox number {i} jumps over {i % 7} lazy dogs, or does it? {'ab' * (i % 5)}" for i in range(400)
]
real_data = pytest.mark.real_data


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    return tokenizers.train_sentencepiece(CORPUS, tmp_path_factory.mktemp("toy") / "spiece.model", 160, 10)


@pytest.fixture(scope="module")
def t5() -> tokenizers.Tokenizer:
    return tokenizers.load_tokenizer(FILES / "t5")


def sni_texts(count: int) -> list[str]:
    texts = []
    for file in sorted((DATA / "sni" / "tasks").glob("*.json"))[:: max(1, 300 // count)]:
        task = json.loads(file.read_text())
        texts += [task["Definition"][0] if isinstance(task["Definition"], list) else task["Definition"]]
        texts += [instance["input"] for instance in task["Instances"][:5]]
    return texts


def test_encode_is_the_sentencepiece_model_and_eos(toy: tokenizers.Tokenizer) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(toy.source))
    for text in CORPUS[:20]:
        assert toy.encode(text) == [*model.encode(text), 1]
        assert toy.encode(text, add_special_tokens=False) == model.encode(text)


def test_sentinels_count_down_from_the_last_id(toy: tokenizers.Tokenizer) -> None:
    assert toy.vocab_size == 160
    assert toy.encode("<extra_id_0>", add_special_tokens=False) == [159]
    assert toy.encode("<extra_id_9>", add_special_tokens=False) == [150]
    assert 150 not in toy.encode("<extra_id_10>")


def test_special_names_cut_the_text(toy: tokenizers.Tokenizer) -> None:
    fox, dogs = toy.encode("fox", False), toy.encode("dogs", False)
    assert toy.encode("fox<extra_id_0>dogs </s>", False) == [*fox, 159, *dogs, 1]


def test_encode_batch_equals_encode(toy: tokenizers.Tokenizer) -> None:
    texts = [*CORPUS[:30], "", " \n", "fox <extra_id_3> dogs"]
    assert toy.encode_batch(texts) == [toy.encode(text) for text in texts]


def test_decode_inverts_encode_and_drops_special_and_padding_rows(toy: tokenizers.Tokenizer) -> None:
    ids = toy.encode(CORPUS[3])
    assert toy.decode([0, *ids, 0, 155, 160, 170, 10**9]) == CORPUS[3]
    assert toy.decode(ids, skip_special_tokens=False) == CORPUS[3] + "</s>"
    assert toy.decode(toy.encode("fox <extra_id_0> dogs", False), skip_special_tokens=False) == "fox<extra_id_0> dogs"
    assert toy.decode([]) == ""


@hypothesis.given(st.lists(st.text(alphabet="foxdgs <>", max_size=12), max_size=6))
def test_words_are_encoded_independently_where_promised(toy: tokenizers.Tokenizer, words: list[str]) -> None:
    assert toy.splits_on_whitespace
    parts = [toy.encode(word, False) for word in words]
    assert toy.encode(" \n ".join(words), False) == [index for part in parts for index in part]


def test_training_twice_gives_the_same_vocabulary(toy: tokenizers.Tokenizer, tmp_path: pathlib.Path) -> None:
    again = tokenizers.train_sentencepiece(CORPUS, tmp_path / "other.model", 160, 10)
    assert again.fingerprint == toy.fingerprint
    assert (tmp_path / "other.model").read_bytes() == toy.source.read_bytes()


@pytest.mark.long
def test_long_texts_take_part_in_training(tmp_path: pathlib.Path) -> None:
    long = " ".join(["zq"] * 5000)
    trained = tokenizers.train_sentencepiece([*CORPUS, long], tmp_path / "x.model", 100, 0)
    assert trained.unk_token_id not in trained.encode("zq")


def test_saved_tokenizer_loads_the_same(toy: tokenizers.Tokenizer, tmp_path: pathlib.Path) -> None:
    toy.save(tmp_path / "copy")
    copy = tokenizers.load_tokenizer(tmp_path / "copy")
    assert copy.fingerprint == toy.fingerprint
    assert copy.encode("fox <extra_id_0>") == toy.encode("fox <extra_id_0>")
    assert tokenizers.load_tokenizer(tmp_path / "copy" / "spiece.model").fingerprint == toy.fingerprint


def test_a_model_of_any_name_is_saved_under_the_standard_name(
    toy: tokenizers.Tokenizer, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "mine.model").write_bytes(toy.source.read_bytes())
    mine = tokenizers.load_tokenizer(tmp_path / "mine.model", extra_ids=10)
    mine.save(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["spiece.model", "tokenizer_config.json"]
    assert tokenizers.load_tokenizer(tmp_path / "run").fingerprint == mine.fingerprint == toy.fingerprint


def test_special_tokens_are_named_by_the_models_own_ids(tmp_path: pathlib.Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(tmp_path / "odd"),
        vocab_size=80,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        minloglevel=2,
    )
    odd = tokenizers.load_tokenizer(tmp_path / "odd.model", extra_ids=0)
    config = json.loads(odd.files["tokenizer_config.json"])
    assert {name: config[name] for name in ("pad_token", "eos_token", "unk_token")} == {
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }


def test_number_of_sentinels_changes_the_fingerprint(toy: tokenizers.Tokenizer) -> None:
    assert tokenizers.load_tokenizer(toy.source, extra_ids=11).fingerprint != toy.fingerprint


def test_json_fingerprint_ignores_layout_but_not_content(tmp_path: pathlib.Path) -> None:
    def save(name: str, words: dict[str, int], indent: int | None) -> tokenizers.Tokenizer:
        pipeline = hf_tokenizers.Tokenizer(hf_tokenizers.models.WordLevel(words, unk_token="<unk>"))
        pipeline.pre_tokenizer = hf_tokenizers.pre_tokenizers.Whitespace()
        pipeline.enable_truncation(2)
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(json.loads(pipeline.to_str()), indent=indent))
        return tokenizers.load_tokenizer(tmp_path / name)

    first = save("a", {"<pad>": 0, "</s>": 1, "<unk>": 2, "x": 3}, None)
    assert save("b", {"<pad>": 0, "</s>": 1, "<unk>": 2, "x": 3}, 2).fingerprint == first.fingerprint
    assert save("c", {"<pad>": 0, "</s>": 1, "<unk>": 2, "y": 3}, 2).fingerprint != first.fingerprint
    assert first.encode("x x x x q") == [3, 3, 3, 3, 2]  # the file's truncation is off
    assert (first.pad_token_id, first.eos_token_id, first.unk_token_id) == (0, 1, 2)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_half_a_surrogate_pair_is_an_input_error(toy: tokenizers.Tokenizer, text: str) -> None:
    for call in (lambda: toy.encode(text), lambda: toy.encode_batch(["fine", text])):
        with pytest.raises(InputError, match="expected Unicode text"):
            call()


def test_bad_paths_are_one_line_input_errors(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.model").write_bytes(b"no model")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "words.txt").write_text("hello")
    for name, word in {
        "none": "does not exist",
        "none/spiece.model": "does not exist",
        "empty": "holds neither",
        "bad.model": "no SentencePiece model",
        "tokenizer.json": "no `tokenizers` JSON",
        "words.txt": "expected a name ending",
    }.items():
        with pytest.raises(InputError, match=word) as caught:
            tokenizers.load_tokenizer(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@hypothesis.given(st.binary(max_size=200))
@hypothesis.settings(max_examples=30)
def test_random_bytes_are_no_vocabulary(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("x.model", "tokenizer.json"):
        (folder / name).write_bytes(content)
        with pytest.raises(InputError):
            tokenizers.load_tokenizer(folder / name)


def test_broken_config_beside_is_an_input_error(toy: tokenizers.Tokenizer, tmp_path: pathlib.Path) -> None:
    toy.save(tmp_path)
    for content in ("{", "[]", '{"extra_ids": -1}', '{"extra_ids": "x"}'):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(InputError, match="tokenizer_config"):
            tokenizers.load_tokenizer(tmp_path)


def test_too_large_vocabulary_for_the_texts_is_an_input_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="cannot be learnt"):
        tokenizers.train_sentencepiece(["hello"], tmp_path / "x.model", 1000, 0)


@real_data
def test_t5_facts(t5: tokenizers.Tokenizer) -> None:
    assert (t5.vocab_size, t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (32100, 0, 1, 2)
    assert t5.encode("<extra_id_0> <extra_id_99>") == [32099, 32000, 1]
    assert t5.splits_on_whitespace


@real_data
def test_t5_json_gives_the_same_ids(t5: tokenizers.Tokenizer) -> None:
    fast = tokenizers.load_tokenizer(FILES / "t5" / "tokenizer.json")
    texts = [*sni_texts(30), "a <extra_id_0>b", "x </s> y"]
    assert fast.encode_batch(texts) == t5.encode_batch(texts)


@real_data
def test_roberta_frames_texts_and_gpt2_does_not() -> None:
    roberta = tokenizers.load_tokenizer(FILES / "roberta-base")
    assert roberta.encode("Hello world") == [0, 31414, 232, 2]  # the ids printed in RoBERTa's own README
    assert (roberta.pad_token_id, roberta.eos_token_id, roberta.unk_token_id) == (1, 2, 3)
    gpt2 = tokenizers.load_tokenizer(FILES / "gpt2")
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("<|endoftext|>") == [50256]
    assert gpt2.decode(gpt2.encode("Naïve café \n ok")) == "Naïve café \n ok"


@real_data
@pytest.mark.torch
def test_t5_ids_equal_transformers(t5: tokenizers.Tokenizer) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(FILES / "t5")
    texts = [*sni_texts(60), "a <extra_id_0> b", "a<extra_id_5>b <extra_id_99>.", "x </s> y <pad>", "", "é ﬁ 日本 ☃"]
    for text in texts:
        ids = t5.encode(text)
        assert ids == theirs(text, truncation=False).input_ids
        plain = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert t5.decode(ids) == plain
    ids = t5.encode("a <extra_id_0> b")
    assert t5.decode(ids, False) == theirs.decode(ids, clean_up_tokenization_spaces=False)


@real_data
@pytest.mark.torch
@pytest.mark.parametrize("name", ["roberta-base"])
def test_json_ids_equal_transformers(name: str) -> None:
    import transformers

    theirs = transformers.RobertaTokenizer.from_pretrained(FILES / name)
    ours = tokenizers.load_tokenizer(FILES / name)
    for text in [*sni_texts(20), "", "a <mask> b"]:
        assert ours.encode(text) == theirs(text, truncation=False).input_ids


def opt_folder(folder: pathlib.Path) -> pathlib.Path:
    """A vocabulary as small as OPT's form allows: its special tokens, bytes and one merge."""
    folder.mkdir()
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *"abcde", "Ġ", "ab"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    names = dict(bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>", add_bos_token=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **names}))
    return folder


def test_opt_puts_nothing_before_a_text_but_what_the_text_says(tmp_path: pathlib.Path) -> None:
    opt = tokenizers.load_tokenizer(opt_folder(tmp_path / "opt"))
    assert (opt.pad_token_id, opt.eos_token_id, opt.vocab_size) == (1, 2, 11)
    assert opt.encode("ab c") == [10, 9, 6]
    assert opt.encode("</s>ab") == [2, 10]
    opt.save(tmp_path / "again")
    assert tokenizers.load_tokenizer(tmp_path / "again").encode("ab c") == [10, 9, 6]


def test_a_token_that_hugging_face_puts_before_each_text_is_left_out(tmp_path: pathlib.Path) -> None:
    opt = tokenizers.load_tokenizer(opt_folder(tmp_path / "opt"))
    opt.save(tmp_path / "led")
    rules = json.loads((tmp_path / "led" / "tokenizer.json").read_text())
    template = [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}
    pair = [*template, {"Sequence": {"id": "B", "type_id": 1}}]
    rules["post_processor"] = dict(type="TemplateProcessing", single=template, pair=pair, special_tokens=tokens)
    (tmp_path / "led" / "tokenizer.json").write_text(json.dumps(rules))
    assert tokenizers.load_tokenizer(tmp_path / "led").encode("ab c") == [10, 9, 6]
