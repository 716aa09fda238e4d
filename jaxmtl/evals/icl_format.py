"""Demonstrations and queries of in-context learning as token ids: prefixes, end tokens and lengths."""

import dataclasses
from collections.abc import Sequence

from jaxmtl.evals import requests
from jaxmtl.evals.requests import Ids
from jaxmtl.feed.special_tokens import around_texts
from jaxmtl.feed.tokenise import cut
from jaxmtl.tasks.spec import Demonstration
from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """How demonstrations and queries are written.

    A demonstration is input prefix, input, output prefix, output, end token, put together as ids. What is too long
    loses its last tokens, but an output keeps its end token.

    Attributes:
      input_prefix: text before a demonstration's input.
      output_prefix: text before a demonstration's output.
      query_token: name of the special token before a query's input, such as T5's `<extra_id_99>`; "" for none.
      query_special_tokens: whether a query has the special tokens that the tokenizer gives an input (T5: EOS).
      max_input_tokens: most tokens of a demonstration's input or of a query, prefix and special tokens counted.
      max_output_tokens: most tokens of a demonstration's output, prefix and end token counted.

    Raises:
      InputError: if a length is below 2.

    Source: FiD-ICL's data format, with the lengths of its training; methods 3.6.
    """

    input_prefix: str = "# Input #"
    output_prefix: str = " # Output #"
    query_token: str = "<extra_id_99>"
    query_special_tokens: bool = False
    max_input_tokens: int = 256
    max_output_tokens: int = 64

    def __post_init__(self) -> None:
        for name in ("max_input_tokens", "max_output_tokens"):
            if getattr(self, name) < 2:
                raise InputError(f"{name} of in-context learning is {getattr(self, name)}; expected 2 or more")


FID_ICL = Format()
"""What FiD-ICL's models were trained with."""

PLAIN_QUERY = Format(query_token="", query_special_tokens=True)
"""Queries as `scoring` reads inputs: for models that were not trained on demonstrations, and without any the same."""


def encode_demonstrations(
    pretrained: Pretrained, demonstrations: Sequence[Demonstration], form: Format = FID_ICL
) -> list[list[int]]:
    """Tokenises demonstrations; their explanations are left out.

    Args:
      pretrained: the model; its tokenizer is used.
      demonstrations: any number, with any texts.
      form: how they are written.

    Returns:
      Token ids of each.

    Raises:
      InputError: if the model has no tokenizer, or the prefixes leave no room.
    """
    tokenizer = requests.tokenizer_of(pretrained)
    plain = lambda text: tokenizer.encode(text, add_special_tokens=False)
    texts = [(plain(one.inputs), plain(one.output)) for one in demonstrations]
    return join_demonstrations(tokenizer, texts, form)


def join_demonstrations(
    tokenizer: Tokenizer, demonstrations: Sequence[tuple[Ids, Ids]], form: Format = FID_ICL
) -> list[list[int]]:
    """Puts tokenised demonstrations together.

    Args:
      tokenizer: the model's tokenizer.
      demonstrations: token ids of input and output of each, without special tokens.
      form: how they are written.

    Returns:
      Token ids of each.

    Raises:
      InputError: if the prefixes leave no room.
    """
    plain = lambda text: tokenizer.encode(text, add_special_tokens=False)
    before, between = plain(form.input_prefix), plain(form.output_prefix)
    room = form.max_input_tokens - len(before), form.max_output_tokens - len(between)
    if min(room) < 1:
        raise InputError(
            f"prefixes of {len(before)} and {len(between)} tokens leave no room in {form.max_input_tokens} input and "
            f"{form.max_output_tokens} output tokens; allow more"
        )
    end = tokenizer.eos_token_id
    return [
        [*before, *source[: room[0]], *between, *cut([*output, end], room[1], end)] for source, output in demonstrations
    ]


def encode_queries(pretrained: Pretrained, inputs: Sequence[str], form: Format = FID_ICL) -> list[list[int]]:
    """Tokenises the inputs that are asked about.

    Args:
      pretrained: the model; its tokenizer is used.
      inputs: their texts.
      form: how they are written.

    Returns:
      Token ids of each.

    Raises:
      InputError: if the model has no tokenizer, or it does not know the token before a query, or `inputs` is no list of
        texts.
    """
    tokenizer = requests.tokenizer_of(pretrained)
    return join_queries(tokenizer, tokenizer.encode_batch(requests.checked_texts(inputs), False), form)


def join_queries(tokenizer: Tokenizer, queries: Sequence[Ids], form: Format = FID_ICL) -> list[list[int]]:
    """Puts tokenised queries together.

    Args:
      tokenizer: the model's tokenizer.
      queries: token ids of their inputs, without special tokens.
      form: how they are written.

    Returns:
      Token ids of each.

    Raises:
      InputError: if the tokenizer does not know the token before a query.
    """
    before = _special_ids(tokenizer, form.query_token)
    start, end = around_texts(tokenizer) if form.query_special_tokens else ([], [])
    whole = [[*before, *start, *map(int, ids), *end] for ids in queries]
    return [cut(ids, form.max_input_tokens, tokenizer.eos_token_id) if ids else ids for ids in whole]


def _special_ids(tokenizer: Tokenizer, name: str) -> list[int]:
    """Returns the id of a special token, or nothing for no name."""
    ids = tokenizer.encode(name, add_special_tokens=False) if name else []
    if ids and (len(ids) > 1 or ids[0] == tokenizer.unk_token_id or tokenizer.decode(ids)):
        raise InputError(
            f"queries are to begin with {name!r}, which is no special token of {tokenizer.source}; give"
            " form=icl_format.PLAIN_QUERY, or a Format with another query_token"
        )
    return ids
