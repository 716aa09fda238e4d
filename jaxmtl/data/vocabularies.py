"""Tokenizers as SeqIO vocabularies that give the same ids, inside TensorFlow graphs too."""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import seqio
import tensorflow as tf

from jaxmtl.tokenizers import Tokenizer, load_tokenizer


def vocabulary(tokenizer: Tokenizer) -> seqio.Vocabulary:
    """Wraps a tokenizer.

    Args:
      tokenizer: one that was loaded from a file.

    Returns:
      A `SpecialSentencePieceVocabulary` for a SentencePiece model, a `JsonVocabulary` for the others.
    """
    if tokenizer.source.suffix == ".model":
        return SpecialSentencePieceVocabulary(str(tokenizer.source), extra_ids=tokenizer.num_extra_ids)
    return JsonVocabulary(tokenizer)


def adds_end(tokenizer: Tokenizer) -> bool:
    """Tells whether a tokenizer ends every text (T5 and BART do, GPT-2 does not).

    Args:
      tokenizer: the tokenizer.

    Returns:
      Whether the last id of any encoded text is the end-of-text id.
    """
    return tokenizer.encode("")[-1:] == [tokenizer.eos_token_id]


class SpecialSentencePieceVocabulary(seqio.SentencePieceVocabulary):
    """T5's vocabulary; names of special tokens in a text become those tokens wherever they stand, as in our tokenizer.

    SeqIO's own knows sentinels only at the start of a word, and `</s>` and `<pad>` not at all. Other texts take its
    fast way through the graph.
    """

    def _encode(self, s: str) -> Sequence[int]:
        return _same_tokenizer(self.sentencepiece_model_file, self.extra_ids).encode(s, add_special_tokens=False)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        special = tf.strings.regex_full_match(s, self._special_names())
        ids = tf.cond(
            special,
            lambda: _python_encode(self._encode, s),
            lambda: super(SpecialSentencePieceVocabulary, self)._encode_tf(s),
        )
        return tf.ensure_shape(ids, [None])

    def _special_names(self) -> str:
        model: Any = self.tokenizer
        pieces = [model.id_to_piece(index) for index in (model.pad_id(), model.eos_id(), model.unk_id())]
        return rf"(?s).*({'|'.join(map(re.escape, [*pieces, '<extra_id_']))}).*"


class JsonVocabulary(seqio.Vocabulary):
    """A `tokenizers` pipeline (BART, RoBERTa, GPT-2) as a vocabulary.

    `encode` gives what the pipeline gives without the end-of-text id, which SeqIO appends itself; what the pipeline
    puts before a text (`<s>`) stays.

    Args:
      tokenizer: a tokenizer that was read from a JSON file.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(extra_ids=0)
        self._tokenizer = tokenizer

    @property
    def bos_id(self) -> int | None:
        """The id that starts every text; None if there is none."""
        start = self._encode("")
        return start[0] if start else None

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""
        return self._tokenizer.eos_token_id

    @property
    def unk_id(self) -> int | None:
        """The id of what the vocabulary cannot spell; None if it can spell everything."""
        return self._tokenizer.unk_token_id

    @property
    def pad_id(self) -> int:
        """The id that fills up batches."""
        return self._tokenizer.pad_token_id

    @property
    def _base_vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def _encode(self, s: str) -> list[int]:
        ids = self._tokenizer.encode(s)
        return ids[:-1] if ids[-1:] == [self.eos_id] and adds_end(self._tokenizer) else ids

    def _decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(_python_encode(self._encode, s), [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(values: Any) -> Any:
            rows = values if values.ndim > 1 else [values]
            texts = [self._decode(row) for row in rows]
            return texts if values.ndim > 1 else texts[0]

        return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string), ids.shape[:-1])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JsonVocabulary) and other._tokenizer.fingerprint == self._tokenizer.fingerprint

    def __hash__(self) -> int:
        return hash(self._tokenizer.fingerprint)


@functools.lru_cache(maxsize=16)
def _same_tokenizer(file: str, extra_ids: int) -> Tokenizer:
    return load_tokenizer(file, extra_ids=extra_ids)


def _python_encode(encode: Any, text: tf.Tensor) -> tf.Tensor:
    def run(value: Any) -> tf.Tensor:
        return tf.constant(encode(value.numpy().decode("utf-8")), tf.int32)

    return tf.py_function(run, [text], tf.int32)
