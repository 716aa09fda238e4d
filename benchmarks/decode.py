"""Generation, greedy or with beams: jaxmtl against Hugging Face's `generate`, in examples per second.

Prompts are the test tasks' (definition and two positive examples, at most 512 tokens), longest first, in the same
batches; both generate 32 tokens with the same random weights, read from the same folder, and never an end token.
`identical` is the share of examples for which both give the same tokens.

Without arguments: 64 examples of 2 + 2 layers. With --full: 5 of each task, with the whole T5 v1.1 small. With
--beams N: beam search with N beams instead of greedy decoding.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import measuring
import workload

QUICK = dict(layers=2, examples=1, most=64)
FULL = dict(layers=8, examples=5, most=1 << 20)
MAX_INPUT, MAX_NEW = 512, 32


def main() -> None:
    parser = workload.make_parser(__doc__)
    parser.add_argument("--beams", type=int, default=1, help="open beams; 1 is greedy (default)")
    arguments = parser.parse_args()
    workload.check(parser, arguments)
    measuring.use_same_settings(arguments.threads)
    sizes = argparse.Namespace(**(FULL if arguments.full else QUICK))
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        store = workload.make_store(arguments, root, "test", sizes.examples, (MAX_INPUT, 128))
        batches = make_batches(store, sizes.most, arguments.batch_size)
        print(f"{sizes.layers} + {sizes.layers} layers, {sum(map(len, batches))} prompts", flush=True)
        figures = compare(root / "model", sizes.layers, batches, arguments.beams)
    measuring.print_result("decode", figures | {"sizes": vars(sizes)}, arguments)


def compare(folder: pathlib.Path, layers: int, batches: list[list[list[int]]], beams: int = 1) -> dict[str, Any]:
    with measuring.side(theirs, folder, layers, batches, beams) as peer:
        print(f"HF: ready in {peer.ready().seconds:.1f} s", flush=True)  # and has written the weights
        with measuring.side(ours, folder, batches, beams) as mine:
            print(f"ours: ready in {mine.ready().seconds:.1f} s", flush=True)
            answers = measuring.in_turns({"ours": mine.ask, "hf": peer.ask}, range(len(batches)))
            return summary(answers, {"ours": mine.peak_memory() / 1e9, "hf": peer.peak_memory() / 1e9})


def summary(answers: dict[str, list[measuring.Answer]], memory: dict[str, float]) -> dict[str, Any]:
    speeds = {name: measuring.rate(those, len) for name, those in answers.items()}
    texts = {name: [row for answer in those for row in answer.value] for name, those in answers.items()}
    same = [mine == peer for mine, peer in zip(texts["ours"], texts["hf"], strict=True)]
    print(", ".join(f"{name} {speeds[name]:.2f} examples/s, peak memory {memory[name]:.2f} GB" for name in speeds))
    return {
        "ratio": speeds["ours"] / speeds["hf"],
        "identical": sum(same) / len(same),
        **{f"{name}_examples_per_second": speed for name, speed in speeds.items()},
        **{f"{name}_peak_gigabytes": size for name, size in memory.items()},
    }


def make_batches(store: pathlib.Path, most: int, batch_size: int) -> list[list[list[int]]]:
    """Returns batches of prompts, longest first; if there are more than `most`, evenly taken from all tasks."""
    from jaxmtl.feed.store import TokenStore

    tokens = TokenStore(store)
    files = [tokens.examples(name, "test") for name in tokens.task_names("test")]
    rows = [file.row(index)[0].tolist() for file in files for index in range(len(file))]
    chosen = [rows[number * len(rows) // min(most, len(rows))] for number in range(min(most, len(rows)))]
    chosen.sort(key=len, reverse=True)
    return [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]


def ours(folder: pathlib.Path, batches: list[list[list[int]]], beams: int) -> tuple[Callable[[int], Any], Any]:
    from jaxmtl.evals.decoding import Decoding
    from jaxmtl.evals.generation import generate_ids
    from jaxmtl.evals.requests import bucket
    from jaxmtl.weights import load_pretrained

    pretrained = load_pretrained(folder)
    options: dict[str, Any] = dict(
        max_tokens=MAX_NEW, decoding=Decoding(method="beam", num_beams=beams) if beams > 1 else Decoding()
    )

    def generate(number: int) -> list[list[int]]:
        rows = generate_ids(pretrained, batches[number], batch_size=len(batches[number]), **options)
        return [row.tolist() for row in rows]

    shapes = {(len(batch), bucket(len(batch[0]))): number for number, batch in enumerate(batches)}
    for number in shapes.values():
        generate(number)
    return generate, {"shapes": len(shapes)}


def theirs(
    folder: pathlib.Path, layers: int, batches: list[list[list[int]]], beams: int
) -> tuple[Callable[[int], Any], Any]:
    import torch

    model = workload.torch_t5(layers).eval()
    model.save_pretrained(folder)

    @torch.inference_mode()
    def generate(number: int) -> list[list[int]]:
        longest = max(map(len, batches[number]))
        inputs = torch.tensor([row + [0] * (longest - len(row)) for row in batches[number]], device=model.device)
        options = dict(max_new_tokens=MAX_NEW, do_sample=False, num_beams=beams)
        return model.generate(input_ids=inputs, attention_mask=(inputs != 0).long(), **options)[:, 1:].tolist()

    generate(len(batches) - 1)
    return generate, None


if __name__ == "__main__":
    main()
