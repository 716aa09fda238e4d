"""Any jaxmtl model as a model of lm-evaluation-harness, under the name "jaxmtl": its tasks score what we trained.

From Python call `register()` first; as a command `python -m jaxmtl.evals.lm_eval` is `lm_eval` that knows the name.
The harness hands over the requests of all tasks at once; they share batches, sorted by length, and choices that follow
the same context share its encoding. It is imported only when it is asked for: the extra `lm_eval` installs it.
"""

import contextlib
import dataclasses
import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmtl.evals import generation, requests, scoring
from jaxmtl.evals.harness_requests import Coder, context_limit, ending_of, is_decoder_only
from jaxmtl.evals.request_adapters import Requested, request_adapters
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained, load_adapter, load_pretrained

NAME = "jaxmtl"
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LossAndRank:
    """Measures a token's NLL, and whether it is the likeliest.

    Attributes:
      num_tokens: rows of the embedding that stand for tokens.
    """

    num_tokens: int

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns float32 [N, T, 2] of logits [N, T, V] and targets [N, T]; the second is 0 or 1."""
        is_first = jnp.argmax(logits[..., : self.num_tokens], axis=-1) == targets
        return jnp.stack([scoring.nll(logits, targets), is_first.astype(jnp.float32)], axis=-1)


class Requests:
    """Answers what the harness asks; `register` makes it one of the harness's models.

    Args:
      pretrained: a model, or where to load it from: a run folder, a Hugging Face folder or a hub id.
      adapter: a PEFT folder; none if None.
      dtype: dtype of weights and activations, where the model is loaded.
      batch_size: contexts computed at once; no score depends on it.
      max_length: most tokens read, see `harness_requests.context_limit`; longer contexts lose their beginning.
      max_gen_toks: most tokens of a generated text where the task says nothing.
      count_end: whether the end token counts as the last of a continuation. The harness's own models do not count it;
        rank classification in the manner of T0 does.
      device: not read, for the harness names one whether it was asked to or not; JAX chooses (`JAX_PLATFORMS=cpu`).
      max_batch_size: not read; the size of a batch does not change.

    Raises:
      InputError: if the model cannot be loaded, has no tokenizer or writes no texts, or a value is out of range.
    """

    def __init__(
        self,
        pretrained: Pretrained | str | os.PathLike,
        *,
        adapter: str | os.PathLike | None = None,
        dtype: str = "float32",
        batch_size: int | str = requests.BATCH_SIZE,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        count_end: bool = False,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise InputError(f"batch_size is {batch_size!r}; expected a number, at least 1")
        self.pretrained = pretrained if isinstance(pretrained, Pretrained) else load_pretrained(pretrained, dtype=dtype)
        config = self.pretrained.config
        if not hasattr(self.pretrained.module, "decode"):
            raise InputError(f"a {type(config).__name__} model writes no texts; expected T5, BART, GPT-2 or OPT")
        self.adapter = None if adapter is None else load_adapter(adapter, self.pretrained)
        self.batch_size, self.max_gen_toks = int(batch_size), max_gen_toks
        self.coder = Coder(
            tokenizer=requests.tokenizer_of(self.pretrained),
            one_text=is_decoder_only(config),
            max_length=context_limit(config, max_length),
            count_end=count_end,
        )

    @property
    def max_length(self) -> int:
        """Most tokens read."""
        return self.coder.max_length

    @property
    def tokenizer_name(self) -> str:
        """Tells vocabularies apart in the harness's cache of requests."""
        return self.coder.tokenizer.fingerprint

    def loglikelihood(self, asked: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Measures how likely continuations are.

        Args:
          asked: the harness's requests; `args` of each are context and continuation.
          disable_tqdm: shows no progress.

        Returns:
          For each request nats summed over the continuation's tokens, and whether each of them is the likeliest.

        Raises:
          InputError: if a continuation has no token, or more than the model has room for.
        """
        pairs = [self.coder.pair(*request.args) for request in asked]
        _say_cut(sum(is_cut for *_, is_cut in pairs), len(pairs), self.max_length)
        # Choices of one context are scored together, so that it is read once.
        places: dict[tuple[int, ...], list[int]] = {}
        for place, (context, _, _) in enumerate(pairs):
            places.setdefault(tuple(context), []).append(place)
        choices = [[pairs[place][1] for place in members] for members in places.values()]
        found = self._measured([*places], choices, LossAndRank(requests.num_tokens(self.pretrained)), disable_tqdm)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for members, rows in zip(places.values(), found, strict=True):
            for place, row in zip(members, rows, strict=True):
                answers[place] = (-float(row[:, 0].sum(dtype=float)), bool(row[:, 1].all()))
        return answers

    def loglikelihood_rolling(self, asked: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Measures how likely whole texts are, for perplexities; each token sees as much before it as there is room.

        Args:
          asked: the harness's requests; `args` of each is a text.
          disable_tqdm: shows no progress.

        Returns:
          For each request nats summed over the text's tokens; 0 for a text without any.

        Raises:
          InputError: if the model is an encoder-decoder, which has no likelihood of a text by itself.
        """
        if not self.coder.one_text:
            raise InputError(
                f"perplexity of whole texts (loglikelihood_rolling) needs a decoder-only model; a "
                f"{type(self.pretrained.config).__name__} model gives likelihoods only of targets after an input"
            )
        windows = [(place, *window) for place, one in enumerate(asked) for window in self.coder.windows(*one.args)]
        choices = [[predicted] for _, _, predicted in windows]
        found = self._measured([read for _, read, _ in windows], choices, scoring.nll, disable_tqdm)
        sums = [0.0] * len(asked)
        for (place, _, _), (row,) in zip(windows, found, strict=True):
            sums[place] -= float(row.sum(dtype=float))
        return sums

    def generate_until(self, asked: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Writes texts, the likeliest token at a time.

        Args:
          asked: the harness's requests; `args` of each are a context and options, see `harness_requests.ending_of`.
          disable_tqdm: shows no progress.

        Returns:
          The texts without special tokens, each up to the first of its stops.

        Raises:
          InputError: if anything but greedy decoding is asked for, or no room is left for a context.
        """
        endings = [ending_of(request.args[1], self.max_gen_toks) for request in asked]
        texts, num_cut = [""] * len(asked), 0
        with _counted(len(asked), "generating", disable_tqdm) as count:
            for most in dict.fromkeys(ending.max_tokens for ending in endings):
                if self.coder.one_text and most > self.max_length:
                    raise InputError(
                        f"{most} tokens are to be generated, but the model reads {self.max_length} at most; give a"
                        " smaller max_gen_toks"
                    )
                places = [place for place, ending in enumerate(endings) if ending.max_tokens == most]
                contexts = [self.coder.context(asked[place].args[0], most - 1) for place in places]
                num_cut += sum(is_cut for _, is_cut in contexts)
                options: dict[str, Any] = dict(batch_size=self.batch_size, adapters=self._adapters(len(contexts)))
                rows = [ids for ids, _ in contexts]
                made = generation.generate_ids(self.pretrained, rows, max_tokens=most, on_batch=count, **options)
                for place, text in zip(places, generation.decode_texts(self.pretrained, made), strict=True):
                    texts[place] = endings[place].cut(text)
        _say_cut(num_cut, len(asked), self.max_length)
        return texts

    def _adapters(self, count: int) -> Requested | None:
        return request_adapters(self.pretrained, self.adapter, count)

    def _measured(self, inputs: Sequence[Any], choices: Sequence[Any], measure: Any, disable_tqdm: bool) -> list:
        with _counted(len(inputs), "scoring", disable_tqdm) as count:
            options: dict[str, Any] = dict(batch_size=self.batch_size, adapters=self._adapters(len(inputs)))
            return scoring.choice_losses(self.pretrained, inputs, choices, measure=measure, on_batch=count, **options)


@functools.cache
def register() -> type:
    """Makes `Requests` a model of the harness and registers it as "jaxmtl".

    Returns:
      The class, to be called as `Requests` is, or named in `simple_evaluate(model="jaxmtl", model_args=...)`.

    Raises:
      InputError: if lm-evaluation-harness is not installed.
    """
    base = _harness("lm_eval.api.model").LM
    made = type("JaxMTL", (Requests, base), {"__doc__": Requests.__doc__})
    return _harness("lm_eval.api.registry").register_model(NAME)(made)


def main() -> None:
    """Runs the harness's own command, with jaxmtl's models registered; what a user got wrong is one line."""
    try:
        register()
        _harness("lm_eval.__main__").cli_evaluate()
    except InputError as error:
        sys.exit(f"error: {error}")


def _harness(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"lm-evaluation-harness is missing: pip install 'jaxmtl[lm_eval]' ({error})") from error


def _say_cut(num_cut: int, count: int, max_length: int) -> None:
    if num_cut:
        LOG.warning("%d of %d contexts lost their beginning: max_length is %d tokens", num_cut, count, max_length)


@contextlib.contextmanager
def _counted(total: int, what: str, is_hidden: bool) -> Iterator[Callable[[int], None]]:
    """Shows progress as the harness does; yields what is told how many requests were done."""
    with _harness("tqdm").tqdm(total=total, desc=what, disable=is_hidden) as bar:
        yield lambda count: bar.update(count) and None


if __name__ == "__main__":
    main()
