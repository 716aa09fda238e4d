"""Loading: the most host memory that it takes to load a sharded T5 from safetensors, in copies of the model.

A process of its own loads a small model, which also imports and traces all there is, and then the large one: `ratio`
is what the process grew by at most, over the bytes of the tensors. 1.0 means that nothing but the loaded model was
held. `ratio_split` is the same with the model split over 8 devices of this host, `ratio_bfloat16` with the weights cast
to half their size, over the bytes stored. Linux only: elsewhere no process tells its peak since a point in time.
"""

import argparse
import gc
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import measuring

SIZES = {"embed_dim": 1024, "num_heads": 16, "head_dim": 64, "mlp_dim": 2816, "vocab_size": 32128}
SMALL = {"embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32, "vocab_size": 64}
LAYERS, LAYERS_FULL = 2, 8
SHARDS = 6
STATUS, FORGET_PEAK = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
SIDES = {"ratio": (1, "float32"), "ratio_split": (8, "float32"), "ratio_bfloat16": (1, "bfloat16")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="measure the numbers to publish: 1 GB, not 0.45 GB")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="cores that each process uses")
    arguments = parser.parse_args()
    if not FORGET_PEAK.exists():
        parser.error(f"{FORGET_PEAK} is missing: only Linux tells a process's peak memory since a point in time")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(pathlib.Path(folder), SIZES, LAYERS_FULL if arguments.full else LAYERS, SIDES)
    measuring.print_result("load", figures, arguments)


def compare(
    folder: pathlib.Path, sizes: Mapping[str, Any], layers: int, sides: Mapping[str, tuple[int, str]]
) -> dict[str, float]:
    """Writes two models and loads them in each way, each in a process of its own.

    Args:
      folder: where to write.
      sizes: fields of `T5Config`.
      layers: layers of encoder and decoder.
      sides: name of a ratio to the number of devices and the dtype to load with.

    Returns:
      The figures to print.
    """
    write_model(folder / "small", SMALL, 1)
    size = write_model(folder / "large", sizes, layers)
    print(f"{size / 1e9:.2f} GB in {len(list((folder / 'large').glob('*.safetensors')))} files", flush=True)
    figures = {"gigabytes": size / 1e9}
    for name, (num_devices, dtype) in sides.items():
        with measuring.side(loader, str(folder / "small"), num_devices, dtype) as side:
            side.ready()
            answer = side.ask(str(folder / "large"))
        figures |= {name: answer.value / size, name.replace("ratio", "seconds"): answer.seconds}
    return figures


def write_model(folder: pathlib.Path, sizes: Mapping[str, Any], layers: int) -> int:
    """Writes a T5 v1.1 of known numbers in shards, one tensor in memory at a time.

    Args:
      folder: where to write.
      sizes: fields of `T5Config`.
      layers: layers of encoder and decoder.

    Returns:
      Bytes of all tensors.
    """
    import flax.linen as nn
    import jax
    import numpy as np

    from jaxmtl.models.initial import abstract_params
    from jaxmtl.models.t5 import T5
    from jaxmtl.models.t5_config import T5Config
    from jaxmtl.weights import key_table, t5_map, write_config
    from jaxmtl.weights.safetensors_io import write_tensors

    config = T5Config(num_encoder_layers=layers, num_decoder_layers=layers, **sizes)
    row = lambda shape: np.linspace(-1, 1, shape[-1], dtype=np.float32)
    params = jax.tree.map(
        lambda leaf: np.broadcast_to(row(leaf.shape), leaf.shape), nn.unbox(abstract_params(T5(config)))
    )
    tensors = lambda: key_table.to_theirs(t5_map.key_table(config), params)
    sizes_of = {name: tensor.nbytes for name, tensor in tensors()}
    total = sum(sizes_of.values())
    write_tensors(folder, sizes_of, tensors(), max_shard_bytes=total // SHARDS)
    write_config(folder, config)
    return total


def loader(small: str, num_devices: int, dtype: str) -> tuple[Callable[[str], int], Any]:
    """Returns a function that loads a folder and gives the bytes that the process grew by at most meanwhile."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)
    from jaxmtl.partitioning import make_mesh
    from jaxmtl.weights import load_pretrained

    mesh = make_mesh(fsdp=num_devices)
    jax.block_until_ready(load_pretrained(small, dtype=dtype, mesh=mesh).params)

    def load(folder: str) -> int:
        gc.collect()
        FORGET_PEAK.write_text("5")
        before = _memory("VmHWM")
        pretrained = load_pretrained(folder, dtype=dtype, mesh=mesh)
        jax.block_until_ready(pretrained.params)
        return _memory("VmHWM") - before

    return load, None


def _memory(field: str) -> int:
    """Returns a field of this process's status in bytes."""
    lines = STATUS.read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
