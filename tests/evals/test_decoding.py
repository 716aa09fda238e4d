"""The options of decoding: what is refused, what reaches the loop, and what a Hugging Face folder asks for."""

import dataclasses
import fnmatch
import json
import shutil
import types

import pytest

from jaxmtl.evals.decoding import Decoding
from jaxmtl.evals.generation_config import read_decoding
from jaxmtl.models.beam_search import BeamSearch
from jaxmtl.models.decoding import Generation
from jaxmtl.models.logit_rules import ForcedToken, MinTokens, NoRepeatNgram, RepetitionPenalty
from jaxmtl.models.sampling import Greedy, Sampling
from jaxmtl.types import InputError, UnknownNameError

ENCODER_DECODER = types.SimpleNamespace(pad_id=1, eos_id=2, decoder_start_id=2)
DECODER_ONLY = types.SimpleNamespace(pad_id=7, eos_id=7)
BART = dict(
    _from_model_config=True,
    transformers_version="4.27.0.dev0",
    bos_token_id=0,
    pad_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=2,
    num_beams=4,
    no_repeat_ngram_size=3,
    early_stopping=True,
    forced_bos_token_id=0,
    forced_eos_token_id=2,
    max_length=142,
    min_length=56,
    length_penalty=2.0,
)


def test_nothing_is_forced_or_penalised_by_default():
    assert Decoding().generation(9) == Generation(max_tokens=9, method=Greedy(), rules=())


def test_options_become_a_method_and_rules_in_their_order():
    how = Decoding(
        method="beam",
        num_beams=4,
        length_penalty=2.0,
        early_stopping="never",
        forced_first_id=5,
        forced_last_id=2,
        min_tokens=3,
        no_repeat_ngram=2,
        repetition_penalty=1.5,
    )
    rules = (RepetitionPenalty(1.5), NoRepeatNgram(2), MinTokens(3), ForcedToken(5, 0), ForcedToken(2, 8))
    method = BeamSearch(num_beams=4, length_penalty=2.0, early_stopping="never")
    assert how.generation(9) == Generation(max_tokens=9, method=method, rules=rules)
    sample = Decoding(method="sample", seed=3, top_k=5, top_p=0.5, temperature=2.0)
    assert sample.generation(9).method == Sampling(seed=3, top_k=5, top_p=0.5, temperature=2.0)


def test_the_record_s_words_name_the_method_s_options_and_whatever_is_changed():
    assert Decoding().describe() == "greedy"
    assert Decoding(method="sample", top_p=0.9).describe() == "sample temperature=1.0 top_k=0 top_p=0.9 seed=0"
    beam = Decoding(method="beam", num_beams=2, min_tokens=3)
    assert beam.describe() == "beam num_beams=2 length_penalty=1.0 early_stopping=False min_tokens=3"


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_beams=4), "num_beams is 4, which method 'greedy' does not know; choose method 'beam'"),
        (dict(method="beam"), "num_beams is 1; expected an integer, at least 2"),
        (dict(method="sample", temperature=0.0), "temperature is 0.0; expected a number above 0"),
        (dict(method="sample", top_p=1.5), "top_p is 1.5; expected above 0 and at most 1"),
        (dict(method="sample", top_k=1.5), "top_k is 1.5; expected an integer"),
        (dict(method="beam", num_beams=2, early_stopping="always"), "early_stopping is 'always'; expected True"),
        (dict(forced_first_id=-1), "forced_first_id is -1; expected a token id, or None"),
        (dict(repetition_penalty=True), "repetition_penalty is True; expected a finite number"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Decoding(**options)


def test_wrong_lengths_and_methods_are_named():
    with pytest.raises(UnknownNameError, match="unknown decoding method 'beams'; closest: beam"):
        Decoding(method="beams")
    with pytest.raises(InputError, match="min_tokens is 9; expected at most max_tokens, 8"):
        Decoding(min_tokens=9).generation(8)


def write(folder, content, name="generation_config.json"):
    (folder / name).write_text(json.dumps(content))
    return folder


def test_a_generation_config_becomes_options(tmp_path):
    found = read_decoding(write(tmp_path, BART), ENCODER_DECODER)
    expected = dict(num_beams=4, length_penalty=2.0, early_stopping=True, no_repeat_ngram=3)
    # The lengths of transformers count the decoder's start token.
    assert found.decoding == Decoding(method="beam", **expected, forced_first_id=0, forced_last_id=2, min_tokens=55)
    assert found.max_tokens == 141


def test_without_a_generation_config_the_model_s_config_tells(tmp_path):
    content = dict(model_type="bart", d_model=16, num_beams=4, task_specific_params={}, typical_p=1.0)
    found = read_decoding(write(tmp_path, content, "config.json"), ENCODER_DECODER)
    assert (found.decoding, found.max_tokens) == (Decoding(method="beam", num_beams=4), None)


def test_a_hub_id_is_read_as_its_model_is(tmp_path, monkeypatch):
    def download(name, allow_patterns):
        """Gives what a hub with these files would: only those that are asked for."""
        assert name == "someone/model"
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        (tmp_path / "cache").mkdir()
        for file in (tmp_path / "hub").iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, tmp_path / "cache")
        return str(tmp_path / "cache")

    (tmp_path / "hub").mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    write(tmp_path / "hub", dict(model_type="bart", num_beams=2), "config.json")
    assert read_decoding("someone/model", ENCODER_DECODER).decoding == Decoding(method="beam", num_beams=2)
    write(tmp_path / "hub", BART)
    found = read_decoding("someone/model", ENCODER_DECODER)
    assert found == dataclasses.replace(read_decoding(tmp_path / "hub", ENCODER_DECODER), file=found.file)
    assert found.file == tmp_path / "cache" / "generation_config.json" and found.decoding.num_beams == 4


def test_sampling_takes_the_default_of_transformers_for_top_k(tmp_path):
    found = read_decoding(write(tmp_path, dict(do_sample=True, top_p=0.9, max_length=50)), DECODER_ONLY)
    assert (found.decoding, found.max_tokens) == (Decoding(method="sample", top_k=50, top_p=0.9), None)


@pytest.mark.parametrize(
    "content, message",
    [
        (dict(typical_p=0.9), "typical_p is 0.9, which is not supported"),
        (dict(bad_words_ids=[[5]]), r"bad_words_ids is \[\[5\]\], which is not supported"),
        (dict(num_bemas=4), "field 'num_bemas' is not known"),
        (dict(eos_token_id=[2, 5]), r"eos_token_id is \[2, 5\], but the model's config has 2"),
        (dict(do_sample=True, num_beams=2), "do_sample with num_beams 2"),
        (dict(num_beams="4x"), "num_beams"),
        (dict(forced_bos_token_id=[4, 5]), r"any of \[4, 5\]"),
    ],
    ids=str,
)
def test_what_cannot_be_expressed_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(InputError, match=f"generation_config.json: .*{message}"):
        read_decoding(write(tmp_path, content), ENCODER_DECODER)
