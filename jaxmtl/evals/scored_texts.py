"""Targets scored and texts generated for the same inputs, which an encoder reads once for both."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmtl.evals import generation, scoring
from jaxmtl.evals.decoding import Decoding
from jaxmtl.evals.reading import InputBatch, in_batches
from jaxmtl.evals.request_adapters import Requested
from jaxmtl.evals.requests import BATCH_SIZE, Ids, OnBatch
from jaxmtl.models.encoder_decoder import EncoderDecoder
from jaxmtl.weights import Pretrained


def score_and_generate(
    pretrained: Pretrained,
    inputs: Sequence[Ids],
    targets: Sequence[Ids],
    *,
    adapters: Requested | None = None,
    max_tokens: int,
    decoding: Decoding = generation.GREEDY,
    streams: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
    on_batch: OnBatch | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Measures every target token's NLL and generates a text for each input.

    A decoder-only model reads its prompts again to generate: to keep what it has read would take as much memory as the
    cache that it generates with.

    Args:
      pretrained: the model; it needs no tokenizer.
      inputs: [n] rows of token ids, special tokens included.
      targets: [n] rows of token ids, special tokens included.
      adapters: of the inputs, what `request_adapters` gave; none if None.
      max_tokens: most tokens generated for each input.
      decoding: method and rules.
      streams: [n] numbers of the inputs' streams of random numbers, see `generation.generate_ids`.
      batch_size: inputs taken at once.
      on_batch: told after each batch how many inputs it finished.

    Returns:
      For each input what `scoring.token_losses` gives, float32 [T], nats, and what `generation.generate_ids` gives,
      int32, the generated ids before the end token.

    Raises:
      InputError: as these two.
    """
    choices = [[row] for row in targets]
    scoring.check_choices(pretrained, inputs, choices, adapters)
    generate = generation.generator_of(pretrained, inputs, max_tokens, decoding, streams)

    def answer(batch: InputBatch) -> list[tuple[np.ndarray, np.ndarray]]:
        read = batch.read()
        losses = [row[0] for row in scoring.batch_losses(pretrained, batch, read, choices)]
        memory = read.memory if isinstance(batch.module, EncoderDecoder) else None
        del read
        return [*zip(losses, generate(batch, memory), strict=True)]

    plan = scoring.plan_batches(inputs, choices, batch_size)
    options: dict[str, Any] = dict(adapters=adapters, batch_size=batch_size, on_batch=on_batch)
    return in_batches(answer, pretrained, inputs, plan, **options)
