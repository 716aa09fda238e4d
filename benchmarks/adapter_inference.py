"""A hypernetwork that reads the instruction once, against the same model that reads it before every input.

100 examples of one test task are scored (definition and two positive examples as instruction): the task whose examples
cost about the mean of all tasks when the instruction is concatenated. `flops_ratio` is counted from the real lengths of
this task, `flops_ratio_of_all` of all test tasks; `seconds_ratio` is measured, reading the instruction included. With
--full texts are generated as well (`generation_ratio`). Lower is better.

Without arguments: T5 v1.1 base with 2 + 2 layers. With --full: all of its layers, the median of three rounds.
"""

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import measuring
import numpy as np
import workload

QUICK = dict(layers=2, rounds=2, kinds=("score",))
FULL = dict(layers=12, rounds=3, kinds=("score", "generate"))
EXAMPLES, MAX_NEW, SPREAD = 100, 16, 0.02
MODEL = "t5-v1.1-base"
PRESETS = ("tagi", "tagi_code", "hint", "hypertuning", "hypter")
"""Those that read instructions."""


@dataclasses.dataclass(frozen=True)
class Work:
    """One task: its instruction, and the inputs and targets of its examples as texts; lengths int [examples, 3]."""

    name: str
    instruction: str
    inputs: Sequence[str]
    targets: Sequence[str]
    lengths: np.ndarray


def main() -> None:
    parser = workload.make_parser(__doc__)
    parser.add_argument(
        "--preset", choices=PRESETS, default="tagi", help="hypernetwork: one of jaxmtl.adapters.hyper_presets"
    )
    arguments = parser.parse_args()
    workload.check(parser, arguments)
    measuring.use_same_settings(arguments.threads)
    sizes = argparse.Namespace(**(FULL if arguments.full else QUICK))
    with tempfile.TemporaryDirectory() as folder:
        tasks, tokenizer = workload.tasks_and_tokenizer(arguments, pathlib.Path(folder), "test", EXAMPLES)
        works = [work_of(task, tokenizer) for task in tasks]
        vocabulary = pathlib.Path(folder) if arguments.data == "toy" else arguments.vocabulary
        figures = compare(works, vocabulary, sizes.layers, sizes, arguments)
    measuring.print_result("adapter_inference", figures | {"sizes": vars(sizes)}, arguments)


def work_of(task: Any, tokenizer: Any) -> Work:
    from jaxmtl.tasks import prompts

    examples = task.split("test")[:EXAMPLES]
    instruction = prompts.instruction_only(task, examples[0], num_positive=2, tokenizer=tokenizer)
    inputs = [prompts.tk_instruct(task, one, definition=False, tokenizer=tokenizer) for one in examples]
    targets = [one.targets[0] for one in examples]
    count = lambda texts: [len(ids) for ids in tokenizer.encode_batch(texts)]
    lengths = np.array([count([instruction] * len(inputs)), count(inputs), count(targets)]).T
    return Work(task.name, instruction, inputs, targets, lengths)


def compare(works: Sequence[Work], vocabulary: pathlib.Path, layers: int, sizes: Any, arguments: Any) -> dict[str, Any]:
    module = module_of(layers, arguments.preset)
    costs = np.array([flops_of(module, work) for work in works])
    each = costs[:, 1] / [len(work.inputs) for work in works]
    # Tasks with fewer examples read the instruction for less.
    whole = np.array([len(work.inputs) == max(len(other.inputs) for other in works) for work in works])
    chosen = int(np.argmin(np.where(whole, np.abs(each - each.mean()), np.inf)))
    work, (ours_flops, theirs_flops) = works[chosen], costs[chosen]
    means = ", ".join(f"{mean:.0f}" for mean in work.lengths.mean(0))
    print(f"{work.name}: {len(work.inputs)} examples; instruction, input, target: {means} tokens", flush=True)
    answers: dict[str, Any] = {}
    with (
        measuring.side(concatenated, work, vocabulary, layers, arguments) as peer,
        measuring.side(instructed, work, vocabulary, layers, arguments) as mine,
    ):
        for name, side in (("concatenated", peer), ("instructed", mine)):
            print(f"{name}: ready in {side.ready().seconds:.1f} s", flush=True)
        for kind in sizes.kinds:
            # The first round compiles.
            asked = measuring.in_turns({"instructed": mine.ask, "concatenated": peer.ask}, [kind] * (1 + sizes.rounds))
            answers[kind] = {name: float(np.median([one.seconds for one in own[1:]])) for name, own in asked.items()}
    score = answers["score"]
    generated = answers.get("generate")
    return {
        "flops_ratio": ours_flops / theirs_flops,
        "seconds_ratio": score["instructed"] / score["concatenated"],
        "flops_ratio_of_all": float(costs[:, 0].sum() / costs[:, 1].sum()),
        "instructed_seconds": score["instructed"],
        "concatenated_seconds": score["concatenated"],
        **({} if generated is None else {"generation_ratio": generated["instructed"] / generated["concatenated"]}),
        "task": work.name,
        "num_tasks": len(works),
    }


def module_of(layers: int, preset: str) -> Any:
    from jaxmtl.adapters.hyper_model import HyperModel
    from jaxmtl.adapters.hyper_presets import PRESETS
    from jaxmtl.models.t5 import T5
    from jaxmtl.models.t5_config import named_config

    config = named_config(MODEL, num_encoder_layers=layers, num_decoder_layers=layers)
    hyper = PRESETS[preset]()
    base = T5(config)
    return HyperModel(hyper, base, base if hyper.encoder in ("frozen", "separate") else None)


def flops_of(module: Any, work: Work) -> tuple[float, float]:
    """Counts all examples of a task, the instruction read once, and concatenated."""
    from jaxmtl.adapters import hyper_flops

    instruction, source, target = work.lengths.T
    once = float(hyper_flops.reading(module, instruction[0]))
    ours = once + float(hyper_flops.answering(module, instruction, source, target).sum())
    return ours, float(hyper_flops.concatenated(module.config, instruction, source, target).sum())


def loaded(vocabulary: pathlib.Path, layers: int, preset: str) -> tuple[Any, Any]:
    """Returns a model and its hypernetwork with random weights."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from jaxmtl.adapters.hypernet import Hyper
    from jaxmtl.models.initial import abstract_params
    from jaxmtl.tokenizers import load_tokenizer
    from jaxmtl.weights import Pretrained

    module = module_of(layers, preset)
    rng = np.random.default_rng(0)
    drawn = lambda leaf: jnp.asarray(SPREAD * rng.standard_normal(leaf.shape, np.float32))
    params = jax.tree.map(drawn, nn.unbox(abstract_params(module)))  # compiling the models' own start takes longer
    pretrained = Pretrained(module.config, module.base, params.pop("base"), load_tokenizer(vocabulary))
    return pretrained, Hyper(config=module.hyper, params=params, reader=module.reader)


def answer(pretrained: Any, kind: str, inputs: Sequence[str], work: Work, batch_size: int, adapter: Any) -> None:
    from jaxmtl.evals.generation import generate
    from jaxmtl.evals.scoring import loss

    if kind == "score":
        loss(pretrained, inputs, work.targets, adapter=adapter, batch_size=batch_size)
    else:
        generate(pretrained, inputs, adapter=adapter, max_tokens=MAX_NEW, batch_size=batch_size)


def instructed(work: Work, vocabulary: pathlib.Path, layers: int, arguments: Any) -> tuple[Callable[[str], None], None]:
    from jaxmtl.adapters.hypernet import InstructionCache

    pretrained, hyper = loaded(vocabulary, layers, arguments.preset)

    def run(kind: str) -> None:
        cache = InstructionCache(hyper, pretrained)  # a new one: reading counts
        adapter = cache.of([work.instruction] * len(work.inputs))
        answer(pretrained, kind, work.inputs, work, arguments.batch_size, adapter)

    return run, None


def concatenated(
    work: Work, vocabulary: pathlib.Path, layers: int, arguments: Any
) -> tuple[Callable[[str], None], None]:
    pretrained, _ = loaded(vocabulary, layers, arguments.preset)
    inputs = [work.instruction + text for text in work.inputs]

    def run(kind: str) -> None:
        answer(pretrained, kind, inputs, work, arguments.batch_size, None)

    return run, None


if __name__ == "__main__":
    main()
