"""The `jaxmtl` command: verbs, flags, gin files, hosts, exit codes. The only place that knows gin.

Exit codes: 0 done, 1 failed, 2 wrong usage. Errors are one line unless `--traceback` is given.
"""

import argparse
import ast
import hashlib
import importlib
import inspect
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jaxmtl
from jaxmtl.types import InputError, unknown_name

VERBS = ("demo", "tasks", "cache", "train", "evaluate", "convert", "info", "report")
GIN_FOLDER = pathlib.Path(__file__).resolve().parents[1] / "gin_configs"
EPILOG = """first steps:
  jaxmtl demo                       train a small model on the embedded tasks, with a report
  jaxmtl tasks toy                  list the embedded tasks
  jaxmtl VERB --help                what a verb takes
"""


class GinConfig:
    """The parsed gin files and bindings, handed to the verbs so that none of them needs gin.

    Args:
      files: gin files, looked up in the working folder, then in `gin_configs/`.
      bindings: "NAME = value" lines that override the files.

    Raises:
      InputError: naming file, line and the closest valid name.
    """

    def __init__(self, files: Sequence[str], bindings: Sequence[str]) -> None:
        import gin

        self._gin = gin
        gin.clear_config()
        # gin also looks for files inside Python packages: any folder named as one of ours would trip that reader.
        gin.config._FILE_READERS[:] = [(open, os.path.isfile)]
        gin.config._LOCATION_PREFIXES[:] = ["", str(GIN_FOLDER)]
        try:
            gin.parse_config_files_and_bindings(list(files), [_quoted(line) for line in bindings])
        except Exception as error:
            raise _gin_error(error, files) from error

    def configured(self, function: Callable) -> Callable:
        """Returns a function with the arguments that the gin files bind to it.

        Args:
          function: a public function or class of jaxmtl.

        Returns:
          The same, with bound arguments filled in when it is called.

        Raises:
          InputError: when called, if an argument is missing or a value does not fit.
        """
        try:
            configurable = self._gin.get_configurable(function)
        except ValueError as error:
            name = f"{function.__module__}.{function.__name__}"
            raise InputError(f"no gin file binds {name}; give the verb's own file, see gin_configs/runs") from error

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return configurable(*args, **kwargs)
            except (TypeError, RuntimeError) as error:
                raise _missing(error, function) or error from error

        return call

    def text(self) -> str:
        """Returns the parsed config as gin text."""
        return self._gin.config_str()

    def operative(self) -> str:
        """Returns the config with every value that was used so far, defaults included, as gin text."""
        return self._gin.operative_config_str()

    def hash(self) -> str:
        """Returns a hash of the parsed config."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:16]


def _quoted(line: str) -> str:
    """Puts quotes around a value that is no literal, reference or macro: `STORE=runs/store` needs none in the shell."""
    name, sign, value = line.partition("=")
    value = value.strip()
    if not sign:
        raise InputError(f"--gin.{line}: expected --gin.NAME=VALUE")
    if value[:1] not in "@%":
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = repr(value)
    return f"{name.strip()} = {value}"


def _gin_error(error: Exception, files: Sequence[str]) -> InputError:
    """Turns what gin raises into one line with file, line and the closest valid name."""
    if isinstance(error, InputError):
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip() not in ("", "^")]
    text = " ".join(lines)
    required = re.search(r"([\w./]+)/macro\.value set to `%gin\.REQUIRED`", text)
    if required:
        return InputError(f"{required[1]} is required by {', '.join(files)}; give it as --gin.{required[1]}=VALUE")
    return InputError(f"gin: {text}{_closest(text)}")


def _closest(text: str) -> str:
    """Finds the closest valid name for an unknown parameter or attribute that gin complains of."""
    import gin

    parameter = re.search(r"Configurable '([\w./]+)' doesn't have a parameter named '(\w+)'", text)
    if parameter:
        function = gin.get_configurable(parameter[1])
        names = inspect.signature(inspect.unwrap(function)).parameters
        return f" {unknown_name('parameter', parameter[2], names)}"
    attribute = re.search(r"<module '([\w.]+)' from .*has no attribute (\w+)", text)
    if attribute:
        module = importlib.import_module(attribute[1])
        names = [name for name in vars(module) if not name.startswith("_")]
        return f" {unknown_name('name', attribute[2], names)}"
    return ""


def _missing(error: Exception, function: Callable) -> InputError | None:
    text = " ".join(str(error).split())
    if "missing" in text and "argument" in text or "Required bindings" in text:
        return InputError(f"{function.__module__}.{function.__name__}: {text}; bind it in a gin file or with --gin.")
    return None


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line with one sub-parser per verb."""
    parser = argparse.ArgumentParser(
        prog="jaxmtl",
        description="Train language models on many tasks at once.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jaxmtl {jaxmtl.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in VERBS:
        command = importlib.import_module(f"jaxmtl.commands.{name}")
        verb = verbs.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(verb)
        verb.set_defaults(run_verb=main)
        verb.add_argument("--gin_file", action="append", default=[], help="gin file, repeatable; later ones override")
        verb.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
        verb.add_argument(
            "--coordinator", help="HOST:PORT of process 0, for runs on many hosts; 'auto' on TPU and SLURM"
        )
        verb.add_argument("--num_processes", type=int, help="number of processes, with --coordinator HOST:PORT")
        verb.add_argument("--process_id", type=int, help="number of this process, with --coordinator HOST:PORT")
    return parser


def join_hosts(arguments: argparse.Namespace) -> None:
    """Starts `jax.distributed` if hosts were asked for, and says which process this is.

    Args:
      arguments: with `coordinator`, `num_processes` and `process_id`.

    Raises:
      InputError: if the other processes do not answer in time.
    """
    if arguments.coordinator is None:
        return
    import jax

    auto = arguments.coordinator == "auto"
    address = {} if auto else dict(coordinator_address=arguments.coordinator)
    address |= dict(num_processes=arguments.num_processes, process_id=arguments.process_id)
    print(f"waiting for the other processes (coordinator {arguments.coordinator}) ...", file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(**address, initialization_timeout=300)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the hosts did not find each other ({str(error).splitlines()[0]}); start the same command on every host "
            "within five minutes, each with its own --process_id, and check that the coordinator's port is open"
        ) from error
    print(f"process {jax.process_index()} of {jax.process_count()}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb.

    Args:
      argv: arguments without the program's name; the process's own if None.

    Returns:
      The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    bindings = [word.removeprefix("--gin.") for word in words if word.startswith("--gin.")]
    arguments = make_parser().parse_args([word for word in words if not word.startswith("--gin.")])
    command = importlib.import_module(f"jaxmtl.commands.{arguments.verb}")
    try:
        join_hosts(arguments)
        config = GinConfig(arguments.gin_file, bindings) if arguments.gin_file or bindings else None
        return command.run(arguments, config)
    except KeyboardInterrupt:
        print("stopped by the keyboard; start the same command again to go on", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has gone
        return 1
    except Exception as error:
        if arguments.traceback:
            traceback.print_exc()
        else:
            print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1


def _one_line(error: Exception) -> str:
    """Returns an error's message in one line; a bug's also with its type and how to see more."""
    text = " ".join(str(error).partition("In call to configurable")[0].split())  # gin adds its call chain
    if isinstance(error, (InputError, OSError)):
        return text
    return f"{type(error).__name__}: {text[:500]} (run with --traceback to see where)"


if __name__ == "__main__":
    sys.exit(main())
