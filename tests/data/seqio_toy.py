"""Tasks that SeqIO caches itself, without any of ours; `seqio_cache_tasks --module_import=seqio_toy` imports this."""

import os

import seqio
import tensorflow as tf

TEXTS = [("the quick fox", "old dogs"), ("é ☃ fox", "fox"), (" ".join(["quick"] * 30), "dogs " * 20), ("fox", "the")]
VOCABULARY = seqio.SentencePieceVocabulary(os.environ["TOY_VOCABULARY"], 10)


def read(split, shuffle_files, seed=None):
    rows = TEXTS if split == "train" else TEXTS[:1]
    columns = dict(zip(("inputs", "targets"), map(list, zip(*rows, strict=True)), strict=True))
    return tf.data.Dataset.from_tensor_slices(columns)


for name, ending in (("plain", []), ("made:ended", [seqio.preprocessors.append_eos])):
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(read, splits=["train", "test"]),
        preprocessors=[seqio.preprocessors.tokenize, *ending, seqio.CacheDatasetPlaceholder()],
        output_features={key: seqio.Feature(VOCABULARY) for key in ("inputs", "targets")},
    )
