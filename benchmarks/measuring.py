"""Runs each side of a comparison in a process of its own, in turns and under the same settings; prints the result.

A side is a function that prepares itself in its process and gives a function of one request. Only one side works at a
time, so they do not disturb each other, and each has a peak memory of its own.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

# glibc gives freed memory back and faults it in again at every step, which costs time that varies; here it keeps it, in
# one arena, since those of threads are too small for large buffers. `jaxmtl train` and `evaluate` do so by themselves.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
PACKAGES = ("jax", "flax", "torch", "transformers", "peft", "seqio")
STOP = None
LOAD_AT_START = os.getloadavg()[0]  # processes that ran before: above a few tenths, others disturb what is measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a side says to a request: how many seconds it worked, and the result."""

    seconds: float
    value: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """A side: `ready()` waits for its preparation, `ask(request)` for an answer, `peak_memory()` ends it with bytes."""

    ready: Callable[[], Answer]
    ask: Callable[[Any], Answer]
    peak_memory: Callable[[], int]


def use_same_settings(num_threads: int) -> None:
    """Gives this process and all that it starts the same memory settings and the same number of cores."""
    os.environ.update(ENVIRONMENT, OMP_NUM_THREADS=str(num_threads))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_threads])


@contextlib.contextmanager
def side(make: Callable[..., tuple[Callable[[Any], Any], Any]], *args: Any) -> Iterator[Side]:
    """Starts a side in a process of its own and ends it with the block; first wait until it is ready.

    Args:
      make: called as `make(*args)` in the new process; gives (function of a request, facts about the preparation).
      args: anything that can be pickled.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make, args), daemon=True)
    process.start()
    there.close()

    def receive() -> Any:
        try:
            answer = here.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError(f"the process of {make.__name__} ended before it answered; was memory short?") from None
        if isinstance(answer, str):
            raise RuntimeError(f"{make.__name__} failed:\n{answer}")
        return answer

    def ask(request: Any) -> Answer:
        with contextlib.suppress(ConnectionError):  # receiving says why
            here.send((request,))
        return receive()

    def peak_memory() -> int:
        here.send(STOP)
        return receive()

    try:
        yield Side(ready=receive, ask=ask, peak_memory=peak_memory)
    finally:
        here.close()
        process.join()


def _serve(pipe: Connection, make: Callable[..., Any], args: Sequence[Any]) -> None:
    try:
        began = time.perf_counter()
        work, facts = make(*args)
        pipe.send(Answer(seconds=time.perf_counter() - began, value=facts))
        while (message := pipe.recv()) is not STOP:
            began = time.perf_counter()
            value = work(*message)
            pipe.send(Answer(seconds=time.perf_counter() - began, value=value))
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    except EOFError:
        return  # the other end has gone: nobody waits for an answer
    except Exception:
        pipe.send(traceback.format_exc())


def in_turns(asks: Mapping[str, Callable[[Any], Answer]], requests: Sequence[Any]) -> dict[str, list[Answer]]:
    """Puts each request to all sides before the next, another side first each time, so that noise hits all alike.

    Args:
      asks: side name to how it is asked.
      requests: what to ask.

    Returns:
      Side name to its answers, in the order of the requests.
    """
    names, answers = list(asks), {name: [] for name in asks}
    for number, request in enumerate(requests):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            answers[name].append(asks[name](request))
        shown = ", ".join(f"{name} {answers[name][-1].seconds:.2f} s" for name in names)
        print(f"{number + 1}/{len(requests)}: {shown}", flush=True)
    return answers


def medians(answers: Sequence[Answer], repeats: int) -> list[Answer]:
    """Returns an answer for each request of a list that was put `repeats` times over, with its median seconds."""
    count = len(answers) // repeats
    seconds = [statistics.median(answer.seconds for answer in answers[start::count]) for start in range(count)]
    return [dataclasses.replace(answer, seconds=own) for answer, own in zip(answers[:count], seconds, strict=True)]


def rate(answers: Sequence[Answer], count: Callable[[Any], float] = float) -> float:
    """Returns how many things were done in a second, by `count` of each answer's value."""
    return sum(count(answer.value) for answer in answers) / sum(answer.seconds for answer in answers)


def print_result(benchmark: str, figures: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Prints the last line of a benchmark: one JSON object of the figures, settings and versions."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    print(
        json.dumps(
            {"benchmark": benchmark} | rounded(figures) | {"settings": vars(arguments), "versions": versions},
            default=str,
        )
    )


def rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps three decimals of numbers, of small ones three digits."""
    short = lambda value: round(value, 3) if abs(value) >= 0.1 else float(f"{value:.3g}")
    return {name: short(value) if isinstance(value, float) else value for name, value in figures.items()}
