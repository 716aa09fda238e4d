"""XLM-R's SentencePiece file -> a `tokenizers` JSON file with the ids that its models were trained with.

Those ids are not the file's: `<s>`, `<pad>`, `</s>`, `<unk>` come first, then the file's pieces without its own three
special ones, and `<mask>` last. Source: methods 6.2 (XLM-R).
"""

from collections.abc import Iterator
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

FIRST = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"
SPACE = "\u2581"
"""How SentencePiece writes a space."""
_NUM_OWN = 3
"""The file's own special pieces: `<unk>`, `<s>`, `</s>`."""
_TRAINER, _NORMALIZER, _MODEL_TYPE, _CHARACTERS = 2, 3, 3, 2
"""Numbers of fields in SentencePiece's protocol buffer."""
_UNIGRAM = 1


def splits_on_whitespace(model: sentencepiece.SentencePieceProcessor) -> bool:
    """Tells whether no token spans whitespace and words are encoded independently of each other."""
    inside = any(SPACE in model.id_to_piece(index)[1:] for index in range(model.get_piece_size()))
    tidy = model.encode(" \n") == [] and model.encode(" a\n b ") == [*model.encode("a"), *model.encode("b")]
    return tidy and not inside


def is_xlmr(name: str, model: sentencepiece.SentencePieceProcessor) -> bool:
    """Tells whether a SentencePiece file is XLM-R's: by the name that it has everywhere, and by its special ids.

    Args:
      name: the file's name.
      model: the file.
    """
    own = (model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id()) == (0, 1, 2, -1)
    return own and name.removesuffix(".model").replace("_", ".").endswith("sentencepiece.bpe")


def xlmr_json(content: bytes, model: sentencepiece.SentencePieceProcessor) -> bytes:
    """Builds XLM-R's pipeline.

    Args:
      content: the SentencePiece file.
      model: the same, read.

    Returns:
      What `tokenizer.json` holds.
    """
    spec = dict(_fields(content))
    normalizer, trainer = dict(_fields(spec[_NORMALIZER])), dict(_fields(spec[_TRAINER]))
    kept = range(_NUM_OWN, model.get_piece_size())
    pieces = [(model.id_to_piece(index), model.get_score(index)) for index in kept]
    kind = _unigram if trainer.get(_MODEL_TYPE, _UNIGRAM) == _UNIGRAM else _bpe
    pipeline: Any = tokenizers.Tokenizer(kind(pieces))  # its type stubs are nearly empty
    steps = [normalizers.Precompiled(normalizer[_CHARACTERS])] if normalizer.get(_CHARACTERS) else []
    steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    pipeline.normalizer = normalizers.Sequence(steps)
    pipeline.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    pipeline.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    pipeline.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    pipeline.add_special_tokens([*FIRST, MASK])
    return pipeline.to_str().encode()


def _unigram(pieces: list[tuple[str, float]]) -> models.Model:
    rows = [*((piece, 0.0) for piece in FIRST), *pieces, (MASK, 0.0)]
    return models.Unigram(rows, unk_id=FIRST.index("<unk>"), byte_fallback=False)


def _bpe(pieces: list[tuple[str, float]]) -> models.Model:
    """Pieces of such a file have the scores 0, -1, -2 ... in the order in which they were merged."""
    names = [*FIRST, *(piece for piece, _ in pieces), MASK]
    vocabulary = {piece: index for index, piece in enumerate(names)}
    merges = []
    for piece, score in pieces:
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        pairs = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(-score, pair) for pair in pairs]
    merges.sort(key=lambda merge: merge[0])
    return models.BPE(vocab=vocabulary, merges=[pair for _, pair in merges], unk_token="<unk>", fuse_unk=True)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields number and value (bytes or int) of the fields of a protocol buffer; of repeated ones all."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
        else:
            length, place = _varint(message, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
            value, place = message[place : place + length], place + length
        yield number, value


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
        if byte < 128:
            return value, place
