"""Task specs as SeqIO tasks, which any SeqIO or T5X program can use by name."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from jaxmtl.data.vocabularies import adds_end, vocabulary
from jaxmtl.feed.tokenise import Preprocessing, describe, origin
from jaxmtl.tasks import metrics
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import InputError, unknown_name

tf.config.set_visible_devices([], "GPU")  # the GPU's memory is for JAX
_PREFIX = re.compile(r"\w+")
_TEXT = tf.TensorSpec((), tf.string)
_SIGNATURE = {name: _TEXT for name in ("inputs", "targets", "id", "task")} | {
    "references": tf.TensorSpec((None,), tf.string)
}


class SpecSource(seqio.DataSource):
    """The examples of a task spec as prompt and target texts; prompts are built while they are read.

    Args:
      task: the task.
      preprocessing: how examples become text, and how long they may get.
      tokenizer: the vocabulary, which prompts are measured with.
    """

    def __init__(self, task: TaskSpec, preprocessing: Preprocessing, tokenizer: Tokenizer) -> None:
        self.task = task
        self.preprocessing = preprocessing
        self.tokenizer = tokenizer
        super().__init__(splits=list(task.splits))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Whether the source can be cut into any number of shards: no, SeqIO then cuts the examples."""
        return False

    def num_input_examples(self, split: str) -> int:
        """Returns the number of examples of a split."""
        return len(self.task.split(split))

    def list_shards(self, split: str) -> Sequence[str]:
        """Returns the only shard of a split."""
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """Returns the examples of one split.

        Args:
          split: name of the split.
          shuffle: whether the examples are shuffled; SeqIO shuffles them again afterwards in a buffer.
          seed: seed of the shuffling.
          shard_info: must be None or the only shard.
          **unused: further settings of SeqIO, which change nothing here.

        Returns:
          `inputs`, `targets`, `id`, `task` (texts) and `references` (texts, [R]).

        Raises:
          InputError: if there is no such split, or only a part of it is asked for.
        """
        if shard_info is not None and shard_info.num_shards > 1:
            raise InputError(f"seqio task of {self.task.name} has one shard, asked for {shard_info.num_shards}")
        examples = self.task.split(split)
        order = np.random.default_rng(seed).permutation(len(examples)) if shuffle else range(len(examples))

        def rows() -> Iterator[dict[str, Any]]:
            for example in (examples[index] for index in order):
                yield {
                    "inputs": self.preprocessing.prompt(self.task, example, tokenizer=self.tokenizer),
                    "targets": self.preprocessing.reference(self.task, example),
                    "id": example.id,
                    "task": self.task.name,
                    "references": list(example.targets),
                }

        return tf.data.Dataset.from_generator(rows, output_signature=_SIGNATURE)


def seqio_name(prefix: str, task_name: str) -> str:
    """Returns the name that a task is registered under: SeqIO allows no "-", so "#" takes its place.

    Args:
      prefix: letters, digits and "_": keeps registrations with different prompts apart.
      task_name: name of the task.

    Returns:
      `prefix:task_name`.

    Raises:
      InputError: if the prefix has other characters.
    """
    if _PREFIX.fullmatch(prefix) is None:
        raise InputError(f"prefix of seqio tasks is {prefix!r}; expected letters, digits and '_'")
    return f"{prefix}:{task_name.replace('-', '#')}"


def register(
    tasks: Iterable[TaskSpec], preprocessing: Preprocessing, tokenizer: Tokenizer, *, prefix: str
) -> list[str]:
    """Registers tasks with SeqIO; registering exactly the same again changes nothing.

    Args:
      tasks: the tasks.
      preprocessing: how examples become text, and how long they may get.
      tokenizer: the vocabulary.
      prefix: what their names start with, see `seqio_name`.

    Returns:
      The registered names, in the order of the tasks.

    Raises:
      InputError: if a name is registered already with anything else.
    """
    features = {
        "inputs": seqio.Feature(vocabulary(tokenizer), add_eos=adds_end(tokenizer)),
        "targets": seqio.Feature(vocabulary(tokenizer), add_eos=True),
    }
    names = []
    for task in tasks:
        name = seqio_name(prefix, task.name)
        names.append(name)
        source = SpecSource(task, preprocessing, tokenizer)
        if name in seqio.TaskRegistry.names():
            _check_same(name, source)
            continue
        seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=[
                seqio.preprocessors.tokenize,
                seqio.CacheDatasetPlaceholder(),
                seqio.preprocessors.append_eos_after_trim,
            ],
            output_features=features,
            postprocess_fn=postprocess,
            metric_fns=[rouge_l, exact_match],
        )
    return names


def source_of(name: str) -> SpecSource:
    """Looks up the task spec behind a registered task.

    Args:
      name: a name that `register` returned.

    Returns:
      Its source.

    Raises:
      UnknownNameError: if nothing is registered under the name.
      InputError: if it is a SeqIO task that was not made from a task spec.
    """
    if name not in seqio.TaskRegistry.names():
        raise unknown_name("seqio task", name, seqio.TaskRegistry.names())
    source = seqio.TaskRegistry.get(name).source
    if not isinstance(source, SpecSource):
        raise InputError(f"seqio task {name} was not made from a task spec; register it with seqio_tasks.register")
    return source


def postprocess(output: str, *, example: Mapping[str, Any] | None = None, is_target: bool = False, **_: Any) -> Any:
    """Turns SeqIO's decoded text into what the metrics take: the references for the target, else the text.

    Args:
      output: decoded text.
      example: the example's features.
      is_target: whether `output` is the target.

    Returns:
      A list of reference texts, or the text.
    """
    if not is_target or example is None:
        return output
    return [bytes(text).decode("utf-8") for text in np.asarray(example["references"]).tolist()]


def rouge_l(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Returns the mean ROUGE-L, 0 ... 1, of predictions against each one's references."""
    return {"rouge_l": _mean(metrics.rouge_l, targets, predictions)}


def exact_match(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Returns the share of predictions, 0 ... 1, that match one of their references."""
    return {"exact_match": _mean(metrics.exact_match, targets, predictions)}


def _mean(metric: Any, targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    pairs = zip(predictions, targets, strict=True)
    return float(np.mean([metric(prediction, references) for prediction, references in pairs]))


def _check_same(name: str, source: SpecSource) -> None:
    there = source_of(name)
    same = (
        there.tokenizer.fingerprint == source.tokenizer.fingerprint
        and describe(there.preprocessing, there.tokenizer) == describe(source.preprocessing, source.tokenizer)
        and there.task.splits.keys() == source.task.splits.keys()
        and all(origin(there.task, split) == origin(source.task, split) for split in source.task.splits)
    )
    if not same:
        raise InputError(
            f"seqio task {name} is registered already with other examples, another prompt or another vocabulary; "
            "register under another prefix"
        )
