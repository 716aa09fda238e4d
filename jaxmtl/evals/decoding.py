"""The options of decoding as a run states them: flat, checked, and in words for the record."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from jaxmtl.models.beam_search import NEVER, BeamSearch
from jaxmtl.models.decoding import Generation, Method
from jaxmtl.models.logit_rules import ForcedToken, MinTokens, NoRepeatNgram, RepetitionPenalty, Rule
from jaxmtl.models.sampling import Greedy, Sampling
from jaxmtl.types import InputError, unknown_name

OPTIONS_OF = {
    "greedy": (),
    "beam": ("num_beams", "length_penalty", "early_stopping"),
    "sample": ("temperature", "top_k", "top_p", "seed"),
}
"""The options that belong to one method alone, by method; all others go with every method."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How texts are generated. Nothing is forced and no penalty applied unless it is asked for.

    Rules on tokens count generated tokens; those on repetition look at a decoder-only model's prompt as well.

    Attributes:
      method: "greedy", "beam" or "sample".
      num_beams: open beams of beam search.
      length_penalty: exponent on the length that beam search divides a text's log-probability by.
      early_stopping: True, False or "never", see `BeamSearch`.
      temperature: see `Sampling`.
      top_k: see `Sampling`; 0 leaves all tokens.
      top_p: see `Sampling`; 1 leaves all tokens.
      seed: of what is drawn; each input has its own stream.
      min_tokens: least number of tokens in front of the end token.
      no_repeat_ngram: n-grams of this size occur once at most; 0 allows all.
      repetition_penalty: above 1 makes tokens less likely that were there before.
      forced_first_id: id of the first token, whatever the model says; None forces none.
      forced_last_id: id of the last of `max_tokens` tokens, where a text gets as long; None forces none.
    """

    method: str = "greedy"
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_tokens: int = 0
    no_repeat_ngram: int = 0
    repetition_penalty: float = 1.0
    forced_first_id: int | None = None
    forced_last_id: int | None = None

    def __post_init__(self) -> None:
        """Refuses values that mean nothing, and options of another method.

        Raises:
          InputError: with the option, the value seen and what is possible.
          UnknownNameError: if there is no such method.
        """
        if self.method not in OPTIONS_OF:
            raise unknown_name("decoding method", self.method, OPTIONS_OF)
        for name, is_kept, expected in _limits(self):
            if not is_kept:
                raise InputError(f"decoding: {name} is {getattr(self, name)!r}; expected {expected}")
        for method, names in OPTIONS_OF.items():
            for name in names:
                if method != self.method and name in self.changed():
                    raise InputError(
                        f"decoding: {name} is {getattr(self, name)!r}, which method {self.method!r} does not know;"
                        f" choose method {method!r} or leave it out"
                    )

    def generation(self, max_tokens: int) -> Generation:
        """Builds what a model is asked for.

        Args:
          max_tokens: most tokens of a text, the end token included.

        Returns:
          Bounds, method and rules, the rules in the order of `transformers`.

        Raises:
          InputError: if `max_tokens` is below 1 or below `min_tokens`.
        """
        if max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}; expected at least 1")
        if max_tokens < self.min_tokens:
            raise InputError(f"decoding: min_tokens is {self.min_tokens}; expected at most max_tokens, {max_tokens}")
        return Generation(max_tokens=max_tokens, method=self._method(), rules=tuple(self._rules(max_tokens)))

    def describe(self) -> str:
        """Returns the method and every option that is not at its default, as a record holds them."""
        changed = self.changed()
        own = {name: getattr(self, name) for name in OPTIONS_OF[self.method]} | changed
        return " ".join([self.method, *(f"{name}={value}" for name, value in own.items() if name != "method")])

    def changed(self) -> dict[str, Any]:
        """Returns the options that are not at their defaults, by name."""
        fields = dataclasses.fields(self)
        return {one.name: getattr(self, one.name) for one in fields if getattr(self, one.name) != one.default}

    def _method(self) -> Method:
        options = {name: getattr(self, name) for name in OPTIONS_OF[self.method]}
        return {"greedy": Greedy, "beam": BeamSearch, "sample": Sampling}[self.method](**options)

    def _rules(self, max_tokens: int) -> Iterator[Rule]:
        if self.repetition_penalty != 1:
            yield RepetitionPenalty(self.repetition_penalty)
        if self.no_repeat_ngram:
            yield NoRepeatNgram(self.no_repeat_ngram)
        if self.min_tokens:
            yield MinTokens(self.min_tokens)
        if self.forced_first_id is not None:
            yield ForcedToken(self.forced_first_id, 0)
        if self.forced_last_id is not None:
            yield ForcedToken(self.forced_last_id, max_tokens - 1)


def _limits(how: Decoding) -> Iterator[tuple[str, bool, str]]:
    """Yields option, whether its value is possible, and what is."""
    least = dict(num_beams=2 if how.method == "beam" else 1, top_k=0, seed=0, min_tokens=0, no_repeat_ngram=0)
    for name, bound in least.items():
        value = getattr(how, name)
        yield name, type(value) is int and value >= bound, f"an integer, at least {bound}"
    for name in ("length_penalty", "temperature", "top_p", "repetition_penalty"):
        value = getattr(how, name)
        yield name, type(value) in (int, float) and math.isfinite(value), "a finite number"
    for name in ("temperature", "repetition_penalty"):
        yield name, getattr(how, name) > 0, "a number above 0"
    yield "top_p", 0 < how.top_p <= 1, "above 0 and at most 1"
    known = type(how.early_stopping) is bool or how.early_stopping == NEVER
    yield "early_stopping", known, f"True, False or {NEVER!r}"
    for name in ("forced_first_id", "forced_last_id"):
        value = getattr(how, name)
        yield name, value is None or (type(value) is int and value >= 0), "a token id, or None"
