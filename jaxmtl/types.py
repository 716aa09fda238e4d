"""The vocabulary that all parts share: examples, batches, scores, records and the errors a user can cause."""

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable, Mapping

import numpy as np

Batch = dict[str, np.ndarray]
"""One step's arrays by field name: `inputs` int32 [B, S], `targets` int32 [B, T], `loss_mask` float32 [B, T],
`task_ids` int32 [B], `example_ids` int32 [B] (-1 on rows that only fill the batch), and from a store with instructions
`instructions` int32 [B, I], or [U, I] and `instruction_index` int32 [B] where rows share them. Padding has the
vocabulary's own id. `loss_mask` weighs the targets: 1 for tokens; where targets are labels for heads (see
`jaxmtl.feed.answers`) the weights of a row add up to 1. In a packed batch, whose rows hold several examples, also
`input_segments` and `input_positions` int32 [B, S], `target_segments` and `target_positions` int32 [B, T] (see
`jaxmtl.models.masks`), and `task_ids` and `example_ids` are int32 [B, T]. Where packed rows have labels, `inputs` and
their segments are [R, S], `expected_tokens` [R], and all else is by example, as in plain rows of which each packed row
has B/R, one behind the other; `example_columns` int32 [B, L] are the columns of each example's tokens in its packed
row, -1 behind its end; a row that only fills up has none, and some valid task id on which no weight falls. Batches of
a training stream also have `expected_tokens` float32 [B], which add up to what the loss masks of the batches that were
drawn together add up to on average."""
Progress = Callable[[int, int, str], None]
"""Told from time to time (things done, things in all, what is being done) by what takes long."""


class InputError(ValueError):
    """Something a user gave is wrong; the message is one line: what, where, what was expected, what to do."""


class UsageError(InputError):
    """Flags of the command line that do not go together; the command ends with exit code 2."""


class UnknownNameError(InputError):
    """A name that is not in a list of known names."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Builds the error for a name nobody knows, with the three closest known ones.

    Args:
      kind: what the name stands for, in the singular ("task", "split").
      name: the name that was asked for.
      known: all valid names.

    Returns:
      The error, to be raised by the caller.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    hint = f"closest: {', '.join(close)}" if close else "there are none"
    return UnknownNameError(f"unknown {kind} {name!r}; {hint} ({len(names)} known)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One instance of a task, as text.

    Attributes:
      id: unique inside its task.
      inputs: the instance's input text.
      targets: all reference outputs, the first one first; never empty.
    """

    id: str
    inputs: str
    targets: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """A task's metrics over some of its examples.

    Attributes:
      task: task name.
      category: the task's category.
      n: number of examples scored.
      metrics: metric name to its mean over the examples.
      headline: name of the metric that stands for the task.
    """

    task: str
    category: str
    n: int
    metrics: Mapping[str, float]
    headline: str = "rouge_l"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One measured value of one run: the only thing that tables and figures read.

    Attributes:
      study: study the run belongs to, or "" for none.
      run: name of the run.
      seed: the run's seed.
      step: optimiser step the weights were taken at.
      task: task name.
      category: the task's category.
      split: split of the task's examples that was scored.
      headline: name of the metric that stands for the task.
      metric: metric name.
      value: the metric's value.
      n: number of examples behind the value.
      config_hash: hash of the operative config.
      weights_hash: hash of the weights that were scored; where tasks have adapters of their own the model's, "+" and
        the adapter's.
      git_hash: commit of the code, or "" outside a checkout.
      time: seconds since the epoch when it was written.
      decoding: method and options with which texts were generated, "" where none were or nobody wrote it down.
    """

    study: str
    run: str
    seed: int
    step: int
    task: str
    category: str
    split: str
    headline: str
    metric: str
    value: float
    n: int
    config_hash: str
    weights_hash: str
    git_hash: str
    time: float
    decoding: str = ""

    def to_json(self) -> str:
        """Returns the record as one JSON line without the line break."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Record":
        """Reads what `to_json` wrote.

        Args:
          line: one JSON object.

        Returns:
          The record.

        Raises:
          InputError: if the line is no JSON object with exactly the record's fields.
        """
        try:
            return cls(**json.loads(line))
        except (json.JSONDecodeError, TypeError) as error:
            raise InputError(f"not a record: {line[:80]!r} ({error}); expected one JSON object a line") from error
