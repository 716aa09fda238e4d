"""What gin files put together to train and evaluate a model with one head per task of a token store."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.types import InputError

if TYPE_CHECKING:
    import flax.linen as nn

    from jaxmtl.commands.train import Parts
    from jaxmtl.evals.answers import AnswerEvaluation
    from jaxmtl.feed.store import TokenStore
    from jaxmtl.models.head_config import Head
    from jaxmtl.training.validation import ValidationLoss


def heads_of(store: "TokenStore", split: str) -> "tuple[Head, ...]":
    """Returns a head for each task of a split, in the order of task ids.

    Args:
      store: the tokenised examples.
      split: split to train on.

    Returns:
      The heads.

    Raises:
      InputError: if a task of the split has token ids as targets.
    """
    from jaxmtl.models.head_config import Head

    heads = []
    for name in store.task_names(split):
        entry = store.entry(name, split)
        if not entry.answer:
            raise InputError(
                f"token store {store.folder}: task {name} has texts as targets; cache with tasks/transfer.gin to train "
                "heads"
            )
        heads.append(Head(name=name, kind=entry.answer, labels=tuple(entry.labels)))
    return tuple(heads)


def module_with_heads(
    *, store: "TokenStore", config: Callable[..., Any], split: str = "train", **overrides: Any
) -> "nn.Module":
    """Returns an encoder of some size with a head for each task.

    Args:
      store: the tokenised examples.
      config: makes the config, given `heads` and the overrides: `roberta_config.named_config` or `encoder_of`.
      split: split to train on.
      **overrides: further fields of the config.

    Returns:
      The module.
    """
    from jaxmtl.models.roberta import roberta

    return roberta(config(heads=heads_of(store, split), **overrides))


def encoder_of(*, path: str, **overrides: Any) -> Any:
    """Returns the config of a folder's or hub id's model, with other heads.

    Args:
      path: what `load_pretrained` takes.
      **overrides: fields to set otherwise, `heads` among them.
    """
    from jaxmtl.weights import load_module

    module: Any = load_module(path)
    return dataclasses.replace(module.config, **overrides)


def encoder_weights(*, path: str, module: "nn.Module", seed: int = 0) -> Callable[[Any], Any]:
    """Returns what `loop.Run.pretrained` wants: an encoder's weights under new random heads; its own are dropped.

    Args:
      path: what `load_pretrained` takes.
      module: the model to be trained.
      seed: seed of the heads.
    """
    import flax.linen as nn
    import jax

    from jaxmtl.models.initial import abstract_params, initial_arguments
    from jaxmtl.partitioning import shardings_for
    from jaxmtl.weights import load_pretrained

    def load(mesh: Any) -> Any:
        boxed = {"heads": abstract_params(module)["heads"]}
        new = lambda key: {"heads": nn.unbox(module.init(key, **initial_arguments(module)))["params"]["heads"]}
        heads = jax.jit(new, out_shardings=shardings_for(boxed, mesh))(jax.random.key(seed))
        return {**load_pretrained(path, mesh=mesh).params, **heads}

    return load


def validation_loss(
    parts: "Parts", *, split: str = "validation", batch_size: int = 16, every: int, objective: Any
) -> "ValidationLoss":
    """Measures the loss of the heads on a split of the store from time to time.

    Args:
      parts: parts of the run.
      split: split to measure; its name is that of the metrics.
      batch_size: rows per batch, over all hosts.
      every: steps between two passes.
      objective: the run's.

    Returns:
      The evaluation.
    """
    from jaxmtl.evals.answers import head_ids, renumbered
    from jaxmtl.feed.eval_stream import eval_stream
    from jaxmtl.partitioning import batch_share
    from jaxmtl.training.validation import ValidationLoss

    module: Any = parts.module
    share, num_shares = batch_share(parts.mesh)
    batches = eval_stream(parts.store, split, batch_size=batch_size, host_index=share, num_hosts=num_shares)
    ids = head_ids(module.config.heads, batches.rows.names)
    names = [head.name for head in module.config.heads]
    return ValidationLoss(
        name=split,
        every=every,
        module=module,
        task_names=names,
        batches=lambda: renumbered(batches, ids),
        objective=objective,
    )


def answers(parts: "Parts", *, split: str = "validation", batch_size: int = 32, every: int) -> "AnswerEvaluation":
    """Predicts a split of the store from time to time and scores the answers.

    Args:
      parts: parts of the run.
      split: split to predict.
      batch_size: rows computed at once.
      every: steps between two passes.

    Returns:
      The evaluation, named "answers".
    """
    from jaxmtl.evals.answers import AnswerEvaluation

    return AnswerEvaluation(every=every, module=parts.module, store=parts.store, split=split, batch_size=batch_size)


def check_heads(module: Any, names: Sequence[str]) -> None:
    """Refuses a model whose heads are not those of a stream's tasks.

    Args:
      module: the model; one without heads passes.
      names: the stream's tasks, in the order of task ids.

    Raises:
      InputError: if the model has other heads, or in another order.
    """
    heads = [head.name for head in getattr(module.config, "heads", ())]
    if heads and heads != list(names):
        raise InputError(f"the model has heads for {', '.join(heads)}; the stream has the tasks {', '.join(names)}")
