"""Start: seconds until `jaxmtl --help` is printed and until training is imported, against what peers import.

Each command runs in a process of its own, in turns; the quickest of each counts. `ratio` is the seconds that importing
Hugging Face's T5 and Trainer takes over those of jaxmtl's training loop and T5; `ratio_seqio` the same for SeqIO.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from typing import Any

import measuring

COMMANDS = {
    "help": ["-m", "jaxmtl.main", "--help"],
    "training": ["-c", "import jaxmtl.training.loop, jaxmtl.models.t5"],
    "transformers": ["-c", "from transformers import T5ForConditionalGeneration, Trainer"],
    "seqio": ["-c", "import seqio"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="measure the numbers to publish: 10 rounds, not 2")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="cores that each process uses")
    arguments = parser.parse_args()
    missing = [name for name in ("transformers", "seqio") if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"package {missing[0]} is missing; `make parity` installs what the benchmarks need")
    measuring.use_same_settings(arguments.threads)
    with measuring.side(runner) as side:
        side.ready()
        asks = {name: (lambda _, words=words: side.ask(words)) for name, words in COMMANDS.items()}
        answers = measuring.in_turns(asks, range(10 if arguments.full else 2))
    best = {name: min(answer.seconds for answer in those) for name, those in answers.items()}
    memory = {name: max(answer.value for answer in those) / 1e9 for name, those in answers.items()}
    print(", ".join(f"{name} {best[name]:.2f} s, peak memory {memory[name]:.2f} GB" for name in best))
    figures = {"ratio": best["transformers"] / best["training"], "ratio_seqio": best["seqio"] / best["training"]}
    figures |= {f"{name}_seconds": seconds for name, seconds in best.items()}
    measuring.print_result("start", figures | {f"{name}_peak_gigabytes": memory[name] for name in best}, arguments)


def runner() -> tuple[Any, None]:
    """Returns a function that runs Python with some words and gives the peak memory of it in bytes."""

    def run(words: list[str]) -> int:
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=errors)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            errors.seek(0)
            error = errors.read()
        if process.returncode:
            raise RuntimeError(f"{words} failed: {error.decode()[-500:]}")
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    return run, None


if __name__ == "__main__":
    main()
