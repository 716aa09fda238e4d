"""Few-shot LoRA of many tasks: all at once in jaxmtl against one task after another in PEFT, in tasks per minute.

Every task learns from its own examples (definition and input) for some epochs of batches of 32 rows, rank 16 on q and
v, dropout 0.05, and is then scored by the loss of other examples of it. Both sides start from the same weights and take
the same examples in the same order; PEFT pads a batch to its longest row. All that a task costs counts, compilation
excepted: each side does some of it once before. Memory is also measured by the number of tasks fitted together.

Without arguments: 6 tasks of 12 examples for 2 epochs, 2 + 2 layers. With --full: 64 tasks of 40 examples for 5 epochs
with the whole T5 v1.1 small; of these PEFT fits every fourth, for it takes half a minute for each.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import measuring
import numpy as np
import workload

QUICK = dict(layers=2, tasks=6, shots=12, held_out=4, epochs=2, every=1, num_shapes=2, counts=(1, 8, 64))
FULL = dict(layers=8, tasks=64, shots=40, held_out=20, epochs=5, every=4, num_shapes=12, counts=(1, 8, 64, 256))
LIMITS = (256, 64)
RANK, ALPHA, DROPOUT, RATE, BATCH_SIZE = 16, 32, 0.05, 1e-3, 32
Task = tuple[str, list[list[int]], list[list[int]]]


def main() -> None:
    parser = workload.make_parser(__doc__)
    parser.add_argument(
        "--num_shapes", type=int, help=f"shapes of ours (default: {QUICK['num_shapes']}, full {FULL['num_shapes']})"
    )
    arguments = parser.parse_args()
    workload.check(parser, arguments)
    measuring.use_same_settings(arguments.threads)
    sizes = argparse.Namespace(**(FULL if arguments.full else QUICK))
    sizes.num_shapes = arguments.num_shapes or sizes.num_shapes
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        count = sizes.shots + sizes.held_out
        store = workload.make_store(arguments, root, "test", count, LIMITS, num_positive=0)
        tasks = read_tasks(store, sizes)
        print(f"{len(tasks)} tasks, {sizes.layers} + {sizes.layers} layers", flush=True)
        figures = compare(root / "model", tasks, sizes)
    measuring.print_result("fewshot", figures | {"sizes": vars(sizes)}, arguments)


def read_tasks(store: pathlib.Path, sizes: argparse.Namespace) -> list[Task]:
    """Returns the first tasks that have enough examples."""
    from jaxmtl.feed.store import TokenStore

    tokens, count = TokenStore(store), sizes.shots + sizes.held_out
    names = [name for name in tokens.task_names("test") if tokens.entry(name, "test").num_examples >= count]
    files = [(name, tokens.examples(name, "test").rows(range(count))) for name in names[: sizes.tasks]]
    plain = lambda rows: [row.tolist() for row in rows]
    return [(name, plain(inputs), plain(targets)) for name, (inputs, targets) in files]


def compare(folder: pathlib.Path, tasks: list[Task], sizes: argparse.Namespace) -> dict[str, Any]:
    numbers = range(0, len(tasks), sizes.every)
    with measuring.side(theirs, folder, tasks, sizes) as peer:
        print(f"PEFT: ready in {peer.ready().seconds:.1f} s", flush=True)  # and has written the weights
        theirs_answers = measuring.in_turns({"peft": peer.ask}, numbers)["peft"]
        peer_memory = peer.peak_memory() / 1e9
    with measuring.side(ours, folder, tasks, sizes) as mine:
        ready = mine.ready()
        print(f"ours: ready in {ready.seconds:.1f} s", flush=True)
        answer = mine.ask(len(tasks))
        memory = mine.peak_memory() / 1e9
    speeds = {
        "ours": 60 * len(tasks) / answer.seconds,
        "peft": 60 * len(numbers) / sum(answer.seconds for answer in theirs_answers),
    }
    print(", ".join(f"{name} {speed:.2f} tasks/minute" for name, speed in speeds.items()))
    losses = {"ours": answer.value, "peft": [answer.value for answer in theirs_answers]}
    return {
        "ratio": speeds["ours"] / speeds["peft"],
        **{f"{name}_tasks_per_minute": speed for name, speed in speeds.items()},
        "ours_loss": float(np.mean([losses["ours"][number] for number in numbers])),
        "peft_loss": float(np.mean(losses["peft"])),
        "ours_peak_gigabytes": memory,
        "peft_peak_gigabytes": peer_memory,
        "ours_seconds_before": ready.seconds,
        "gigabytes_by_tasks": memory_by_tasks(folder, tasks, sizes),
    }


def memory_by_tasks(folder: pathlib.Path, tasks: list[Task], sizes: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Returns gigabytes by the number of tasks fitted together.

    `of_fits` counts adapters, gradients and optimizer; `peak` is what a process held at most that made one step with
    one example of each task, the model, JAX and the compiler's own included.
    """
    from jaxmtl.adapters.lora import LoRA
    from jaxmtl.models.t5 import T5
    from jaxmtl.models.t5_config import named_config
    from jaxmtl.training.fits import FitProgram
    from jaxmtl.training.fitting import fit_bytes
    from jaxmtl.training.tuning import LowRankTuning

    module = T5(named_config("t5-v1.1-small", num_encoder_layers=sizes.layers, num_decoder_layers=sizes.layers))
    size = fit_bytes(FitProgram(module, LowRankTuning(LoRA(rank=RANK, alpha=ALPHA))))
    found = {}
    for count in sizes.counts:
        with measuring.side(one_step, folder, (tasks * count)[:count]) as side:
            side.ready()
            found[count] = dict(of_fits=round(count * size / 1e9, 4), peak=round(side.peak_memory() / 1e9, 3))
        print(f"{count} tasks together: {found[count]}", flush=True)
    return found


def one_step(folder: pathlib.Path, tasks: list[Task]) -> tuple[Callable[[Any], Any], Any]:
    """Fits one example of each task for one step."""
    from jaxmtl.adapters.lora import LoRA
    from jaxmtl.training.fit_rows import Fit
    from jaxmtl.training.fitting import Schedule, fit_all
    from jaxmtl.weights import load_pretrained

    pretrained = load_pretrained(folder)
    fits = [
        Fit(name=name, inputs=inputs[:1], targets=targets[:1], learning_rate=RATE) for name, inputs, targets in tasks
    ]
    lora = LoRA(rank=RANK, alpha=ALPHA, dropout=DROPOUT)
    fit_all(pretrained.module, pretrained.params, fits, lora, Schedule(epochs=1, num_shapes=1))
    return lambda request: None, None


def orders(name: str, count: int, epochs: int) -> list[list[int]]:
    """Returns the places of each step's examples, as jaxmtl draws them."""
    from jaxmtl.training.fit_rows import Fit

    empty = [[1]] * count
    return Fit(name=name, inputs=empty, targets=empty, learning_rate=RATE).steps(epochs, BATCH_SIZE)


def ours(folder: pathlib.Path, tasks: list[Task], sizes: argparse.Namespace) -> tuple[Callable[[int], Any], Any]:
    from jaxmtl.adapters.lora import LoRA
    from jaxmtl.evals.request_adapters import request_adapters
    from jaxmtl.evals.scoring import token_losses
    from jaxmtl.training.fit_rows import Fit
    from jaxmtl.training.fitting import Schedule, fit_all
    from jaxmtl.weights import load_pretrained

    pretrained = load_pretrained(folder)
    lora = LoRA(rank=RANK, alpha=ALPHA, dropout=DROPOUT)
    shots = slice(sizes.shots)
    fits = [
        Fit(name=name, inputs=inputs[shots], targets=targets[shots], learning_rate=RATE)
        for name, inputs, targets in tasks
    ]

    def fit(count: int, epochs: int = sizes.epochs) -> list[float]:
        schedule = Schedule(epochs=epochs, batch_size=BATCH_SIZE, num_shapes=sizes.num_shapes)
        found = fit_all(pretrained.module, pretrained.params, fits[:count], lora, schedule)
        adapters = [one.learnt for one in found for _ in range(sizes.held_out)]
        inputs = [row for _, inputs, _ in tasks[:count] for row in inputs[sizes.shots :]]
        targets = [row for _, _, targets in tasks[:count] for row in targets[sizes.shots :]]
        own = request_adapters(pretrained, adapters, len(inputs))
        losses = [float(row.mean()) for row in token_losses(pretrained, inputs, targets, adapters=own)]
        return np.reshape(losses, (count, sizes.held_out)).mean(axis=1).tolist()

    fit(len(tasks), epochs=2)
    return fit, None


def theirs(folder: pathlib.Path, tasks: list[Task], sizes: argparse.Namespace) -> tuple[Callable[[int], Any], Any]:
    import peft
    import torch

    base = workload.torch_t5(sizes.layers)
    base.save_pretrained(folder)

    def padded(rows: list[list[int]], filler: int) -> Any:
        longest = max(map(len, rows))
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=base.device)

    def forward(model: Any, inputs: list[list[int]], targets: list[list[int]]) -> Any:
        ids = padded(inputs, 0)
        return model(input_ids=ids, attention_mask=(ids != 0).long(), labels=padded(targets, -100))

    @torch.inference_mode()
    def loss(model: Any, inputs: list[list[int]], targets: list[list[int]]) -> float:
        model.eval()
        logits = forward(model, inputs, targets).logits
        labels = padded(targets, -100)
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return float((nll.sum(1) / (labels != -100).sum(1)).mean())

    def fit(number: int) -> float:
        name, inputs, targets = tasks[number]
        config = peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"
        )
        model = peft.get_peft_model(base, config)
        for part in model.modules():  # the base model's own dropout is off on both sides
            part.training = isinstance(part, torch.nn.Dropout) and part.p == DROPOUT
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
        for step in orders(name, sizes.shots, sizes.epochs):
            forward(model, [inputs[i] for i in step], [targets[i] for i in step]).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        found = loss(model, inputs[sizes.shots :], targets[sizes.shots :])
        model.unload()
        return found

    fit(0)
    return fit, None


if __name__ == "__main__":
    main()
