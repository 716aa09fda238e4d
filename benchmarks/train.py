"""Training speed: jaxmtl against Hugging Face's T5 with AdamW, in useful (not padding) tokens per second.

Both start from the same weights and draw from the same token store (definition and two positive examples), on the same
device and cores, in training mode with dropout 0.1 and gradient clipping; reading, padding and the optimiser count,
compilation and the first steps do not. Each side has the machine to itself: beside another's gigabytes steps are slower
by a sixth. `ratio` is against random batches padded to their longest row, `ratio_grouped` against our own batches,
which hold rows of like length (the first of a window of a training run's size), padded to their longest row. Before
training both say what they lose on the first grouped batch, in nats per target token, without dropout.

Without arguments: 2 + 2 layers instead of 8 + 8, at most 512 + 64 tokens and 3 batches, to end within a minute;
so few rows cannot be grouped well. With --full: the whole T5 v1.1 small at 512 + 128 tokens, 24 batches. --model and
--dtype choose another size and bfloat16 activations (HF: autocast); on GPUs the share of the speed that a large matrix
product reaches there is given too, counting the operations of padded shapes.
"""

import argparse
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import measuring
import workload

QUICK = dict(layers=2, steps=3, max_input=512, max_target=64, examples=20, num_shapes=3, window=16)
FULL = dict(layers=None, steps=24, max_input=512, max_target=128, examples=100, num_shapes=8, window=256)
RATE = 1e-4
TOLERANCE = 0.01
"""Nats per token that the two first losses may be apart; bfloat16 alone needs more than a few thousandths."""
WEIGHTS = "model"


def main() -> None:
    parser = workload.make_parser(__doc__)
    parser.add_argument(
        "--steps", type=int, help=f"steps of each side (default: {QUICK['steps']}, full {FULL['steps']})"
    )
    parser.add_argument("--model", default="small", choices=("small", "base", "large", "xl"), help="size of T5 v1.1")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of activations")
    arguments = parser.parse_args()
    workload.check(parser, arguments)
    measuring.use_same_settings(arguments.threads)
    sizes = argparse.Namespace(**(FULL if arguments.full else QUICK), batch_size=arguments.batch_size)
    sizes.steps = arguments.steps or sizes.steps
    sizes.model, sizes.dtype = f"t5-v1.1-{arguments.model}", arguments.dtype
    sizes.layers = sizes.layers or config(sizes).num_encoder_layers
    print(f"{sizes.layers} + {sizes.layers} layers, {sizes.steps} steps of {sizes.batch_size} rows", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        limits = (sizes.max_input, sizes.max_target)
        store = workload.make_store(arguments, pathlib.Path(folder), "train", sizes.examples, limits)
        figures = compare(store, sizes)
    measuring.print_result("train", figures | {"sizes": vars(sizes)}, arguments)


def compare(store: pathlib.Path, sizes: argparse.Namespace) -> dict[str, Any]:
    requests = range(sizes.steps)
    with measuring.side(theirs, store, sizes) as peer:
        peer_prepared = peer.ready()
        print(f"HF: ready in {peer_prepared.seconds:.1f} s, {peer_prepared.value}", flush=True)
        asks = {"hf_random": lambda _: peer.ask("random"), "hf_grouped": lambda _: peer.ask("grouped")}
        answers = measuring.in_turns(asks, requests)
        memory = {"hf": peer.peak_memory() / 1e9}
    with measuring.side(ours, store, sizes) as mine:
        prepared = mine.ready()
        print(f"ours: ready in {prepared.seconds:.1f} s, {prepared.value}", flush=True)
        answers |= measuring.in_turns({"ours": mine.ask}, requests)
        memory["ours"] = mine.peak_memory() / 1e9
    speeds = {name: measuring.rate(those, lambda value: value["tokens"]) for name, those in answers.items()}
    print(", ".join(f"{name} {speed:.0f} useful tokens/s" for name, speed in speeds.items()))
    losses = [side.value["first_loss"] for side in (prepared, peer_prepared)]
    if abs(losses[0] - losses[1]) > TOLERANCE:
        raise SystemExit(
            f"the two sides do not compute the same: ours loses {losses[0]}, HF {losses[1]} nats per token"
        )
    reached = measuring.rate(answers["ours"], lambda value: value["operations"])
    print(f"peak memory: ours {memory['ours']:.2f} GB, HF {memory['hf']:.2f} GB")
    return {
        "ratio": speeds["ours"] / speeds["hf_random"],
        "ratio_grouped": speeds["ours"] / speeds["hf_grouped"],
        **{f"{name}_tokens_per_second": speed for name, speed in speeds.items()},
        "ours_teraflops": reached / 1e12,
        "ours_share_of_peak": prepared.value["peak"] and reached / prepared.value["peak"],
        "ours_peak_gigabytes": memory["ours"],
        "hf_peak_gigabytes": memory["hf"],
        "ours_compile_seconds": prepared.value["compile_seconds"],
        "ours_shapes_compiled": prepared.value["shapes"],
        "ours_first_loss": losses[0],
        "hf_first_loss": losses[1],
    }


def make_stream(store: pathlib.Path, sizes: argparse.Namespace, window: int) -> Any:
    """Returns batches of rows that are drawn `window` steps at once, grouped by length; of one step they are random."""
    from jaxmtl.feed.grouping import grouped
    from jaxmtl.feed.store import TokenStore
    from jaxmtl.feed.stream import train_stream
    from jaxmtl.models.flops import forward

    layout = functools.partial(grouped, num_shapes=sizes.num_shapes)
    cost = functools.partial(forward, config(sizes))
    return train_stream(TokenStore(store), batch_size=sizes.batch_size, window=window, layout=layout, cost=cost)


def config(sizes: argparse.Namespace) -> Any:
    from jaxmtl.models.t5_config import named_config

    layers = dict(num_encoder_layers=sizes.layers, num_decoder_layers=sizes.layers) if sizes.layers else {}
    return named_config(sizes.model, vocab_size=workload.VOCABULARY_ROWS, dtype=sizes.dtype, **layers)


def ours(store: pathlib.Path, sizes: argparse.Namespace) -> tuple[Callable[[Any], Any], Any]:
    import jax

    from jaxmtl.models.flops import forward
    from jaxmtl.models.t5 import T5
    from jaxmtl.partitioning import batch_sharding, make_mesh
    from jaxmtl.training import compile, objectives, optim, prefetch, schedules, state, step
    from jaxmtl.weights import load_pretrained

    pretrained = load_pretrained(store / WEIGHTS)
    module = T5(config(sizes))
    plan = state.make_plan(module, optim.adamw, schedules.constant(rate=RATE), make_mesh(data=1))
    stream, rehearsal = (make_stream(store, sizes, sizes.window) for _ in range(2))
    options = dict(objective=objectives.EncoderDecoderLoss(), num_tasks=len(stream.rows.names))
    run_step = compile.CompiledStep(functools.partial(step.train_step, plan=plan, **options), plan, print)
    current = state.first_state(plan, 0, jax.device_put(pretrained.params, plan.shardings.params))

    def learn(batch: Any) -> dict[str, float]:
        nonlocal current
        current, metrics = run_step(current, prefetch.to_devices(batch, batch_sharding(plan.mesh)))
        jax.block_until_ready(current)
        operations = 3 * float(forward(module.config, batch["inputs"].shape[1], batch["targets"].shape[1]))
        loss = float(metrics.sums.loss / metrics.sums.tokens)
        return {"tokens": num_tokens(batch), "loss": loss, "operations": operations * len(batch["inputs"])}

    batches = [next(rehearsal) for _ in range(sizes.steps)]
    losses = objectives.EncoderDecoderLoss()(module, {"params": current.params}, batches[0], dropout_key=None)
    first_loss = float(losses.loss.sum() / losses.tokens.sum())
    for batch in {(batch["inputs"].shape, batch["targets"].shape): batch for batch in batches}.values():
        learn(batch)
    facts = {"compile_seconds": run_step.seconds, "shapes": len(run_step.compilations), "first_loss": first_loss}
    return lambda _: learn(next(stream)), facts | {"peak": matrix_speed(sizes.dtype)}


def matrix_speed(dtype: str) -> float | None:
    """Measures operations per second of a large matrix product, best of ten; None on CPUs."""
    import jax

    if jax.default_backend() == "cpu":
        return None
    width = 8192
    left, right = jax.random.normal(jax.random.key(0), (2, width, width), dtype)
    multiply = jax.jit(jax.numpy.matmul)
    seconds = []
    for _ in range(11):  # the first compiles
        began = time.perf_counter()
        jax.block_until_ready(multiply(left, right))
        seconds.append(time.perf_counter() - began)
    return 2 * width**3 / min(seconds)


def theirs(store: pathlib.Path, sizes: argparse.Namespace) -> tuple[Callable[[Any], Any], Any]:
    import torch

    model = workload.torch_t5(sizes.layers, sizes.model).train()
    model.save_pretrained(store / WEIGHTS)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0, fused=True)
    streams = {"random": make_stream(store, sizes, 1), "grouped": make_stream(store, sizes, sizes.window)}

    def loss_of(batch: Any) -> Any:
        inputs, targets = (to_torch(batch[name], model.device) for name in ("inputs", "targets"))
        labels = targets.masked_fill(targets == 0, -100)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=sizes.dtype == "bfloat16"):
            return model(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=labels).loss

    def learn(batch: Any) -> dict[str, float]:
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return {"tokens": num_tokens(batch), "loss": loss.item()}

    with torch.no_grad():
        model.eval()
        first_loss = float(loss_of(next(make_stream(store, sizes, sizes.window))).item())
    model.train()
    learn(next(make_stream(store, sizes, 1)))
    return lambda kind: learn(next(streams[kind])), {"threads": torch.get_num_threads(), "first_loss": first_loss}


def num_tokens(batch: Any) -> int:
    return int((batch["inputs"] != 0).sum() + batch["loss_mask"].sum())


def to_torch(ids: Any, device: Any) -> Any:
    """Cuts int32 [B, S] to its longest row and copies it to torch."""
    import torch

    return torch.as_tensor(ids[:, : (ids != 0).sum(axis=1).max()], device=device).long()


if __name__ == "__main__":
    main()
