"""What the README names is there: verbs, flags, gin files, their settings, make targets. Nothing is run."""

import pathlib
import re
import shlex

import pytest

from jaxmtl.main import GIN_FOLDER, VERBS, GinConfig, make_parser

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
SHELL = "\n".join(re.findall(r"(?ms)^```bash\n(.*?)^```", TEXT)).replace("\\\n", " ")
COMMANDS = [words for line in SHELL.splitlines() if (words := shlex.split(line, comments=True))]
OURS = [words[1:] for words in COMMANDS if words[0] == "jaxmtl"]
CACHING = [words for words in OURS if words[0] == "cache"]


def check(words):
    """Parses a command as `main` does, its gin files included."""
    flags = [word for word in words if not word.startswith("--gin.")]
    bindings = [word.removeprefix("--gin.") for word in words if word.startswith("--gin.")]
    arguments = make_parser().parse_args(flags)
    if arguments.gin_file or bindings:
        GinConfig(arguments.gin_file, bindings)


def test_the_readme_has_commands():
    assert len(OURS) >= 6 and CACHING


@pytest.mark.parametrize("words", [words for words in OURS if words not in CACHING], ids=" ".join)
def test_a_command_parses(words):
    check(words)


@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.parametrize("words", CACHING, ids=" ".join)
def test_a_command_for_caching_parses(words):
    check(words)


def test_settings_named_in_the_text_are_in_the_gin_files():
    files = set(re.findall(r"--gin_file=([\w./-]+)", TEXT))
    assert files and all((GIN_FOLDER / file).is_file() for file in files)
    everything = "\n".join(path.read_text("utf-8") for path in GIN_FOLDER.rglob("*.gin"))
    macros = set(re.findall(r"--gin\.(\w+)=", TEXT))
    assert macros and macros <= set(re.findall(r"(?m)^(\w+) =", everything))


def test_verbs_make_targets_and_paths_named_in_the_text_are_there():
    verbs = set(re.findall(r"`(?:\S+=\S+ )*jaxmtl (\w+)", TEXT))
    assert verbs and verbs <= set(VERBS)
    targets = set(re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text("utf-8")))
    assert set(re.findall(r"(?m)(?:`|^)make (\w+)", TEXT)) <= targets
    paths = re.findall(r"`((?:jaxmtl|notebooks|launch|gin_configs)/[\w./]*)`", TEXT)
    assert paths and all((ROOT / path).exists() for path in paths)
