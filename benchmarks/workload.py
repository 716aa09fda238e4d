"""What both sides of a benchmark work on: the token store of a mixture, and a T5 of one shape with random weights."""

import argparse
import functools
import importlib.util
import os
import pathlib
import sys
from typing import Any

REAL_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
TASK_LISTS = {
    "train": ("train_tasks_held.txt", "splits/default/train_tasks.txt"),
    "test": ("test_tasks_held.txt", "splits/default/test_tasks.txt"),
}
NEEDED = {"sni": "tasks", "anli": "r1_dev.jsonl"}  # what the folder of a data set holds
VOCABULARY_ROWS = 32128
TOY_EXAMPLES = 100


def make_parser(
    description: str | None,
    data: str = "sni",
    folder: pathlib.Path = REAL_DATA / "sni",
    content: str = "tasks/ and task lists",
) -> argparse.ArgumentParser:
    """Returns a parser with the flags that every benchmark of a model has; `check` looks at them.

    Args:
      description: what the benchmark does.
      data: the real data, a key of `NEEDED`.
      folder: where it usually is.
      content: what the folder holds.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--full", action="store_true", help="measure the numbers to publish; takes many minutes")
    parser.add_argument("--data", choices=(data, "toy"), default=data, help="real tasks, or the embedded ones")
    parser.add_argument(f"--{data}", default=folder, type=pathlib.Path, help=f"folder with {content}")
    parser.add_argument(
        "--vocabulary", default=REAL_DATA / "tokenizers" / "t5", type=pathlib.Path, help=f"T5's, for {data}"
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="cores that each side uses")
    parser.add_argument("--batch_size", type=int, default=16, help="rows of a batch")
    return parser


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the process with exit code 2 where the data or the peer's packages are missing."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            parser.error(f"package {package} is missing; `make parity` installs what the benchmarks need")
    if arguments.data == "toy":
        return
    for path in (getattr(arguments, arguments.data) / NEEDED[arguments.data], arguments.vocabulary):
        if not path.exists():
            parser.error(
                f"{path} is not there; give --{arguments.data} and --vocabulary, or use the embedded tasks: --data toy"
            )


def make_store(
    arguments: argparse.Namespace,
    folder: pathlib.Path,
    split: str,
    max_examples: int,
    limits: tuple[int, int],
    num_positive: int = 2,
) -> pathlib.Path:
    """Tokenises definition and positive examples of each task and writes the token store.

    Args:
      arguments: the flags.
      folder: where to write.
      split: "train" or "test".
      max_examples: examples of each task.
      limits: most tokens of an input and of a target.
      num_positive: positive examples in a prompt.

    Returns:
      The store's folder.
    """
    from jaxmtl.feed import tokenise
    from jaxmtl.tasks import prompts

    tasks, tokenizer = tasks_and_tokenizer(arguments, folder, split, max_examples)
    preprocessing = tokenise.Preprocessing(
        prompt=functools.partial(prompts.tk_instruct, num_positive=num_positive, max_tokens=limits[0]),
        max_input_tokens=limits[0],
        max_target_tokens=limits[1],
    )
    store = tokenise.cache_tasks(tasks, [split], folder / "store", preprocessing, tokenizer)
    inputs, targets = store.lengths(split)
    print(
        f"{len(tasks)} tasks, {len(inputs)} examples of {inputs.mean():.0f} + {targets.mean():.0f} tokens", flush=True
    )
    return folder / "store"


def tasks_and_tokenizer(arguments: argparse.Namespace, folder: pathlib.Path, split: str, max_examples: int) -> Any:
    """Returns tasks and tokenizer; arguments as in `make_store`, an embedded vocabulary is written to the folder."""
    from jaxmtl.commands import demo
    from jaxmtl.tasks import catalog, sni_selection
    from jaxmtl.tokenizers import load_tokenizer

    if arguments.data == "toy":
        tasks = catalog.specs("toy", num_examples=TOY_EXAMPLES)
        tasks = [task for task in tasks if split in task.splits]
        return tasks, load_tokenizer(demo.make_vocabulary(folder, TOY_EXAMPLES))
    selections = {
        "train": sni_selection.OfficialTrain(max_per_task=max_examples),
        "test": sni_selection.OfficialTest(limit=max_examples),
    }
    lists = [name for name in TASK_LISTS[split] if (arguments.sni / name).exists()]
    if not lists:
        sys.exit(f"error: {arguments.sni} has none of the task lists {', '.join(TASK_LISTS[split])}")
    tasks = catalog.specs("sni", arguments.sni, task_list=lists[0], selection=selections[split])
    return tasks, load_tokenizer(arguments.vocabulary)


def torch_t5(num_layers: int, size: str = "t5-v1.1-small", seed: int = 0) -> Any:
    """Returns Hugging Face's T5 v1.1 with `num_layers` layers a side and random weights, its head untied.

    The head's rows of the padding and end tokens are 0, so that generation never ends early.

    Args:
      num_layers: layers of each side.
      size: name of a v1.1 size, whose other sizes it has.
      seed: of the weights.
    """
    import torch
    import transformers

    from jaxmtl.models.t5_config import SIZES

    torch.manual_seed(seed)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # as JAX does by itself on GPUs
    width, heads, d_kv, d_ff = (SIZES[size][name] for name in ("embed_dim", "num_heads", "head_dim", "mlp_dim"))
    sizes: dict[str, Any] = dict(d_model=width, num_heads=heads, d_kv=d_kv, d_ff=d_ff, num_layers=num_layers)
    kind: dict[str, Any] = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0)
    config = transformers.T5Config(vocab_size=VOCABULARY_ROWS, dropout_rate=0.1, **sizes, **kind)
    model = transformers.T5ForConditionalGeneration(config)
    # transformers 5 ties a fresh v1.1, but checkpoints of v1.1 have a head of their own.
    head = torch.randn(VOCABULARY_ROWS, width) * width**-0.5
    head[:2] = 0.0
    model.lm_head.weight = torch.nn.Parameter(head)
    model.config.tie_word_embeddings = False
    return model.to(torch_device())


def torch_bart(num_layers: int, seed: int = 0) -> Any:
    """Returns Hugging Face's BART base with `num_layers` layers a side and random weights.

    The bias of the logits keeps padding and end token out, so that generation never ends early. The decoder's layers


    Args:
      num_layers: layers of each side.
      seed: of the weights.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    sizes: dict[str, Any] = dict(d_model=768, encoder_attention_heads=12, decoder_attention_heads=12)
    wide = dict(encoder_ffn_dim=3072, decoder_ffn_dim=3072, encoder_layers=num_layers, decoder_layers=num_layers)
    config = transformers.BartConfig(**sizes, **wide, forced_eos_token_id=None)
    model = transformers.BartForConditionalGeneration(config)
    model.final_logits_bias[:, :SPECIAL_TOKENS] = -1e4
    return model.to(torch_device())


def torch_gpt2(num_layers: int, seed: int = 0) -> Any:
    """Returns Hugging Face's GPT-2 (124M) with `num_layers` layers and random weights.

    The end token's embedding is 0, so that generation never ends early.

    Args:
      num_layers: its layers.
      seed: of the weights.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=num_layers))
    model.generation_config.pad_token_id = model.config.eos_token_id
    with torch.no_grad():
        model.transformer.wte.weight[model.config.eos_token_id] = 0.0
    return model.to(torch_device())


FAMILIES = {"t5": torch_t5, "bart": torch_bart, "gpt2": torch_gpt2}
SPECIAL_TOKENS = 3  # BART's, which T5's tokens are moved past; GPT-2 has one, at the end of its vocabulary


def torch_model(family: str, num_layers: int) -> Any:
    """Returns a model with random weights; `family` is a key of `FAMILIES`."""
    return FAMILIES[family](num_layers)


def in_vocabulary(family: str, rows: list[list[int]]) -> list[list[int]]:
    """Turns rows of T5's tokens into tokens of a family's models, none of them a special one."""
    return rows if family == "t5" else [[token + SPECIAL_TOKENS for token in row] for row in rows]


def torch_device() -> Any:
    """Returns the device that torch runs on: the first GPU if it sees one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
