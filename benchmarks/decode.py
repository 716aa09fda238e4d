"""Generation, greedy and with beams: jaxmtl against Hugging Face's `generate`, in examples per second.

Prompts are the test tasks' (definition and two positive examples, at most 512 tokens), longest first, in the same
batches; both generate 128 tokens, Tk-Instruct's limit, with the same random weights, read from the same folder, and
never an end token. T5's tokens serve all families: speed does not depend on what they mean. Each family is measured
with every number of beams, each batch several times over, and the median time counts: single times on shared machines
swing by a tenth and more. `identical` is the share of examples for which both give the same tokens. `cells`
holds the figures of all families and numbers of beams; in front stand those of the cell with the least `ratio`.

Without arguments: 16 examples and 2 layers a side. With --full: 32 examples, and the whole T5 v1.1 small, BART base and
GPT-2 (124M).
"""

import argparse
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import measuring
import workload

QUICK = dict(layers=dict.fromkeys(workload.FAMILIES, 2), examples=1, most=16, repeats=3, max_new=128)
FULL = dict(layers={"t5": 8, "bart": 6, "gpt2": 12}, examples=1, most=32, repeats=3, max_new=128)
MAX_INPUT = 512
Batches = list[list[list[int]]]


def main() -> None:
    parser = workload.make_parser(__doc__)
    families = [*workload.FAMILIES]
    parser.add_argument("--families", nargs="+", choices=families, default=families, help="models to measure")
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 4], help="numbers of open beams; 1 is greedy")
    arguments = parser.parse_args()
    workload.check(parser, arguments)
    measuring.use_same_settings(arguments.threads)
    sizes = argparse.Namespace(**(FULL if arguments.full else QUICK))
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        store = workload.make_store(arguments, root, "test", sizes.examples, (MAX_INPUT, 128))
        batches = make_batches(store, sizes.most, arguments.batch_size)
        print(f"{sum(map(len, batches))} prompts", flush=True)
        cells: dict[str, Any] = {}
        for family in arguments.families:
            cells |= compare(root / family, family, sizes, batches, arguments.beams)
    least = min(cells, key=lambda name: cells[name]["ratio"])
    measuring.print_result("decode", cells[least] | {"cell": least, "cells": cells, "sizes": vars(sizes)}, arguments)


def compare(
    folder: pathlib.Path, family: str, sizes: argparse.Namespace, batches: Batches, beams: list[int]
) -> dict[str, Any]:
    """Returns figures by family and number of beams."""
    requests = [(number, count) for count in beams for number in range(len(batches))]
    with measuring.side(theirs, folder, family, batches, beams, sizes) as peer:
        print(f"{family}, HF: ready in {peer.ready().seconds:.1f} s", flush=True)  # and has written the weights
        with measuring.side(ours, folder, family, batches, beams, sizes) as mine:
            print(f"{family}, ours: ready in {mine.ready().seconds:.1f} s", flush=True)
            asked = measuring.in_turns({"ours": mine.ask, "hf": peer.ask}, requests * sizes.repeats)
            memory = {"ours": mine.peak_memory() / 1e9, "hf": peer.peak_memory() / 1e9}
    answers = {name: measuring.medians(those, sizes.repeats) for name, those in asked.items()}
    cells = {}
    for count in beams:
        chosen = [index for index, request in enumerate(requests) if request[1] == count]
        of_count = {name: [those[index] for index in chosen] for name, those in answers.items()}
        name = f"{family}_{'greedy' if count == 1 else f'beam{count}'}"
        cells[name] = summary(name, of_count, memory)
    return cells


def summary(cell: str, answers: dict[str, list[measuring.Answer]], memory: dict[str, float]) -> dict[str, Any]:
    speeds = {name: measuring.rate(those, len) for name, those in answers.items()}
    texts = {name: [row for answer in those for row in answer.value] for name, those in answers.items()}
    same = [mine == peer for mine, peer in zip(texts["ours"], texts["hf"], strict=True)]
    shown = ", ".join(f"{name} {speeds[name]:.2f} examples/s, peak memory {memory[name]:.2f} GB" for name in speeds)
    print(f"{cell}: {shown}", flush=True)
    return measuring.rounded(
        {
            "ratio": speeds["ours"] / speeds["hf"],
            "identical": sum(same) / len(same),
            **{f"{name}_examples_per_second": speed for name, speed in speeds.items()},
            **{f"{name}_peak_gigabytes": size for name, size in memory.items()},
        }
    )


def make_batches(store: pathlib.Path, most: int, batch_size: int) -> list[list[list[int]]]:
    """Returns batches of prompts, longest first; if there are more than `most`, evenly taken from all tasks."""
    from jaxmtl.feed.store import TokenStore

    tokens = TokenStore(store)
    files = [tokens.examples(name, "test") for name in tokens.task_names("test")]
    rows = [file.row(index)[0].tolist() for file in files for index in range(len(file))]
    chosen = [rows[number * len(rows) // min(most, len(rows))] for number in range(min(most, len(rows)))]
    chosen.sort(key=len, reverse=True)
    return [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]


def ours(
    folder: pathlib.Path, family: str, batches: Batches, beams: list[int], sizes: argparse.Namespace
) -> tuple[Callable[[tuple[int, int]], Any], Any]:
    from jaxmtl.evals.decoding import Decoding
    from jaxmtl.evals.generation import generate_ids
    from jaxmtl.evals.requests import bucket
    from jaxmtl.weights import load_pretrained

    pretrained = load_pretrained(folder)

    def generate(request: tuple[int, int]) -> list[list[int]]:
        number, count = request
        batch = workload.in_vocabulary(family, batches[number])
        decoding = Decoding(method="beam", num_beams=count) if count > 1 else Decoding()
        rows = generate_ids(pretrained, batch, max_tokens=sizes.max_new, decoding=decoding, batch_size=len(batch))
        return [row.tolist() for row in rows]

    shapes = {(len(batch), bucket(len(batch[0]))): number for number, batch in enumerate(batches)}
    for number in shapes.values():
        for count in beams:
            generate((number, count))
    return generate, {"shapes": len(shapes) * len(beams)}


def theirs(
    folder: pathlib.Path, family: str, batches: Batches, beams: list[int], sizes: argparse.Namespace
) -> tuple[Callable[[tuple[int, int]], Any], Any]:
    import torch

    model = workload.torch_model(family, sizes.layers[family]).eval()
    model.save_pretrained(folder)

    @torch.inference_mode()
    def generate(request: tuple[int, int]) -> list[list[int]]:
        number, count = request
        batch = workload.in_vocabulary(family, batches[number])
        inputs, mask = (torch.tensor(rows, device=model.device) for rows in padded(batch, in_front=family == "gpt2"))
        options = dict(max_new_tokens=sizes.max_new, do_sample=False, num_beams=count)
        tokens = model.generate(input_ids=inputs, attention_mask=mask, **options)
        return tokens[:, -sizes.max_new :].tolist()

    for count in beams:
        generate((len(batches) - 1, count))
    return generate, None


def padded(batch: list[list[int]], *, in_front: bool) -> tuple[list[list[int]], list[list[int]]]:
    """Returns ids and mask of rows of one length; a decoder-only model goes on at their ends, so it pads in front."""
    longest = max(map(len, batch))
    join = lambda row, padding: padding + row if in_front else row + padding
    ids = [join(row, [0] * (longest - len(row))) for row in batch]
    return ids, [join([1] * len(row), [0] * (longest - len(row))) for row in batch]


if __name__ == "__main__":
    main()
