import os
import pathlib
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
RECORDER = """#!/usr/bin/env bash
printf '%s\\n' "$CUDA_VISIBLE_DEVICES" "${0##*/}" "$@" > "$RECORD"
"""
POD = ["--name=slice", "--zone=zone-b"]


@pytest.fixture
def launch(tmp_path):
    """Runs a script where `jaxmtl` and `gcloud` only write down what they were started with."""
    for name in ("jaxmtl", "gcloud"):
        program = tmp_path / name
        program.write_text(RECORDER)
        program.chmod(0o755)
    record = tmp_path / "record"

    def run(script, *words):
        environment = dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}", RECORD=str(record))
        environment.setdefault("CUDA_VISIBLE_DEVICES", "")
        done = subprocess.run([LAUNCH / script, *words], capture_output=True, text=True, env=environment, timeout=30)
        lines = record.read_text().split("\n")[:-1] if record.exists() else None
        return done, lines

    return run


def test_gpu_local_passes_its_flags_on_as_they_are(launch):
    done, lines = launch("gpu_local.sh", "--gpus=1,3", "--gin_file=runs/train.gin", "--gin.RUN_DIR=a b")
    assert done.returncode == 0
    assert lines == ["1,3", "jaxmtl", "train", "--gin_file=runs/train.gin", "--gin.RUN_DIR=a b"]


def test_tpu_pod_starts_all_workers_through_gcloud(launch):
    done, lines = launch("tpu_pod.sh", *POD, "--gin.STEPS=5")
    assert done.returncode == 0
    command = 'cd . && PATH="$PWD/.venv/bin:$PATH" jaxmtl train --coordinator=auto --gin.STEPS=5'
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=zone-b", "--worker=all"]
    assert lines[1:] == [*ssh, f"--command={command}"]


def test_tpu_pod_names_a_project_only_if_told_to(launch):
    _, lines = launch("tpu_pod.sh", *POD, "--project=mine", "--gin.STEPS=5")
    assert "--project=mine" in lines


def test_the_workers_shell_sees_the_same_words(launch, tmp_path):
    words = ["--gin.RUN_DIR=a b", "--gin.SCHEDULE=@schedules.cosine()", "--gin.TASKS=('x', \"y\")", "--gin.A=$HOME;*"]
    (tmp_path / "work space").mkdir()
    _, lines = launch("tpu_pod.sh", *POD, f"--dir={tmp_path}/work space", *words)
    command = lines[-1].removeprefix("--command=")
    environment = dict(os.environ, PATH=f"{tmp_path}:{os.environ['PATH']}", RECORD=str(tmp_path / "on_worker"))
    subprocess.run(["bash", "-c", command], check=True, env=environment | {"CUDA_VISIBLE_DEVICES": ""}, timeout=30)
    seen = (tmp_path / "on_worker").read_text().split("\n")[:-1]
    assert seen[1:] == ["jaxmtl", "train", "--coordinator=auto", *words]


@pytest.mark.parametrize("script", ["gpu_local.sh", "tpu_pod.sh"])
def test_help_says_how_to_use_it(launch, script):
    done, lines = launch(script, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: launch/{script}") and lines is None


@pytest.mark.parametrize("words", [(), ("--zone=zone-b", "--gin.STEPS=5"), ("--name=slice", "--gin.STEPS=5"), POD])
def test_tpu_pod_refuses_too_few_flags(launch, words):
    done, lines = launch("tpu_pod.sh", *words)
    assert done.returncode == 2 and done.stderr.startswith("usage:") and lines is None


def test_gpu_local_refuses_no_flags(launch):
    done, lines = launch("gpu_local.sh", "--gpus=0")
    assert done.returncode == 2 and done.stderr.startswith("usage:") and lines is None


def test_a_failure_of_the_command_is_that_of_the_script(launch, tmp_path):
    (tmp_path / "jaxmtl").write_text("#!/bin/sh\nexit 7\n")
    done, _ = launch("gpu_local.sh", "--gin.STEPS=5")
    assert done.returncode == 7
