"""Rank classification: jaxmtl against Hugging Face's T5, in examples per second.

Each example of ANLI r1 (GPT-3 style prompt of P3, no end token, at most 256 tokens) has three choices, scored by the
sum of their tokens' log-probabilities, with the same random weights, read from the same folder, in the same batches,
longest first. `ratio` is against the encoder repeated for every choice, as T0's evaluation does it, `ratio_reuse`
against an encoder that runs once and whose states are repeated by hand. `max_difference` is the largest difference of
two scores, divided by the largest score.

Without arguments: 96 examples and 2 + 2 layers. With --full: 400 examples, the whole T5 v1.1 small.
"""

import argparse
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import measuring
import numpy as np
import workload

QUICK = dict(layers=2, examples=96)
FULL = dict(layers=8, examples=400)
ANLI = workload.REAL_DATA / "p3_t0" / "anli_dev"
PROMPT = "{premise}\nQuestion: {hypothesis} True, False, or Neither?"
CHOICES = ("True", "Neither", "False")
MAX_INPUT = 256
TOLERANCE = 1e-4  # float32 sums of two frameworks in another order

Request = tuple[list[list[int]], list[list[list[int]]]]
"""Token ids of a batch's inputs, and of the choices of each."""


def main() -> None:
    parser = workload.make_parser(__doc__, "anli", ANLI, "r1_dev.jsonl")
    arguments = parser.parse_args()
    workload.check(parser, arguments)
    measuring.use_same_settings(arguments.threads)
    sizes = argparse.Namespace(**(FULL if arguments.full else QUICK))
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        batches = make_batches(arguments, root, sizes.examples)
        print(f"{sizes.layers} + {sizes.layers} layers, {sum(len(rows) for rows, _ in batches)} examples", flush=True)
        figures = compare(root / "model", sizes.layers, batches)
    measuring.print_result("rank", figures | {"sizes": vars(sizes)}, arguments)
    if figures["max_difference"] > TOLERANCE:
        raise SystemExit(
            f"error: scores differ by {figures['max_difference']:.1e} of the largest; expected {TOLERANCE}"
        )


def compare(folder: pathlib.Path, layers: int, batches: list[Request]) -> dict[str, Any]:
    with measuring.side(theirs, folder, layers, batches) as peer:
        print(f"HF: ready in {peer.ready().seconds:.1f} s", flush=True)  # and has written the weights
        with measuring.side(ours, folder, batches) as mine:
            print(f"ours: ready in {mine.ready().seconds:.1f} s", flush=True)
            asks = {
                "ours": mine.ask,
                "hf": lambda number: peer.ask(("repeat", number)),
                "hf_reuse": lambda number: peer.ask(("reuse", number)),
            }
            answers = measuring.in_turns(asks, range(len(batches)))
            return summary(answers, {"ours": mine.peak_memory() / 1e9, "hf": peer.peak_memory() / 1e9})


def summary(answers: dict[str, list[measuring.Answer]], memory: dict[str, float]) -> dict[str, Any]:
    speeds = {name: measuring.rate(those, len) for name, those in answers.items()}
    scores = {name: np.concatenate([np.ravel(answer.value) for answer in those]) for name, those in answers.items()}
    difference = max(np.abs(scores[name] - scores["ours"]).max() for name in ("hf", "hf_reuse"))
    print(", ".join(f"{name} {speed:.2f} examples/s" for name, speed in speeds.items()))
    return {
        "ratio": speeds["ours"] / speeds["hf"],
        "ratio_reuse": speeds["ours"] / speeds["hf_reuse"],
        "max_difference": float(difference / np.abs(scores["ours"]).max()),
        **{f"{name}_examples_per_second": speed for name, speed in speeds.items()},
        **{f"{name}_peak_gigabytes": size for name, size in memory.items()},
    }


def make_batches(arguments: argparse.Namespace, folder: pathlib.Path, most: int) -> list[Request]:
    """Returns batches of examples, longest first."""
    rows = anli_rows(arguments, most) if arguments.data == "anli" else toy_rows(arguments, folder, most)
    rows.sort(key=lambda row: len(row[0]), reverse=True)
    parts = (rows[start : start + arguments.batch_size] for start in range(0, len(rows), arguments.batch_size))
    return [([inputs for inputs, _ in part], [choices for _, choices in part]) for part in parts]


def anli_rows(arguments: argparse.Namespace, most: int) -> list[tuple[list[int], list[list[int]]]]:
    from jaxmtl.tokenizers import load_tokenizer

    lines = (arguments.anli / workload.NEEDED["anli"]).read_text(encoding="utf-8").splitlines()
    tokenizer = load_tokenizer(arguments.vocabulary)
    texts = [PROMPT.format(**json.loads(line)) for line in lines[:most]]
    choices = tokenizer.encode_batch(CHOICES)
    return [(ids[:MAX_INPUT], choices) for ids in tokenizer.encode_batch(texts, add_special_tokens=False)]


def toy_rows(arguments: argparse.Namespace, folder: pathlib.Path, most: int) -> list[tuple[list[int], list[list[int]]]]:
    """Returns embedded examples; choices are their own target and those of two others."""
    tasks, tokenizer = workload.tasks_and_tokenizer(arguments, folder, "test", most)
    examples = [example for task in tasks for example in task.split("test")][:most]
    targets = tokenizer.encode_batch([example.targets[0] for example in examples])
    choices = [[targets[(number + step) % len(targets)] for step in range(3)] for number in range(len(targets))]
    return list(zip(tokenizer.encode_batch([example.inputs for example in examples]), choices, strict=True))


def ours(folder: pathlib.Path, batches: list[Request]) -> tuple[Callable[[int], Any], Any]:
    from jaxmtl.evals.scoring import choice_losses, scores_of
    from jaxmtl.weights import load_pretrained

    pretrained = load_pretrained(folder)

    def score(number: int) -> list[np.ndarray]:
        inputs, choices = batches[number]
        return scores_of(choice_losses(pretrained, inputs, choices, batch_size=len(inputs)))

    for number in range(len(batches)):
        score(number)
    return score, None


def theirs(folder: pathlib.Path, layers: int, batches: list[Request]) -> tuple[Callable[[tuple[str, int]], Any], Any]:
    import torch

    model = workload.torch_t5(layers).eval()
    model.save_pretrained(folder)

    def padded(rows: list[list[int]]) -> Any:
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)

    def inputs_of(rows: list[list[int]], count: int, kind: str) -> dict[str, Any]:
        ids = padded(rows)
        mask = (ids != 0).long()
        if kind == "repeat":
            repeated = (part.repeat_interleave(count, dim=0) for part in (ids, mask))
            return dict(zip(("input_ids", "attention_mask"), repeated, strict=True))
        states = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        repeated = (part.repeat_interleave(count, dim=0) for part in (states, mask))
        return {"encoder_outputs": (next(repeated),), "attention_mask": next(repeated)}

    @torch.inference_mode()
    def score(request: tuple[str, int]) -> list[list[float]]:
        kind, number = request
        rows, choices = batches[number]
        count = len(choices[0])
        flat = [ids for options in choices for ids in options]
        targets = padded(flat)
        decoder_inputs = torch.nn.functional.pad(targets[:, :-1], (1, 0))  # T5 starts from its padding id
        logits = model(**inputs_of(rows, count, kind), decoder_input_ids=decoder_inputs).logits
        picked = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        real = torch.arange(targets.shape[1]) < torch.tensor([len(ids) for ids in flat])[:, None]
        return picked.where(real.to(picked.device), 0.0).sum(dim=1).reshape(len(rows), count).tolist()

    score(("repeat", 0))
    score(("reuse", 0))
    return score, None


if __name__ == "__main__":
    main()
