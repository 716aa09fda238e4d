"""What gin files put together to train a hypernetwork on a token store with instructions."""

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmtl.types import Batch, InputError, unknown_name

if TYPE_CHECKING:
    import flax.linen as nn

    from jaxmtl.adapters.hyper_config import HyperConfig
    from jaxmtl.adapters.hyper_model import HyperModel
    from jaxmtl.commands.train import Parts
    from jaxmtl.feed.eval_stream import EvalStream
    from jaxmtl.feed.instructions import NumberedTasks
    from jaxmtl.feed.store import TokenStore
    from jaxmtl.training.validation import ValidationLoss
    from jaxmtl.weights import Pretrained


def module_of(*, hyper: "HyperConfig", base: "nn.Module", reader: "nn.Module | None" = None) -> "HyperModel":
    """Returns a model with the hypernetwork that adapts it.

    Args:
      hyper: what the hypernetwork is made of.
      base: the model.
      reader: the model whose encoder reads instructions; None if it is the base itself, or tasks are learned.
    """
    from jaxmtl.adapters.hyper_model import HyperModel

    return HyperModel(hyper, base, reader)


def weights_of(
    *,
    module: "HyperModel",
    path: str,
    reader_path: str | None = None,
    hypernet: str | os.PathLike | None = None,
    teachers: str | os.PathLike | None = None,
    seed: int = 0,
) -> Callable[[Any], Any]:
    """Returns what `loop.Run.pretrained` wants: a model's weights under a hypernetwork.

    Args:
      module: the model with its hypernetwork.
      path: the model's weights, what `load_pretrained` takes.
      reader_path: the weights of the reader of instructions, if the module has one.
      hypernet: run folder of a hypernetwork, such as of pretraining, to go on from; None for a new one.
      teachers: folder of adapters of the model at `path`, if the hypernetwork is to learn from them.
      seed: seed of a new one.
    """
    if hypernet is not None:
        return lambda mesh: _continued(module, path, hypernet, teachers, mesh)
    return lambda mesh: _begun(module, path, reader_path, seed, mesh)


def _begun(module: "HyperModel", path: str, reader_path: str | None, seed: int, mesh: Any) -> Any:
    """Returns random parameters of the hypernetwork, created where they belong, and loaded ones of the models."""
    import flax.linen as nn
    import jax

    from jaxmtl.models.initial import abstract_params, initial_arguments
    from jaxmtl.models.trees import flat, nested
    from jaxmtl.partitioning import shardings_for
    from jaxmtl.weights import load_pretrained

    shapes = abstract_params(module)
    base = load_pretrained(path, mesh=mesh)
    loaded = {"base": base.params}
    if module.reader is not None:
        if reader_path is None:
            raise InputError(f"hypernetwork: encoder {module.hyper.encoder!r} needs READER_PRETRAINED, a model to read")
        reader = load_pretrained(reader_path, mesh=mesh)
        _check_same_words(base, reader)
        read, whole = flat(nn.unbox(shapes["reader"])), flat(reader.params)
        # Of an encoder-decoder the encoder alone.
        loaded["reader"] = nested({path: leaf for path, leaf in whole.items() if path in read})
    own = lambda params: {part: tree for part, tree in params.items() if part not in loaded}
    new = lambda key: own(nn.unbox(module.init(key, **initial_arguments(module)))["params"])
    shardings = shardings_for(own(shapes), mesh)
    return {**loaded, **jax.jit(new, out_shardings=shardings)(jax.random.key(seed))}


def _check_same_words(base: "Pretrained", reader: "Pretrained") -> None:
    """Refuses a reader to whom the ids of instructions mean something else than to the model."""
    from jaxmtl.feed.manifest import Vocabulary

    if base.tokenizer is None or reader.tokenizer is None:
        return
    if Vocabulary.of(base.tokenizer) != Vocabulary.of(reader.tokenizer):
        raise InputError(
            f"READER_PRETRAINED has another vocabulary, {reader.tokenizer.source} ({reader.tokenizer.vocab_size} ids), "
            f"than PRETRAINED, {base.tokenizer.source} ({base.tokenizer.vocab_size} ids); give a reader with the same"
        )


def _continued(
    module: "HyperModel", path: str, hypernet: str | os.PathLike, teachers: str | os.PathLike | None, mesh: Any
) -> Any:
    """Returns all parameters of a hypernetwork's run; refuses another hypernetwork, or one of another model."""
    from jaxmtl.weights import load_pretrained
    from jaxmtl.weights.hyper_io import load_hyper_run, read_hyper_config, to_json

    found, _ = read_hyper_config(hypernet)
    theirs, ours = to_json(found), to_json(module.hyper)
    if theirs["tasks"] != ours["tasks"]:
        raise InputError(
            f"HYPERNET {hypernet} has learned {len(theirs['tasks'])} tasks, this run has {len(ours['tasks'])}, and "
            "they are not the same; give both runs the same STORE, SPLIT and NUM_CATEGORIES"
        )
    for name in ours:
        if theirs[name] != ours[name] and name != "base":
            raise InputError(
                f"HYPERNET {hypernet}: its {name} is {theirs[name]}, this run's {ours[name]}; give both runs the same "
                "file of gin_configs/hypernets and the same settings"
            )
    if teachers is not None and found.base != "nothing":
        raise InputError(
            f"HYPERNET {hypernet} has trained {found.base} of its model, so that TEACHERS {teachers}, adapters of "
            f"PRETRAINED {path}, do not fit it; leave them out, or begin with one that trained 'nothing' of its model"
        )
    pretrained, hyper = load_hyper_run(hypernet, mesh=mesh)
    if found.base == "nothing" and load_pretrained(path, mesh=mesh).hash != pretrained.hash:
        raise InputError(f"HYPERNET {hypernet} adapts another model than PRETRAINED {path}; give the model of its run")
    return {"base": pretrained.params} | hyper.params


def shared_stream(store: "TokenStore", *, make_stream: Callable[..., Any], **options: Any) -> Any:
    """Makes a training stream whose batches hold each instruction once, so that it is encoded once.

    On many hosts, where a row cannot name an instruction of another host, each row keeps its own.

    Args:
      store: the tokenised examples; must have instructions, or tasks that are learned by name.
      make_stream: `stream.train_stream` with its settings bound.
      **options: what a training stream has to know of the model and the mesh.

    Returns:
      The stream.

    Raises:
      InputError: if the store has no instructions.
    """
    from jaxmtl.feed.instructions import SharedInstructions

    stream = make_stream(store, **options)
    if not stream.rows.max_instruction_tokens:
        raise InputError(
            f"token store {store.folder} has no instructions; cache with tasks/with_instructions.gin, tasks/p3.gin "
            "with INSTRUCTION=@prompts.definition_only, or text with OBJECTIVE=@text_objectives.Segmentation()"
        )
    if options.get("num_hosts", 1) > 1:
        return stream
    return SharedInstructions(stream, pad_id=stream.rows.pad_id, multiple=options.get("multiple") or 1)


def numbered_stream(store: "TokenStore", *, make_stream: Callable[..., Any], **options: Any) -> "NumberedTasks":
    """Makes a training stream whose rows say which task they are of: what is read is a number, not an instruction.

    Args:
      store: the tokenised examples.
      make_stream: as in `shared_stream`.
      **options: as in `shared_stream`.

    Returns:
      The stream.
    """
    from jaxmtl.feed.instructions import NumberedTasks

    stream = make_stream(store, **options)
    return NumberedTasks(stream, pad_id=stream.rows.pad_id)


def task_names(*, store: "TokenStore", split: str = "train", most_categories: int | None = None) -> list[str]:
    """Lists the tasks to train on: those of the largest categories.

    Args:
      store: the tokenised examples.
      split: split to train on.
      most_categories: how many categories, those with the most tasks first, ties by name; all if None.

    Returns:
      Names in the order of the store.

    Raises:
      InputError: if there are not as many categories.

    Source: TAGI, Figure 3 and Tables 10-11; methods 1.8.
    """
    names = store.task_names(split)
    if most_categories is None:
        return names
    category = {name: store.entry(name, split).category for name in names}
    sizes = {one: list(category.values()).count(one) for one in category.values()}
    if not 1 <= most_categories <= len(sizes):
        raise InputError(f"NUM_CATEGORIES is {most_categories}; split {split!r} of {store.folder} has {len(sizes)}")
    chosen = set(sorted(sizes, key=lambda one: (-sizes[one], one))[:most_categories])
    return [name for name in names if category[name] in chosen]


def validation_loss(parts: "Parts", *, split: str = "validation", batch_size: int = 16, every: int) -> "ValidationLoss":
    """Measures the loss of the targets on a split of the store from time to time.

    Args:
      parts: parts of the run.
      split: split to measure; its name is that of the metrics.
      batch_size: rows per batch, over all hosts.
      every: steps between two passes.

    Returns:
      The evaluation.
    """
    from jaxmtl.feed.eval_stream import eval_stream
    from jaxmtl.partitioning import batch_share
    from jaxmtl.training.hyper_objective import InstructedLoss
    from jaxmtl.training.validation import ValidationLoss

    share, num_shares = batch_share(parts.mesh)
    batches = eval_stream(parts.store, split, batch_size=batch_size, host_index=share, num_hosts=num_shares)
    return ValidationLoss(
        name=split,
        every=every,
        module=parts.module,
        task_names=batches.rows.names,
        batches=lambda: _numbered(parts.module, batches),
        objective=InstructedLoss(),
    )


def _numbered(module: Any, batches: "EvalStream") -> Iterable[Batch]:
    """Adds the numbers of the rows' tasks where these are what a hypernetwork reads."""
    if module.hyper.encoder != "learned":
        return batches
    known = list(module.hyper.tasks)
    for name in batches.rows.names:
        if name not in known:
            raise unknown_name("task that the hypernetwork learns", name, known)
    numbers = np.array([known.index(name) for name in batches.rows.names], np.int32)
    return ({**batch, "instructions": numbers[batch["task_ids"]][:, None]} for batch in batches)


def describe_hypernetwork(parts: "Parts") -> None:
    """Writes what the hypernetwork of a run is made of, and says which of its parameters are trained.

    Args:
      parts: parts of the run; those of a run without a hypernetwork are left alone.
    """
    from jaxmtl.adapters.hyper_model import HyperModel

    if not isinstance(parts.module, HyperModel):
        return
    from jaxmtl.weights.hyper_io import write_hyper_config

    write_hyper_config(parts.run_dir, parts.module.hyper, parts.module.reader)
    print(parameter_lines(parts.module))


def parameter_lines(module: "HyperModel") -> str:
    """Returns a table of how many parameters of each part are trained, and how many stay as they are.

    Args:
      module: the model with its hypernetwork.
    """
    import flax.linen as nn

    from jaxmtl.models.initial import abstract_params
    from jaxmtl.training.hyper_groups import groups_of, parameter_table

    rows = parameter_table(nn.unbox(abstract_params(module)), groups_of(module.hyper))
    state = lambda rate: "trained" if rate else "frozen"
    return "\n".join(f"{part:<12}{count:>16,}  {state(rate)}" for part, count, rate in rows)
