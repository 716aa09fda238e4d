"""Task specs as SeqIO tasks, which any SeqIO or T5X program can use by name."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from jaxmtl.data import text_pipeline
from jaxmtl.data.vocabularies import adds_end, vocabulary
from jaxmtl.feed.parts import origin
from jaxmtl.feed.tokenise import Preprocessing, describe
from jaxmtl.tasks import metrics
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import Example, InputError, unknown_name

tf.config.set_visible_devices([], "GPU")  # the GPU's memory is for JAX
_PREFIX = re.compile(r"\w+")
_TEXT = tf.TensorSpec((), tf.string)
INSTRUCTIONS = "instructions"
"""Name of the feature that a hypernetwork reads."""
_SIGNATURE = {name: _TEXT for name in ("inputs", "targets", "id", "task")} | {
    "references": tf.TensorSpec((None,), tf.string)
}
PREPROCESSORS = [
    seqio.preprocessors.tokenize,
    seqio.CacheDatasetPlaceholder(),
    seqio.preprocessors.append_eos_after_trim,
]
"""What every task without an objective has, this very list: one row of each example."""


class SpecSource(seqio.DataSource):
    """The examples of a task spec as prompt and target texts; prompts are built while they are read.

    Args:
      task: the task.
      preprocessing: how examples become text, and how long they may get.
      tokenizer: the vocabulary, which prompts are measured with.
      objective: what is made of the target texts; None to train on them as they are.
    """

    def __init__(
        self,
        task: TaskSpec,
        preprocessing: Preprocessing,
        tokenizer: Tokenizer,
        objective: text_pipeline.Objective | None = None,
    ) -> None:
        self.task = task
        self.preprocessing = preprocessing
        self.tokenizer = tokenizer
        self.objective = objective
        super().__init__(splits=list(task.splits))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Whether the source can be cut into any number of shards: no, SeqIO then cuts the examples."""
        return False

    def describe(self) -> dict[str, Any]:
        """Describes all that decides what is made of the examples, as JSON values."""
        description = describe(self.preprocessing, self.tokenizer)
        if self.objective is None:
            return description
        return {**description, "objective": text_pipeline.describe(self.objective)}

    def num_input_examples(self, split: str) -> int:
        """Returns the number of examples of a split."""
        return len(_indices(self.task, split))

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
        indices = _indices(self.task, split)
        order = np.random.default_rng(seed).permutation(len(indices)) if shuffle else range(len(indices))
        return tf.data.Dataset.from_generator(
            lambda: self.texts(indices[place] for place in order), output_signature=signature(self.preprocessing)
        )

    def texts(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Builds the texts of examples, one after the other.

        Args:
          indices: of the task's examples.

        Yields:
          The fields of `signature`.
        """
        instruction = self.preprocessing.instruction
        for example in (self.task.examples[index] for index in indices):
            yield {
                "inputs": self.preprocessing.prompt(self.task, example, tokenizer=self.tokenizer),
                "targets": self.preprocessing.reference(self.task, example),
                "id": example.id,
                "task": self.task.name,
                "references": list(example.targets),
                **({} if instruction is None else {INSTRUCTIONS: self._instruction(example)}),
            }

    def _instruction(self, example: Example) -> str:
        prompt: Any = self.preprocessing.instruction
        return prompt(self.task, example, tokenizer=self.tokenizer)


def signature(preprocessing: Preprocessing) -> dict[str, Any]:
    """Returns what an example of a `SpecSource` is.

    Args:
      preprocessing: says whether examples have instructions.
    """
    return _SIGNATURE if preprocessing.instruction is None else {**_SIGNATURE, INSTRUCTIONS: _TEXT}


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
    tasks: Iterable[TaskSpec],
    preprocessing: Preprocessing,
    tokenizer: Tokenizer,
    *,
    prefix: str,
    objective: text_pipeline.Objective | None = None,
) -> list[str]:
    """Registers tasks with SeqIO; registering exactly the same again changes nothing.

    Args:
      tasks: the tasks.
      preprocessing: how examples become text, and how long they may get.
      tokenizer: the vocabulary.
      prefix: what their names start with, see `seqio_name`.
      objective: what is made of the target texts, such as `text_objectives.SpanCorruption()`; the inputs then do not
        count. None to train on inputs and targets as they are.

    Returns:
      The registered names, in the order of the tasks.

    Raises:
      InputError: if a name is registered already with anything else, or nothing of the objective fits the limits.
    """
    if objective is not None and preprocessing.instruction is not None:
        raise InputError(f"{type(objective).__name__} makes examples of plain text; set INSTRUCTION to None")
    features = _features(tokenizer, preprocessing, () if objective is None else objective.features)
    if objective is not None:
        objective.chunk_lengths(text_pipeline.room_of(lengths(preprocessing, features), features))
    names = []
    for task in tasks:
        name = seqio_name(prefix, task.name)
        names.append(name)
        source = SpecSource(task, preprocessing, tokenizer, objective)
        if name in seqio.TaskRegistry.names():
            _check_same(name, source)
            continue
        seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=PREPROCESSORS if objective is None else _with_objective(objective),
            output_features=features,
            postprocess_fn=postprocess if objective is None else None,
            metric_fns=[rouge_l, exact_match] if objective is None else [],
        )
    return names


def lengths(preprocessing: Preprocessing, features: Iterable[str] = ("inputs", "targets")) -> dict[str, int]:
    """Returns the limits that a store is made with, in SeqIO's form.

    Args:
      preprocessing: the limits.
      features: names of features; whatever is no target is limited like an input.

    Returns:
      Feature name to its most tokens, special ones counted.
    """
    limits = {"targets": preprocessing.max_target_tokens}
    if preprocessing.instruction is not None:
        limits[INSTRUCTIONS] = preprocessing.max_instruction_tokens
    return {name: limits.get(name, preprocessing.max_input_tokens) for name in features}


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
    """Measures the mean ROUGE-L of predictions against each one's references.

    Args:
      targets: the references of each prediction.
      predictions: texts, as many as `targets`.

    Returns:
      The metric's name to its value, 0 ... 1.
    """
    return {"rouge_l": _mean(metrics.rouge_l, targets, predictions)}


def exact_match(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Measures the share of predictions that match one of their references.

    Args:
      targets: the references of each prediction.
      predictions: texts, as many as `targets`.

    Returns:
      The metric's name to its value, 0 ... 1.
    """
    return {"exact_match": _mean(metrics.exact_match, targets, predictions)}


def _features(tokenizer: Tokenizer, preprocessing: Preprocessing, more: Iterable[str]) -> dict[str, Any]:
    ends = {"inputs": adds_end(tokenizer) and preprocessing.input_ends, "targets": True}
    if preprocessing.instruction is not None:
        ends[INSTRUCTIONS] = adds_end(tokenizer)
    ends |= {name: True for name in more if name not in ends}
    return {name: seqio.Feature(vocabulary(tokenizer), add_eos=end) for name, end in ends.items()}


def _with_objective(objective: text_pipeline.Objective) -> list[Any]:
    *before, last = PREPROCESSORS
    return [*before, functools.partial(text_pipeline.preprocess, objective=objective), last]


def _indices(task: TaskSpec, split: str) -> Sequence[int]:
    if split not in task.splits:
        raise unknown_name(f"split of task {task.name}", split, task.splits)
    return task.splits[split]


def _mean(metric: Any, targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    pairs = zip(predictions, targets, strict=True)
    return float(np.mean([metric(prediction, references) for prediction, references in pairs]))


def _check_same(name: str, source: SpecSource) -> None:
    there = source_of(name)
    same = (
        there.tokenizer.fingerprint == source.tokenizer.fingerprint
        and there.describe() == source.describe()
        and there.task.splits.keys() == source.task.splits.keys()
        and all(origin(there.task, split) == origin(source.task, split) for split in source.task.splits)
    )
    if not same:
        raise InputError(
            f"seqio task {name} is registered already with other examples, another prompt or another vocabulary; "
            "register under another prefix"
        )
