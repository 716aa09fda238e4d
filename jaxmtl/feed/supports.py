"""Batches of one task each, for meta-training on demonstrations: K supports and M queries that all see them.

Which task and which of its examples a step gets depends on the seed and the number of the step alone, so a position is
all that has to be kept. Letters in shapes: K supports, M queries, S tokens of either, T target length.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from jaxmtl.feed.grouping import padded_instructions
from jaxmtl.feed.layout import Cost, num_tokens
from jaxmtl.feed.permutation import permute, random_bits, stream_key
from jaxmtl.feed.rows import TaskRows
from jaxmtl.feed.sampler import Draw, Rates, Sampler
from jaxmtl.feed.shapes import NUM_SHAPES, cheapest_shapes
from jaxmtl.feed.special_tokens import around_texts, without_special
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.stream import check_hosts
from jaxmtl.feed.tokenise import cut
from jaxmtl.tasks import rates as rate_functions
from jaxmtl.types import Batch, InputError


class Form(Protocol):
    """How supports and queries are written; `jaxmtl.evals.icl_format.Format` is one."""

    @property
    def input_prefix(self) -> str:
        """Returns the text before a support's input."""
        ...

    @property
    def output_prefix(self) -> str:
        """Returns the text before a support's output."""
        ...

    @property
    def query_token(self) -> str:
        """Returns the special token before a query's input; "" for none."""
        ...

    @property
    def query_special_tokens(self) -> bool:
        """Returns whether a query has the special tokens that the tokenizer gives an input."""
        ...

    @property
    def max_input_tokens(self) -> int:
        """Returns the most tokens of a support's input or of a query, with what stands before it."""
        ...

    @property
    def max_output_tokens(self) -> int:
        """Returns the most tokens of a support's output, with what stands before it."""
        ...


class Writing:
    """Puts supports and queries together from a store's token ids, as evaluation does from texts.

    Args:
      store: gives the tokenizer.
      form: how they are written.

    Raises:
      InputError: if prefixes leave no room, or the token before a query is none of the vocabulary's.
    """

    def __init__(self, store: TokenStore, form: Form) -> None:
        tokenizer = store.tokenizer()
        plain = lambda text: tokenizer.encode(text, add_special_tokens=False) if text else []
        self.form, self.end, self.around = form, tokenizer.eos_token_id, around_texts(tokenizer)
        lacks_end = not store.manifest.preprocessing.get("input_ends", True)
        self.added = len(self.around[1]) if form.query_special_tokens and lacks_end else 0
        self.before, self.between, self.query = map(plain, (form.input_prefix, form.output_prefix, form.query_token))
        if form.query_token and (len(self.query) != 1 or self.query[0] == tokenizer.unk_token_id):
            raise InputError(f"queries are to begin with {form.query_token!r}, which is no token of {store.folder}")
        self.room = form.max_input_tokens - len(self.before), form.max_output_tokens - len(self.between)
        if min(self.room) < 1:
            raise InputError(
                f"prefixes of {len(self.before)} and {len(self.between)} tokens leave no room in "
                f"{form.max_input_tokens} input and {form.max_output_tokens} output tokens; allow more"
            )

    def support(self, inputs: np.ndarray, targets: np.ndarray) -> list[int]:
        """Returns the ids of a support: prefix, input, prefix, output with an end token; no other special tokens."""
        source, output = self._text(inputs)[: self.room[0]], [*self._text(targets), self.end]
        return [*self.before, *source, *self.between, *cut(output, self.room[1], self.end)]

    def asked(self, inputs: np.ndarray) -> list[int]:
        """Returns the ids of a query."""
        start, end = self.around if self.form.query_special_tokens else ([], [])
        return cut([*self.query, *start, *self._text(inputs), *end], self.form.max_input_tokens, self.end)

    def most(self, longest_input: int, longest_target: int) -> int:
        """Returns the most tokens of a support or a query, given the most of an example's input and target."""
        source = len(self.before) + min(longest_input, self.room[0])
        output = len(self.between) + min(longest_target, self.room[1])
        asked = len(self.query) + longest_input + self.added
        return max(source + output, min(asked, self.form.max_input_tokens))

    def _text(self, inputs: np.ndarray) -> list[int]:
        return without_special(inputs, self.around[0], self.end)


Asked = Callable[[TaskRows, Writing, Draw, Sequence[np.ndarray], int], Batch]
"""Gives the fields of M queries: (rows, writing, where they are from, their inputs, S) to arrays [M, S]."""


def written_queries(rows: TaskRows, writing: Writing, draw: Draw, plain: Sequence[np.ndarray], length: int) -> Batch:
    """Lets the model read queries as they are written.

    Args:
      rows: of the store.
      writing: how they are written.
      draw: M queries; not used.
      plain: [M], their inputs as stored.
      length: S.

    Returns:
      `inputs`.
    """
    return {"inputs": _padded([writing.asked(ids) for ids in plain], length, rows.pad_id, np.int32)}


def instructed_queries(rows: TaskRows, writing: Writing, draw: Draw, plain: Sequence[np.ndarray], length: int) -> Batch:
    """Lets a teacher read queries as they are written, and a hypernetwork's model their inputs and instructions.

    Args:
      rows: of a store with instructions.
      writing: how they are written.
      draw: M queries.
      plain: [M], their inputs as stored; cut to the most tokens of a query.
      length: S.

    Returns:
      `inputs`, `teacher_inputs`, and `instructions` int32 [M, I].
    """
    most = writing.form.max_input_tokens
    inputs = [cut(ids.tolist(), most, writing.end) for ids in plain]
    return {
        "inputs": _padded(inputs, length, rows.pad_id, np.int32),
        "teacher_inputs": written_queries(rows, writing, draw, plain, length)["inputs"],
        "instructions": padded_instructions(rows, draw),
    }


class SupportStream:
    """Endless batches of one task each; `state` and `restore` continue it exactly, on any number of hosts.

    Args:
      rows: where examples come from.
      writing: how they are written.
      sampler: draws the task of each step.
      num_supports: K, over all hosts.
      num_queries: M, over all hosts.
      num_shapes: most shapes, each of which is compiled once; a task's batches all have one.
      cost: of a row padded to a shape; shapes are chosen by it.
      asked: gives the fields of the queries' inputs.
      seed: data seed.
      host_index: which host this is.
      num_hosts: how many hosts share each batch; each gets a slice of the supports and one of the queries.

    Attributes:
      stream_names: empty, since all tasks are of one stream.

    Raises:
      InputError: if a task has too few examples, or hosts do not divide supports or queries.
    """

    stream_names: Sequence[str] = ()

    def __init__(
        self,
        rows: TaskRows,
        writing: Writing,
        sampler: Sampler,
        *,
        num_supports: int,
        num_queries: int,
        num_shapes: int = NUM_SHAPES,
        cost: Cost = num_tokens,
        asked: Asked = written_queries,
        seed: int = 0,
        host_index: int = 0,
        num_hosts: int = 1,
    ) -> None:
        check_hosts((num_supports, num_queries), host_index, num_hosts)
        self._counts = num_supports, num_queries
        for name, size in zip(rows.names, rows.sizes.tolist(), strict=True):
            if size < sum(self._counts):
                raise InputError(
                    f"task {name} has {size} examples; {num_supports} supports and {num_queries} queries of a step "
                    f"need {sum(self._counts)} different ones: ask for fewer, or leave the task out"
                )
        self.rows, self._writing, self._sampler, self._asked = rows, writing, sampler, asked
        self._key, self._host, self._num_hosts = stream_key(seed, "supports"), host_index, num_hosts
        longest = [(entry.max_input_tokens, entry.max_target_tokens) for entry in rows.entries]
        self._lengths = [(writing.most(*pair), pair[1]) for pair in longest]
        sources, targets = (np.array(column) for column in zip(*self._lengths, strict=True))
        self._shapes = cheapest_shapes(sources, targets, num_shapes=num_shapes, cost=cost)
        special = writing.form.query_special_tokens
        self._identity: dict[str, Any] = {
            **rows.identity(),
            "supports": num_supports,
            "queries": num_queries,
            "written": [writing.before, writing.between, writing.query, list(writing.room), special],
            "seed": seed,
        }
        self._step = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        task = int(self._sampler.draw().task_ids[0])
        examples = self._examples(task)
        self._step += 1
        length, target_length = self._shapes.fit(*self._lengths[task])
        draw = Draw(np.full(len(examples), task, np.int32), examples)
        read = [(inputs, targets) for _, _, inputs, targets in self.rows.read(draw)]
        count = self._counts[0]
        supports = [self._writing.support(*pair) for pair in read[:count]][self._share(count)]
        mine = self._share(self._counts[1])
        queries = Draw(draw.task_ids[count:][mine], examples[count:][mine])
        plain = [inputs for inputs, _ in read[count:]][mine]
        targets = [targets.tolist() for _, targets in read[count:]][mine]
        ones = [np.ones(len(ids)) for ids in targets]
        return {
            **self._asked(self.rows, self._writing, queries, plain, length),
            "support_inputs": _padded(supports, length, self.rows.pad_id, np.int32),
            "targets": _padded(targets, target_length, self.rows.pad_id, np.int32),
            "loss_mask": _padded(ones, target_length, 0.0, np.float32),
            "task_ids": np.full(len(plain), task, np.int32),
            "example_ids": queries.example_ids.astype(np.int32),
        }

    def state(self) -> dict[str, Any]:
        """Returns where the stream stands: JSON values."""
        return {**self._identity, "step": self._step, "sampler": self._sampler.state()}

    def restore(self, state: Mapping[str, Any], observed: Mapping[str, Any] | None = None) -> None:
        """Goes back to where a state was taken; the next batch is the one that came after it.

        Args:
          state: what `state` returned, in this or another process.
          observed: not used.

        Raises:
          InputError: if it was taken from another stream or is damaged; names what differs.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise InputError(
                    f"stream state was taken with other {name} ({state.get(name)!r}) than token store "
                    f"{self.rows.folder} and this run give ({value!r}); resume with the store and settings of then"
                )
        step, start = state.get("step"), state.get("sampler")
        if type(step) is not int or step < 0 or not isinstance(start, Mapping):
            raise InputError(f"stream state is damaged: step {step!r:.40}, sampler {start!r:.40}")
        self._sampler.restore(start)
        self._step = step

    def observe(self, task_loss: np.ndarray, task_tokens: np.ndarray) -> None:
        """Hears of a batch that was trained on; nothing depends on it."""

    def observed(self) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns float64 [N] each: steps drawn per task, and how many its share asked for."""
        return self._sampler.counts()

    def parts(self, num_steps: int) -> dict[str, tuple[Self, int]]:
        """Returns this stream and how many batches are from it.

        Args:
          num_steps: batches in all.
        """
        return {"tasks": (self, num_steps)}

    def close(self) -> None:
        """Does nothing: no batch waits for losses."""

    def _examples(self, task: int) -> np.ndarray:
        """Draws K + M different examples of a task, int64."""
        count = sum(self._counts)
        key = random_bits(self._key, np.full(count, self._step))
        return permute(np.arange(count), np.full(count, self.rows.sizes[task]), key)

    def _share(self, count: int) -> slice:
        size = count // self._num_hosts
        return slice(self._host * size, (self._host + 1) * size)


def support_stream(
    store: TokenStore,
    split: str = "train",
    *,
    form: Form,
    num_supports: int = 16,
    num_queries: int = 16,
    rates: Rates = rate_functions.uniform,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    num_shapes: int = NUM_SHAPES,
    cost: Cost = num_tokens,
    asked: Asked = written_queries,
    multiple: int | None = None,
    host_index: int = 0,
    num_hosts: int = 1,
) -> SupportStream:
    """Makes a stream over a store.

    Args:
      store: the store, its inputs without prefixes.
      split: name of the split.
      form: how supports and queries are written.
      num_supports: K.
      num_queries: M.
      rates: the part of the steps that each task gets.
      seed: data seed.
      tasks: task names, in the order of task ids; None for all of the split.
      limit: most examples of a task; None for all.
      num_shapes: see `SupportStream`.
      cost: see `SupportStream`.
      asked: `written_queries`, or `instructed_queries` for a hypernetwork.
      multiple: what has to divide K and M; the number of hosts if None.
      host_index: see `SupportStream`.
      num_hosts: see `SupportStream`.

    Returns:
      The stream.

    Raises:
      InputError: as for its parts, if targets are labels, or devices do not divide supports and queries.

    Source: FiD-ICL's meta-training: a template uniformly, 16 + 16 examples without replacement; methods 3.6.
    """
    multiple = multiple or num_hosts
    for what, count in (("supports", num_supports), ("queries", num_queries)):
        if count % multiple:
            raise InputError(f"{count} {what} cannot be shared by {multiple} devices; make them a multiple")
    rows = TaskRows(store, split, tasks, limit=limit, seed=seed)
    if rows.has_labels:
        raise InputError(f"token store {store.folder}: split {split!r} has labels as targets; supports are texts")
    sampler = Sampler(rows.sizes, rates, 1, seed, rows.categories)
    if sampler.loss_period is not None:
        raise InputError("rates that follow losses cannot choose the tasks of supports; give other rates")
    sizes = dict(num_supports=num_supports, num_queries=num_queries, num_shapes=num_shapes)
    hosts = dict(host_index=host_index, num_hosts=num_hosts)
    return SupportStream(rows, Writing(store, form), sampler, **sizes, cost=cost, asked=asked, seed=seed, **hosts)


def _padded(rows: Sequence[Any], length: int, filler: float, dtype: type) -> np.ndarray:
    padded = np.full((len(rows), length), filler, dtype)
    for at, row in enumerate(rows):
        padded[at, : len(row)] = row
    return padded
