"""What lm-evaluation-harness asks for, as token ids: contexts and continuations, prompts, rolling windows, ends.

Texts are cut into context and continuation as the harness does it for its own models, so that numbers compare: spaces
that end a context belong to the continuation; a decoder-only model reads both as one text, an encoder-decoder each by
itself. What is too long loses the beginning of its context.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from jaxmtl.evals.requests import MAX_INPUT_TOKENS
from jaxmtl.models.gpt_config import GPTConfig
from jaxmtl.models.lengths import room
from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import InputError, unknown_name

MAX_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the most tokens of a generated text; the first one given counts."""
_IGNORED = ("temperature", "top_p", "top_k")
"""Options that change nothing where the likeliest token is taken."""


def is_decoder_only(config: Any) -> bool:
    """Returns whether a model reads context and continuation as one text.

    Args:
      config: the model's config.
    """
    return isinstance(config, GPTConfig)


def context_limit(config: Any, asked: int | None) -> int:
    """Finds how many tokens a model reads at most.

    Args:
      config: the model's config.
      asked: what the user wants; None for as many as the model has room for, or 1024 where it has no limit.

    Returns:
      Of a decoder-only model tokens of context and continuation together, the last one not counted because nobody
      reads it; else tokens of the context.

    Raises:
      InputError: if more is asked than the model has room for, or nothing.
    """
    limits = room(config)
    most = limits.together - 1 if limits.together is not None else limits.inputs
    if asked is None:
        return MAX_INPUT_TOKENS if most is None else most
    if asked < 2 or (most is not None and asked > most):
        upper = "" if most is None else f" and at most {most}, the model's positions"
        raise InputError(f"max_length is {asked}; expected at least 2{upper}")
    return asked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coder:
    """Turns requests into token ids.

    Attributes:
      tokenizer: the model's tokenizer.
      one_text: True for decoder-only models.
      max_length: see `context_limit`.
      count_end: whether a continuation ends in the end token, whose likelihood then counts.
    """

    tokenizer: Tokenizer
    one_text: bool
    max_length: int
    count_end: bool

    def context(self, text: str, room_behind: int = 0) -> tuple[list[int], bool]:
        """Tokenises a context and cuts off what there is no room for from its beginning.

        Args:
          text: any text; an empty one becomes the end token where the tokenizer adds none.
          room_behind: tokens that a decoder-only model reads behind it.

        Returns:
          Its ids, and whether it was cut. The end token, and what a tokenizer puts first (BART's `<s>`), stay.
        """
        plain = self.tokenizer.encode(text, add_special_tokens=False)
        if self.one_text:
            ids, first = plain or [self.tokenizer.eos_token_id], 0
            limit = max(self.max_length - room_behind, 1)
        else:
            ids, limit = self.tokenizer.encode(text) or [self.tokenizer.eos_token_id], self.max_length
            first = int(len(ids) > len(plain) and ids[:1] != plain[:1] and ids[0] != self.tokenizer.eos_token_id)
        if len(ids) <= limit:
            return ids, False
        return [*ids[:first], *ids[len(ids) - limit + first :]], True

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int], bool]:
        """Tokenises a context and what may follow it.

        Args:
          context: any text.
          continuation: a text of at least one token.

        Returns:
          Ids of both, and whether the context was cut.

        Raises:
          InputError: if the continuation has no token.
        """
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        plain = lambda text: self.tokenizer.encode(text, add_special_tokens=False)
        if self.one_text and stripped:
            target = plain(stripped + continuation)[len(plain(stripped)) :]
        else:
            target = plain(continuation)
        if self.count_end:
            target = [*target, self.tokenizer.eos_token_id]
        if not target:
            raise InputError(
                f"continuation {continuation[:40]!r} of context ...{context[-40:]!r} has no token to score; expected a"
                " text, or count_end=True"
            )
        source, is_cut = self.context(stripped, len(target) - 1)
        return source, target, is_cut

    def windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """Cuts a long text for a decoder-only model, so that each token is predicted once and sees all that fits.

        Args:
          text: any text.

        Yields:
          Ids that are read, at least one, and ids that are predicted.

        Source: lm-evaluation-harness, `get_rolling_token_windows` with a context of one token.
        """
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        rows = [self.tokenizer.eos_token_id, *ids]
        for start in range(0, len(ids), self.max_length):
            end = min(start + self.max_length, len(ids))
            # The last window is shorter and so has room for tokens that windows before it have predicted.
            yield rows[max(end - self.max_length, 0) : start + 1], ids[start:end]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """When a generated text ends, besides at the model's end token.

    Attributes:
      max_tokens: most tokens.
      stops: texts before the first of which it is cut.
    """

    max_tokens: int
    stops: tuple[str, ...]

    def cut(self, text: str) -> str:
        """Returns a text up to the first of the stops."""
        return text[: min((text.find(stop) for stop in self.stops if stop in text), default=len(text))]


def ending_of(options: Mapping[str, Any], max_tokens: int) -> Ending:
    """Reads a task's options of generation.

    Args:
      options: "until", one of `MAX_TOKENS_NAMES`, and options that say: take the likeliest token.
      max_tokens: most tokens where the task says nothing.

    Returns:
      When texts end.

    Raises:
      InputError: if they ask for anything but greedy decoding, or make no sense.
      UnknownNameError: if there is an option that nobody knows.
    """
    known = ("until", "do_sample", "num_beams", *MAX_TOKENS_NAMES, *_IGNORED)
    for name in options:
        if name not in known:
            raise unknown_name("option of generation", name, known)
    samples = options.get("do_sample")
    if samples or (samples is None and float(options.get("temperature") or 0) > 0):
        raise InputError(f"generation options {dict(options)}: expected greedy decoding; give do_sample=False")
    if options.get("num_beams", 1) != 1:
        raise InputError(f"generation options: num_beams is {options['num_beams']}; expected 1, greedy decoding")
    until = options.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    if not all(isinstance(stop, str) for stop in stops):
        raise InputError(f"generation options: until is {until!r}; expected a text or a list of texts")
    most = int(next((options[name] for name in MAX_TOKENS_NAMES if options.get(name) is not None), max_tokens))
    if most < 1:
        raise InputError(f"generation options: {most} tokens at most; expected at least 1")
    return Ending(max_tokens=most, stops=tuple(stop for stop in stops if stop))
