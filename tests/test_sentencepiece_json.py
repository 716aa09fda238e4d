import io
import random

import pytest
import sentencepiece

from jaxmtl.tokenizers import load_tokenizer
from jaxmtl.types import InputError

WORDS = "the quick brown fox jumps over lazy dogs and über cats while seven ﬁsh sing old songs 你好".split()


@pytest.fixture(params=["unigram", "bpe"])
def file(request, tmp_path):
    draw, buffer = random.Random(0), io.BytesIO()
    texts = (" ".join(draw.choices(WORDS, k=9)) for _ in range(300))
    options = dict(vocab_size=70, model_type=request.param, minloglevel=2, hard_vocab_limit=False, num_threads=1)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=buffer, **options)
    path = tmp_path / "sentencepiece.bpe.model"
    path.write_bytes(buffer.getvalue())
    return path


def test_ids_are_the_files_own_moved_by_one(file):
    model, tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(file)), load_tokenizer(file)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 3)
    assert tokenizer.vocab_size == model.get_piece_size() + 2  # <pad> and <mask>
    draw = random.Random(1)
    texts = [" ".join(draw.choices(WORDS, k=6)) for _ in range(30)]
    for text in [*texts, "", "  old  songs ", "x\tfox\nz", "ÜBER zebra ①"]:
        expected = [{0: 3}.get(index, index + 1) for index in model.encode(text)]
        assert tokenizer.encode(text) == [0, *expected, 2]
    assert tokenizer.decode(tokenizer.encode("seven old cats")) == "seven old cats"


def test_it_is_saved_as_a_file_that_gives_the_same_ids(file, tmp_path):
    tokenizer = load_tokenizer(file)
    tokenizer.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode("the lazy fox") == tokenizer.encode("the lazy fox")


def test_a_file_of_another_name_is_not_taken_for_it(file):
    other = file.rename(file.with_name("llama.model"))
    with pytest.raises(InputError, match="padding, EOS and unknown ids are -1, 2, 0"):
        load_tokenizer(other)
