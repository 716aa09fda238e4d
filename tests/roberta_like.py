"""A tiny vocabulary that frames texts as RoBERTa's does: bytes, a few merges, `<s> a </s></s> b </s>`."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from jaxmtl.tokenizers import load_tokenizer

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
MERGES = [("i", "n"), ("\u0120", "t"), ("\u0120t", "h"), ("\u0120th", "e")]


def roberta_like(folder):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*SPECIALS, *alphabet, *("".join(pair) for pair in MERGES)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    pipeline = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    pipeline.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    pipeline.add_special_tokens(SPECIALS)
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)
