"""The command as it is typed: what it loads, what it returns, and that every mistake is told in one line."""

import os
import re
import socket
import subprocess
import sys

import jax
import pytest

from jaxmtl import hosts
from jaxmtl import main as main_module
from jaxmtl.main import VERBS, GinConfig, main
from jaxmtl.weights import Pretrained

EVALUATE = ["--gin_file=runs/evaluate.gin", "--gin.STORE=x", "--gin.RUN_DIR=y", "--gin.CHECKPOINT=/no/model"]
TRAIN = ["--gin_file=models/t5_1_1/tiny.gin", "--gin_file=runs/train.gin", "--gin.STORE=x", "--gin.RUN_DIR=y"]
IMPORTS = "from __gin__ import dynamic_registration\nfrom jaxmtl.commands import evaluate as evaluate_command\n"

HELP_OF_ALL = """
import contextlib, io, sys
from jaxmtl.main import VERBS, main
for words in (["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            main(words)
        except SystemExit as end:
            assert end.code == 0, words
    assert "jaxmtl" in text.getvalue()
heavy = {"jax", "tensorflow", "gin", "seqio", "torch", "transformers", "flax", "matplotlib", "pandas", "rich"}
sys.exit(" ".join(sorted(heavy & set(sys.modules))) or None)
"""


def one_line_error(capsys, words, code=1):
    """Runs a command that must fail in one line; returns the line."""
    assert main(words) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
    assert "Traceback" not in printed.err
    return printed.err


def test_help_of_every_verb_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [[], ["nothing"], ["train", "--nothing"], ["convert"], ["info", "a", "b"]])
def test_wrong_usage_ends_with_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: jaxmtl" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["cache", "train", "evaluate"])
@pytest.mark.parametrize("flags", [[], ["--gin.STORE=runs/x"]])
def test_a_verb_without_gin_files_says_what_to_give(verb, flags, capsys):
    assert f"{verb} needs gin files" in one_line_error(capsys, [verb, *flags], code=2)


@pytest.mark.parametrize("flag", ["--gin.STEPS=5", "--gin_file=runs/evaluate.gin"])
@pytest.mark.parametrize("words", [["demo"], ["convert", "a", "b"], ["report", "a"]], ids=lambda words: words[0])
def test_a_verb_without_gin_settings_refuses_them(words, flag, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = one_line_error(capsys, [*words, flag], code=2)
    assert line == f"error: {flag}: {words[0]} takes no gin settings; see jaxmtl {words[0]} --help\n"
    assert not list(tmp_path.iterdir())


TAKING_GIN = ("cache", "train", "evaluate", "fit_adapters", "tasks", "info")


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_gin_files_where_they_are_read(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert ("--gin_file" in capsys.readouterr().out) == (verb in TAKING_GIN)


MISTAKES = {
    "parameter": (IMPORTS + 'evaluate_command.evaluate.stuby = "x"\n', "line 3", "closest: study"),
    "name in a module": (IMPORTS + 'evaluate_command.evaluat.study = "x"\n', "line 3", "closest: evaluate"),
    "module": ("from __gin__ import dynamic_registration\nfrom jaxmtl.commands import trian\n", "line 2", "train"),
    "import": (IMPORTS + "STORE = @story.TokenStore()\n", "line 3", "closest: evaluate_command"),
    "reference": (IMPORTS + "LOAD = @evaluate_command.chekpoint\n", "line 3", "closest: checkpoint"),
    "include": ('\ninclude "runs/evaluat.gin"\n', "line 2", "closest: runs/evaluate.gin"),
    "syntax": ('\n\nSTORE = "x\n', "line 3", "Unable to parse value"),
    "bracket": ("\nTASKS = [1,\n", "my.gin", "a bracket or a quote is never closed"),
    "macro without value": (IMPORTS + "A = 1\nevaluate_command.untrained.seed = %B\n", "line 4", "B has no value"),
    "macro of another file": (IMPORTS + "evaluate_command.evaluate.load = %MODULE\n", "line 3", "models/t5.gin"),
    "misspelt macro": ('include "runs/evaluate.gin"\nMAX_TOKEN = 3\n', "line 2", "closest: MAX_TOKENS"),
    "kind": (IMPORTS + "evaluate_command.untrained.seed = 'one'\n", "line 3", "expects int"),
    "kind in a macro": (IMPORTS + "S = 1.5\nevaluate_command.untrained.seed = %S\n", "line 3", "expects int"),
    "bytes": (b"\xff\xfe\x00", "my.gin", "decode"),
}


@pytest.mark.parametrize("text, place, hint", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_gin_file_names_file_line_and_closest_name(text, place, hint, tmp_path, capsys):
    path = tmp_path / "my.gin"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = one_line_error(capsys, ["evaluate", f"--gin_file={path}"])
    assert str(path) in line and place in line and hint in line


@pytest.mark.parametrize(
    "words, hint",
    [
        (
            ["evaluate", *EVALUATE, "--gin.BATCH_SIZ=3"],
            "--gin.BATCH_SIZ=3: unknown macro 'BATCH_SIZ'; closest: BATCH_SIZE",
        ),
        (["evaluate", *EVALUATE, "--gin.BATCH_SIZE=four"], "--gin.BATCH_SIZE=four: BATCH_SIZE is 'four'; "),
        (["evaluate", *EVALUATE, "--gin.MAX_TOKENS=None"], "evaluate.max_tokens expects int"),
        (["evaluate", *EVALUATE, "--gin.TASKS=one"], "evaluate.tasks expects Sequence[str]"),
        (["evaluate", *EVALUATE, "--gin.MESH=cpu1"], "checkpoint.mesh expects Mesh | None"),
        (["evaluate", *EVALUATE, "--gin.SPLIT"], "--gin.SPLIT: expected --gin.NAME=VALUE"),
        (["evaluate", *EVALUATE, "--gin.=3"], "expected --gin.NAME=VALUE"),
        (["evaluate", *EVALUATE, "--gin.TASKS=('a',"], "a bracket or a quote is never closed"),
        (
            ["evaluate", "--gin_file=runs/evaluat.gin"],
            "error: --gin_file=runs/evaluat.gin: unknown gin file 'runs/evaluat.gin'; closest: runs/evaluate.gin",
        ),
        (["evaluate", "--gin_file=runs/evaluate.gin"], "is required by runs/evaluate.gin; give it as --gin."),
        (
            ["train", "--gin_file=runs/train.gin"],
            "MODULE has no value; give a file that sets it first, such as models/",
        ),
        (["train", *TRAIN, "--gin.optim.adamw.weight_deca=1"], "closest: weight_decay"),
        (["train", *TRAIN, "--gin.RATE=@rates.unifor"], "closest: uniform"),
        (["train", *TRAIN, "--gin.DROPOUT=some"], "T5Config.dropout_rate expects float"),
        (["train", *TRAIN[1:], "--gin_file=models/t5.gin", "--gin.SIZE=t5-smal"], "closest: t5-small"),
        (["train", *TRAIN, "--gin_file=models/t5_1_1/small.gin", "--gin.REMAT=1"], "named_config.remat expects str"),
        (["train", *TRAIN], "token store x does not exist"),
    ],
)
def test_a_mistake_in_the_flags_is_told_in_one_line(words, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert hint in one_line_error(capsys, words)
    assert list(tmp_path.iterdir()) == []


def test_traceback_shows_where(capsys):
    assert main(["evaluate", *EVALUATE, "--traceback"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed and "InputError: /no/model: no such folder" in printed


def test_an_error_that_is_no_mistake_of_the_user_names_its_type(monkeypatch, capsys):
    from jaxmtl.commands import info

    def broken(arguments, config):
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(info, "run", broken)
    assert one_line_error(capsys, ["info"]) == "error: ZeroDivisionError: by zero (run with --traceback to see where)\n"


def test_the_keyboard_stops_without_traceback(monkeypatch, capsys):
    from jaxmtl.commands import info

    def interrupted(arguments, config):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupted)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == "stopped by the keyboard; start the same command again to go on\n"


def test_a_closed_pipe_ends_quietly():
    command = [sys.executable, "-m", "jaxmtl.main", "tasks", "toy", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 1


@pytest.mark.parametrize(
    "text, value",
    [
        ("runs/x", "runs/x"),
        ("two words", "two words"),
        ("'quoted'", "quoted"),
        ("it's", "it's"),
        ("a=b", "a=b"),
        ("None", None),
        ("3", 3),
        ("1e-4", 1e-4),
        ("('a', 'b')", ("a", "b")),
        ("[1, 2]", [1, 2]),
        ("%OTHER", "other"),
        ("", ""),
    ],
)
def test_values_need_no_quotes(text, value, tmp_path):
    (tmp_path / "my.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom jaxmtl.commands import train\nfrom jaxmtl import weights\n"
        "A = 0\nOTHER = 'other'\ntrain.weights_of.path = @weights.Pretrained()\nweights.Pretrained.params = %A\n"
        "weights.Pretrained.config = %OTHER\nweights.Pretrained.module = @train.module_of\n"
        "weights.Pretrained.tokenizer = None\n"
    )
    config = GinConfig([str(tmp_path / "my.gin")], [f"A={text}"])
    assert config.configured(Pretrained)().params == value


def test_a_flag_may_refer_to_whatever_the_files_import():
    config = GinConfig(
        ["models/t5_1_1/tiny.gin", "runs/train.gin", "runs/generation.gin"],
        ["STORE=x", "RUN_DIR=y", "EVALUATIONS=(@train_command.generation,)", "RATE=@rates.uniform"],
    )
    assert "EVALUATIONS = (@train_command.generation,)" in config.text()
    assert "RATE = @rates.uniform" in config.text()


def test_what_comes_later_overrides(tmp_path):
    (tmp_path / "mine.gin").write_text('include "runs/evaluate.gin"\nMAX_TOKENS = 5\n')
    given = ["STORE=x", "RUN_DIR=y", "CHECKPOINT=z"]
    value = lambda config: int(re.search(r"(?m)^MAX_TOKENS = (\d+)", config.text())[1])
    plain = GinConfig(["runs/evaluate.gin"], given)
    assert value(plain) == 128
    plain_hash = plain.hash()
    mine = GinConfig([str(tmp_path / "mine.gin")], given)
    assert value(mine) == 5 and mine.hash() != plain_hash
    assert value(GinConfig([str(tmp_path / "mine.gin")], [*given, "MAX_TOKENS=7"])) == 7


@pytest.mark.parametrize(
    "flags, hint",
    [
        (["--coordinator=127.0.0.1:1"], "--num_processes and --process_id"),
        (["--coordinator=127.0.0.1:1", "--num_processes=2"], "--num_processes and --process_id"),
        (["--coordinator=127.0.0.1", "--num_processes=2", "--process_id=1"], "expected HOST:PORT"),
        (["--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=2"], "expected 0 to 1"),
        (["--num_processes=2", "--process_id=1"], "--coordinator"),
    ],
)
def test_flags_for_many_hosts_are_checked_before_anyone_waits(flags, hint, capsys, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: pytest.fail("waited"))
    assert hint in one_line_error(capsys, ["info", *flags])


@pytest.mark.parametrize(
    "text, shown", [("DEADLINE_EXCEEDED: no answer\nmore", "DEADLINE_EXCEEDED: no answer"), ("", "RuntimeError")]
)
def test_hosts_that_do_not_answer_are_told(monkeypatch, capsys, text, shown):
    def initialize(**options):
        assert options["initialization_timeout"] == hosts.TIMEOUT
        raise RuntimeError(text)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    assert main(["info", "--coordinator=10.0.0.1:1234", "--num_processes=2", "--process_id=1"]) == 1
    waiting, error = capsys.readouterr().err.splitlines()
    assert waiting == "waiting for the other processes (coordinator 10.0.0.1:1234) ..."
    assert f"hosts did not find each other ({shown}); start the same command on every host" in error


@pytest.mark.slow
def test_a_coordinator_that_is_not_there_ends_the_wait():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code = "import sys; from jaxmtl import hosts, main; hosts.TIMEOUT = 3; sys.exit(main.main(['info'] + sys.argv[1:]))"
    flags = [f"--coordinator={address}", "--num_processes=2", "--process_id=1"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode != 0
    assert "waiting for the other processes" in done.stderr


def test_every_verb_has_a_module_that_says_what_it_does():
    parser = main_module.make_parser()
    assert all(verb in parser.format_help() for verb in VERBS)
