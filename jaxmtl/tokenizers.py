"""Text <-> ids, from a SentencePiece model (T5) or a `tokenizers` JSON file (BART, RoBERTa, GPT-2). No TensorFlow."""

import dataclasses
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from jaxmtl.files import write_whole
from jaxmtl.sentencepiece_json import SPACE, is_xlmr, splits_on_whitespace, xlmr_json
from jaxmtl.types import InputError

SENTENCEPIECE_FILE = "spiece.model"
JSON_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
NUM_EXTRA_IDS = 100
"""Sentinels that a SentencePiece model gets unless a file beside it says otherwise: T5's number."""
_BPE_FILES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
_KNOWN_SPECIALS = {
    "pad_token": ("<pad>", "[PAD]"),
    "eos_token": ("</s>", "<|endoftext|>", "[SEP]"),
    "unk_token": ("<unk>", "[UNK]"),
}


class _Coder(Protocol):
    """What the two kinds of files have in common."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]: ...

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A vocabulary with its rules; make one with `load_tokenizer`.

    Attributes:
      vocab_size: ids are 0 ... vocab_size - 1, added and sentinel ids counted (T5: 32100).
      pad_token_id: id that fills up batches; the end-of-text id where the vocabulary has no padding (GPT-2).
      eos_token_id: id that ends a text.
      unk_token_id: id of what the vocabulary cannot spell; None if it can spell everything.
      num_extra_ids: sentinels at the end of a SentencePiece vocabulary: `<extra_id_0>` is the last id. 0 for others.
      splits_on_whitespace: no token spans whitespace and words are encoded independently, so that a text that is
        cut at whitespace has as many ids as its parts together.
      fingerprint: SHA-256 (hex) of everything that decides which ids a text gets.
      source: the file that the tokenizer was read from.
      files: file name to content, what `save` writes; under standard names, whatever the source is called.
    """

    vocab_size: int
    pad_token_id: int
    eos_token_id: int
    unk_token_id: int | None
    num_extra_ids: int
    splits_on_whitespace: bool
    fingerprint: str
    source: Path
    files: Mapping[str, bytes] = dataclasses.field(repr=False)
    coder: _Coder = dataclasses.field(repr=False)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Turns a text into ids.

        Args:
          text: any text; names of special tokens in it (`<extra_id_0>`, `</s>`) become those tokens.
          add_special_tokens: whether the tokens that end or frame a text are added (T5: EOS; BART: `<s>`, `</s>`).

        Returns:
          The ids.

        Raises:
          InputError: if the text holds half a surrogate pair, which is no Unicode.
        """
        try:
            return self.coder.encode(text, add_special_tokens)
        except (RuntimeError, TypeError, UnicodeError) as error:  # each of the libraries has its own
            raise InputError(f"cannot tokenise {text!r:.80}: expected Unicode text ({_one_line(error)})") from error

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Turns many texts into ids, faster than one by one.

        Args:
          texts: the texts.
          add_special_tokens: as for `encode`.

        Returns:
          The ids of each text, the same as `encode` gives.

        Raises:
          InputError: as for `encode`.
        """
        try:
            return self.coder.encode_batch(list(texts), add_special_tokens)
        except (RuntimeError, TypeError, UnicodeError):
            return [self.encode(text, add_special_tokens) for text in texts]  # names the text that is wrong

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Turns ids back into a text.

        Args:
          ids: int ids; those outside the vocabulary (a model's padding rows) stand for nothing.
          skip_special_tokens: whether padding, EOS, unknown and sentinels are left out.

        Returns:
          The text.
        """
        known = [index for index in map(int, ids) if 0 <= index < self.vocab_size]
        return self.coder.decode(known, skip_special_tokens)

    def save(self, folder: str | Path) -> None:
        """Writes the files from which `load_tokenizer(folder)` makes the same tokenizer.

        Args:
          folder: made if it is not there.

        Raises:
          InputError: if the folder cannot be written.
        """
        _write(Path(folder), self.files)


def load_tokenizer(path: str | Path, *, extra_ids: int | None = None) -> Tokenizer:
    """Reads a tokenizer.

    Args:
      path: a SentencePiece file (`*.model`), a `tokenizer.json`, or a folder that holds `spiece.model`,
        `tokenizer.json`, or GPT-2's two files (vocabulary and merges), looked for in this order.
      extra_ids: sentinels of a SentencePiece vocabulary; None for what `tokenizer_config.json` beside it says,
        or `NUM_EXTRA_IDS`.

    Returns:
      The tokenizer.

    Raises:
      InputError: if there is no such file, or it is not what its name says.
    """
    path = Path(path)
    file = _find(path)
    if file.suffix == ".model":
        count = extra_ids if extra_ids is not None else _extra_ids_beside(file)
        return _from_sentencepiece(file, _read(file), count)
    return _from_json(file, _bpe_json(file) if file.name in _BPE_FILES else _read(file))


def train_sentencepiece(
    texts: Iterable[str], path: str | Path, vocab_size: int, extra_ids: int = NUM_EXTRA_IDS
) -> Tokenizer:
    """Learns a T5-like vocabulary (unigram; padding 0, EOS 1, unknown 2); the same texts give the same file.

    Args:
      texts: what to learn from.
      path: file to write, `*.model`; `tokenizer_config.json` is written beside it.
      vocab_size: number of ids in all, sentinels counted.
      extra_ids: how many of them are sentinels.

    Returns:
      The tokenizer.

    Raises:
      InputError: if the texts are too few for so large a vocabulary, or the file cannot be written.
    """
    buffer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=buffer,
            vocab_size=vocab_size - extra_ids,
            model_type="unigram",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            character_coverage=1.0,
            max_sentence_length=1 << 20,  # longer texts would be left out
            num_threads=1,  # more threads add floats in another order
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        most = re.search(r"<= (\d+)", str(error))
        hint = f"at most {int(most[1]) + extra_ids} ids can" if most else _one_line(error)
        raise InputError(
            f"a vocabulary of {vocab_size} ids ({extra_ids} sentinels) cannot be learnt from these texts: {hint}"
        ) from error
    tokenizer = _from_sentencepiece(Path(path), buffer.getvalue(), extra_ids)
    _write(Path(path).parent, {Path(path).name: buffer.getvalue(), CONFIG_FILE: tokenizer.files[CONFIG_FILE]})
    return tokenizer


class _SentencePiece:
    """T5's rules: special tokens cut the text, each piece between them is encoded as a text of its own."""

    def __init__(self, model: bytes, num_extra_ids: int) -> None:
        self.model = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.eos_id = self.model.eos_id()
        size = self.model.get_piece_size()
        control = (self.model.pad_id(), self.eos_id, self.model.unk_id())
        self.special = {self.model.id_to_piece(index): index for index in control if index >= 0}
        self.special |= {f"<extra_id_{k}>": size + num_extra_ids - 1 - k for k in range(num_extra_ids)}
        self.names = {index: name for name, index in self.special.items()}
        self.cut = re.compile("(" + "|".join(map(re.escape, sorted(self.special, key=len, reverse=True))) + ")")

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if self.cut.search(text) is None:
            ids = self.model.encode(text)
        else:
            ids = []
            for part in self.cut.split(text):
                ids.extend([self.special[part]] if part in self.special else self.model.encode(part))
        return [*ids, self.eos_id] if add_special_tokens else ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        return [self.encode(text, add_special_tokens) for text in texts]

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        if skip_special_tokens:
            return self.model.decode([index for index in ids if index not in self.names])
        parts: list[str] = []
        for special, run in itertools.groupby(ids, self.names.__contains__):
            pieces = list(run)
            if special:
                parts += [self.names[index] for index in pieces]
            else:
                # A run that starts a word lost its space in decoding; only the text's first space is not wanted.
                starts_word = self.model.id_to_piece(pieces[0]).startswith(SPACE)
                parts += [" " if parts and starts_word else "", self.model.decode(pieces)]
        return "".join(parts)


class _Json:
    """A `tokenizers` pipeline; its post-processor knows which tokens frame a text."""

    def __init__(self, pipeline: Any) -> None:
        pipeline.no_truncation()
        pipeline.no_padding()
        self.pipeline = pipeline

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self.pipeline.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        return [code.ids for code in self.pipeline.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self.pipeline.decode(ids, skip_special_tokens=skip_special_tokens)


def _from_sentencepiece(file: Path, content: bytes, num_extra_ids: int) -> Tokenizer:
    if num_extra_ids < 0:
        raise InputError(f"vocabulary file {file}: {num_extra_ids} sentinels; expected 0 or more")
    try:
        coder = _SentencePiece(content, num_extra_ids)
    except RuntimeError as error:
        raise InputError(f"vocabulary file {file} is no SentencePiece model ({_one_line(error)})") from error
    model = coder.model
    if is_xlmr(file.name, model):
        return _from_json(file, xlmr_json(content, model))
    pad, eos, unk = ids = (model.pad_id(), model.eos_id(), model.unk_id())
    if min(ids) < 0:
        raise InputError(
            f"vocabulary file {file}: padding, EOS and unknown ids are {pad}, {eos}, {unk}; expected T5's kind of "
            "model, which has all three; give a tokenizer.json instead"
        )
    specials = dict(zip(_KNOWN_SPECIALS, map(model.id_to_piece, ids), strict=True))
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": num_extra_ids, **specials}
    return Tokenizer(
        vocab_size=model.get_piece_size() + num_extra_ids,
        pad_token_id=pad,
        eos_token_id=eos,
        unk_token_id=unk,
        num_extra_ids=num_extra_ids,
        splits_on_whitespace=splits_on_whitespace(model),
        fingerprint=hashlib.sha256(content + f"\nextra_ids={num_extra_ids}".encode()).hexdigest(),
        source=file,
        files={SENTENCEPIECE_FILE: content, CONFIG_FILE: json.dumps(config, indent=2).encode()},
        coder=coder,
    )


def _from_json(file: Path, content: bytes) -> Tokenizer:
    try:
        pipeline: Any = tokenizers.Tokenizer.from_buffer(content)  # its type stubs are nearly empty
        rules = json.loads(content)
    except Exception as error:  # `tokenizers` raises no narrower class
        raise InputError(f"vocabulary file {file} is no `tokenizers` JSON ({_one_line(error)})") from error
    ids = pipeline.get_vocab(with_added_tokens=True)
    config = _config_beside(file)
    pad, eos, unk = (_special_id(name, config, ids) for name in _KNOWN_SPECIALS)
    if eos is None:
        raise InputError(f"vocabulary file {file} has no token that ends a text; name it in {CONFIG_FILE}, eos_token")
    if pipeline.encode("a").ids == [eos, *pipeline.encode("a", add_special_tokens=False).ids]:
        # Hugging Face's OPT: an end-of-text token before each text. Here prompts get none but what their text says.
        pipeline.post_processor = processors.ByteLevel(trim_offsets=False)
    parts = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")
    identity = json.dumps({part: rules.get(part) for part in parts}, sort_keys=True)
    return Tokenizer(
        vocab_size=max(ids.values()) + 1,
        pad_token_id=eos if pad is None else pad,
        eos_token_id=eos,
        unk_token_id=unk,
        num_extra_ids=0,
        splits_on_whitespace=False,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        source=file,
        files={JSON_FILE: content, CONFIG_FILE: json.dumps(config, indent=2).encode()},
        coder=_Json(pipeline),
    )


def _find(path: Path) -> Path:
    if path.is_file():
        if path.suffix in (".model", ".json"):
            return path
        raise InputError(f"vocabulary file {path}: expected a name ending in .model or .json, or a folder")
    if not path.is_dir():
        raise InputError(f"vocabulary {path} does not exist; give a SentencePiece file, a tokenizer.json or a folder")
    wanted = [path / SENTENCEPIECE_FILE, path / JSON_FILE, *(path / vocab for vocab in _BPE_FILES)]
    found = [file for file in wanted if file.is_file() and (file.name not in _BPE_FILES or _merges_of(file).is_file())]
    found += sorted(path.glob("*.model"))
    if not found:
        raise InputError(f"vocabulary folder {path} holds neither {SENTENCEPIECE_FILE} nor {JSON_FILE}")
    return found[0]


def _merges_of(vocab: Path) -> Path:
    return vocab.parent / _BPE_FILES[vocab.name]


def _bpe_json(vocab: Path) -> bytes:
    """Builds GPT-2's (or, if it has `<s>`, RoBERTa's or OPT's) pipeline from its vocabulary and merges files."""
    try:
        model = models.BPE.from_file(str(vocab), str(_merges_of(vocab)))
    except Exception as error:  # `tokenizers` raises no narrower class
        raise InputError(f"vocabulary {vocab} or {_merges_of(vocab)} cannot be read ({_one_line(error)})") from error
    pipeline: Any = tokenizers.Tokenizer(model)  # its type stubs are nearly empty
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    bos, eos, special = pipeline.token_to_id("<s>"), pipeline.token_to_id("</s>"), ["<|endoftext|>"]
    if bos is not None and eos is not None:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        if not str(_config_beside(vocab).get("tokenizer_class")).startswith("GPT2"):  # as OPT's is called
            pipeline.post_processor = processors.RobertaProcessing(("</s>", eos), ("<s>", bos), add_prefix_space=False)
    pipeline.add_special_tokens([token for token in special if pipeline.token_to_id(token) is not None])
    return pipeline.to_str().encode()


def _special_id(kind: str, config: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    named = config.get(kind)
    content = named.get("content", "") if isinstance(named, dict) else named or ""
    return next((ids[token] for token in (content, *_KNOWN_SPECIALS[kind]) if token in ids), None)


def _extra_ids_beside(file: Path) -> int:
    value = _config_beside(file).get("extra_ids", NUM_EXTRA_IDS)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"{file.parent / CONFIG_FILE}: extra_ids is {value!r}; expected a number, 0 or more")
    return value


def _config_beside(file: Path) -> dict[str, Any]:
    config = file.parent / CONFIG_FILE
    if not config.is_file():
        return {}
    try:
        value = json.loads(_read(config))
    except ValueError as error:
        raise InputError(f"{config} is no JSON ({_one_line(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{config}: expected a JSON object, found {type(value).__name__}")
    return value


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        write_whole(folder / name, content)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"vocabulary file {file} cannot be read ({error.strerror or error})") from error


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
