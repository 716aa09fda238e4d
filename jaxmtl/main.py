"""The `jaxmtl` command: verbs, flags, gin files, hosts, exit codes. The only place that knows gin.

Exit codes: 0 done, 1 failed, 2 wrong usage. Errors are one line unless `--traceback` is given.
"""

import argparse
import ast
import contextlib
import difflib
import functools
import hashlib
import importlib
import inspect
import os
import pathlib
import pkgutil
import re
import sys
import tempfile
import tokenize
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import jaxmtl
from jaxmtl import hosts
from jaxmtl.commands.annotations import LITERALS, fits, kind_name, kinds_of
from jaxmtl.types import InputError, UsageError, unknown_name

VERBS = (
    "demo",
    "tasks",
    "cache",
    "train",
    "evaluate",
    "fit_adapters",
    "generate_adapter",
    "playground",
    "convert",
    "info",
    "report",
)
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

        self._gin: Any = gin
        self._reading: list[str] = []
        self._lines: list[tuple[str, str]] = []
        gin.clear_config()
        # gin also looks for files inside Python packages: any folder named as one of ours would trip that reader.
        self._gin.config._FILE_READERS[:] = [(self._open, os.path.isfile)]
        self._gin.config._LOCATION_PREFIXES[:] = ["", str(GIN_FOLDER)]
        quoted, imports = [_quoted(line) for line in bindings], []
        try:
            gin.parse_config_files_and_bindings(list(files), None, finalize_config=False)
            imports = self._imports()
            gin.parse_config([*imports, *quoted])  # so that a flag may refer to whatever the files import
            self._lines += [(f"--gin.{binding}", line) for binding, line in zip(bindings, quoted, strict=True)]
            self._check_macros()
            self._check_kinds()
            gin.finalize()
        except Exception as error:
            raise self._explained(error, files, [*imports, *bindings]) from error

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
                missing = _missing(error, function)
                if missing is None:
                    raise
                raise missing from error

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

    def rebuild(self) -> Callable[[], "GinConfig"]:
        """Returns a function that makes the same config in another process; it can be pickled."""
        return functools.partial(importlib.import_module("jaxmtl.main").config_of, self.text())  # never of __main__

    @contextlib.contextmanager
    def _open(self, path: str) -> Iterator[TextIO]:
        """Opens a gin file and remembers its lines; after a mistake, the file it is in stays last in `_reading`."""
        self._reading.append(path)
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
            file.seek(0)
            try:
                yield file
            finally:  # after the files that it includes: it overrides them
                self._lines += [(f"{path} line {number}", line) for number, line in enumerate(lines, 1)]
        self._reading.pop()

    def _place(self, pattern: str) -> str:
        """Finds where the last line that begins with a pattern stands: what a later file says overrides."""
        found = [place for place, line in self._lines if re.match(rf"\s*{pattern}", line)]
        return found[-1] if found else "gin"

    def _check_macros(self) -> None:
        """Refuses macros without a value, and values of macros that nothing uses and that look like a misspelt one."""
        config = self._gin.config._CONFIG
        macro = self._gin.get_configurable("gin.macro")
        used = {ref.config_key[0] for ref in self._gin.config.iterate_references(config, to=macro)}
        defined = {scope for scope, selector in config if selector == "gin.macro"}
        for name in sorted(used - defined):
            place = self._place(rf"[^#]*%{name}\b")
            files = [file for file in _gin_files() if re.search(rf"(?m)^{name} *=", (GIN_FOLDER / file).read_text())]
            general = [file for file in files if file.count("/") == 1] or files  # models/t5.gin, not one of its sizes
            hint = f"give a file that sets it first, such as {', '.join(general[:8])}" if files else ""
            raise InputError(f"{place}: {name} has no value; {hint or unknown_name('macro', name, defined)}")
        for name in sorted(defined - used):
            place = self._place(rf"{name} *=")
            elsewhere = any(line.startswith(name) for where, line in self._lines if not where.startswith("--gin."))
            near = difflib.get_close_matches(name, used, n=1, cutoff=0.85)
            if near or not elsewhere:
                raise InputError(f"{place}: {unknown_name('macro', name, used)}; nothing uses it")

    def _check_kinds(self) -> None:
        """Refuses literals that are not of the kind that a parameter's annotation asks for."""
        config = self._gin.config._CONFIG
        for (_, selector), parameters in config.items():
            kinds = {} if selector == "gin.macro" else kinds_of(self._gin.config._REGISTRY[selector].wrapped)
            function = selector.rpartition(".")[2]
            for name, value in parameters.items():
                shown = pattern = f"{function}.{name}"
                pattern = rf"[\w./]*\b{function}\.{name}"
                while isinstance(value, self._gin.config.ConfigurableReference) and value.selector == "gin.macro":
                    shown = pattern = value.config_key[0]
                    value = config[value.config_key]["value"]
                if isinstance(value, LITERALS) and not fits(value, kinds.get(name, Any)):
                    raise InputError(
                        f"{self._place(rf'{pattern} *=')}: {shown} is {value!r}; "
                        f"{function}.{name} expects {kind_name(kinds[name])}"
                    )

    def _explained(self, error: Exception, files: Sequence[str], bindings: Sequence[str]) -> InputError:
        """Turns what gin raises into one line with file, line and the closest valid name."""
        if isinstance(error, InputError):
            return error
        text = " ".join(line.strip() for line in str(error).splitlines() if line.strip() not in ("", "^"))
        required = re.search(r"([\w./]+)/macro\.value set to `%gin\.REQUIRED`", text)
        if required:
            return InputError(f"{required[1]} is required by {', '.join(files)}; give it as --gin.{required[1]}=VALUE")
        found = re.search(r' *In (?:file "([^"]+)"|bindings string),? line (\d+)', text)
        file, line = (found[1], int(found[2])) if found else (None, 0)
        if isinstance(error, SyntaxError):
            file, line, text = error.filename, error.lineno or 0, f"{error.msg} {(error.text or '').strip()}"
        elif isinstance(error, tokenize.TokenError):
            text = "a bracket or a quote is never closed"
        elif found:
            text = text[: found.start()]
        absent = re.search(r"Unable to open file: (.*?)\. Searched", text)
        if absent:
            text = str(unknown_name("gin file", absent[1], _gin_files()))
        if file is None and self._reading:
            place = self._reading[-1]
        elif absent and file is None:
            place = f"--gin_file={absent[1]}"
        elif file is None:
            place = f"--gin.{bindings[line - 1]}" if 0 < line <= len(bindings) else "--gin"
        else:
            place = f"{file} line {line}"
        return InputError(f"{place}: {text}{self._closest(text)}")

    def _closest(self, text: str) -> str:
        """Finds the closest valid name for an unknown one that gin complains of."""
        parameter = re.search(r"Configurable '([\w./]+)' doesn't have a parameter named '(\w+)'", text)
        if parameter:
            function = self._gin.get_configurable(parameter[1])
            return f" {unknown_name('parameter', parameter[2], inspect.signature(inspect.unwrap(function)).parameters)}"
        attribute = re.search(r"<module '([\w.]+)' from .*has no attribute (\w+)", text)
        if attribute:
            return f" {unknown_name('name', attribute[2], _names(attribute[1]))}"
        modules = self._modules()
        reference = re.search(r"reference '@(?:\w+/)*(\w+)\.(\w+)", text)
        if reference and reference[1] in modules:
            return f" {unknown_name('name', reference[2], _names(modules[reference[1]]))}"
        alias = re.search(r"'(\w+)' was not provided by an import", text)
        if alias:
            return f" {unknown_name('imported module', alias[1], modules)}"
        module = re.search(r"No module named '([\w.]+)'", text)
        return _closest_module(module[1]) if module else ""

    def _imports(self) -> list[str]:
        """Returns the import lines of the gin files, each once."""
        lines = [line.partition("#")[0].strip() for _, line in self._lines if re.match(r"(from|import)\s", line)]
        return list(dict.fromkeys(lines))

    def _modules(self) -> dict[str, str]:
        """Returns what the gin files import: name that stands for a module, to the module's full name."""
        modules = {}
        for line in self._imports():
            found = re.match(r"(?:from ([\w.]+) )?import ([\w.]+)(?: as (\w+))?", line)
            if found and found[1] != "__gin__":
                modules[found[3] or found[2]] = f"{found[1]}.{found[2]}" if found[1] else found[2]
        return modules


def config_of(text: str) -> GinConfig:
    """Parses what `GinConfig.text` returned."""
    with tempfile.NamedTemporaryFile("w", suffix=".gin", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return GinConfig([file.name], [])


def _gin_files() -> list[str]:
    return sorted(str(path.relative_to(GIN_FOLDER)) for path in GIN_FOLDER.rglob("*.gin"))


def _names(module: str) -> list[str]:
    """Returns the public functions and classes that a module defines."""
    values = vars(importlib.import_module(module)).items()
    return [name for name, value in values if name[0] != "_" and getattr(value, "__module__", None) == module]


def _closest_module(name: str) -> str:
    """Returns what to do about a module that is not there."""
    parent, _, child = name.rpartition(".")
    if parent.partition(".")[0] == "jaxmtl":
        package = importlib.import_module(parent)
        return f"; {unknown_name('module', child, [one.name for one in pkgutil.iter_modules(package.__path__)])}"
    if name.partition(".")[0] in ("seqio", "tensorflow", "tensorflow_text"):
        return "; caching through SeqIO needs it: pip install 'jaxmtl[data]'"
    return ""


def _quoted(line: str) -> str:
    """Puts quotes around a value that is no literal, reference or macro: `STORE=runs/store` needs none in the shell."""
    name, sign, value = line.partition("=")
    name, value = name.strip(), value.strip()
    if not sign or not re.fullmatch(r"[A-Za-z_][\w./-]*", name):
        raise InputError(f"--gin.{line}: expected --gin.NAME=VALUE")
    if value[:1] not in ("@", "%", "(", "[", "{"):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = repr(value)
    return f"{name} = {value}"


def _missing(error: Exception, function: Callable) -> InputError | None:
    text = " ".join(str(error).split())
    if not ("missing" in text and "argument" in text or "Required bindings" in text):
        return None
    return InputError(f"{function.__module__}.{function.__name__}: {text}; bind it in a gin file or with --gin.")


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
        gin_help = "gin file, repeatable; later ones override" if _takes_gin(command) else argparse.SUPPRESS
        verb.add_argument("--gin_file", action="append", default=[], help=gin_help)
        verb.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
        verb.add_argument(
            "--coordinator", help="HOST:PORT of process 0, for runs on many hosts; 'auto' on TPU and SLURM"
        )
        verb.add_argument("--num_processes", type=int, help="number of processes, with --coordinator HOST:PORT")
        verb.add_argument("--process_id", type=int, help="number of this process, with --coordinator HOST:PORT")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb.

    Args:
      argv: arguments without the program's name; the process's own if None.

    Returns:
      The exit code.
    """
    words = sys.argv[1:] if argv is None else argv
    bindings = [word.removeprefix("--gin.") for word in words if word.startswith("--gin.")]
    known = argparse.Namespace(gin_bindings=bindings)
    arguments = make_parser().parse_args([word for word in words if not word.startswith("--gin.")], known)
    command = importlib.import_module(f"jaxmtl.commands.{arguments.verb}")
    try:
        _check_gin(command, arguments, bindings)
        hosts.join(arguments)
        config = GinConfig(arguments.gin_file, bindings) if arguments.gin_file else None
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
        return 2 if isinstance(error, UsageError) else 1


def _takes_gin(command: types.ModuleType) -> bool:
    """Returns whether a verb reads gin files: `TAKES_GIN` in its module says so."""
    return getattr(command, "TAKES_GIN", False)


def _check_gin(command: types.ModuleType, arguments: argparse.Namespace, bindings: Sequence[str]) -> None:
    """Refuses settings for a verb that would not read them."""
    flags = [*(f"--gin_file={file}" for file in arguments.gin_file), *(f"--gin.{binding}" for binding in bindings)]
    if flags and not _takes_gin(command):
        raise UsageError(f"{flags[0]}: {arguments.verb} takes no gin settings; see jaxmtl {arguments.verb} --help")


def _one_line(error: Exception) -> str:
    """Returns an error's message in one line; a bug's also with its type and how to see more."""
    text = " ".join(str(error).partition("In call to configurable")[0].split())  # gin adds its call chain
    if isinstance(error, (InputError, OSError)):
        return text
    return f"{type(error).__name__}: {text[:500]} (run with --traceback to see where)"


if __name__ == "__main__":
    sys.exit(main())
