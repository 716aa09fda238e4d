"""Hypernetworks from gin files: teachers, training, evaluation, the control with wrong instructions."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from short_runs import SHORT, evaluate_words

from jaxmtl.adapters import hyper_presets
from jaxmtl.adapters.hyper_model import HyperModel
from jaxmtl.adapters.lora import LoRA
from jaxmtl.commands import fit_adapters, hypernet, teaching
from jaxmtl.evals import instructed
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.tokenise import Preprocessing, cache_tasks
from jaxmtl.main import main
from jaxmtl.models.initial import abstract_params
from jaxmtl.models.trees import flat
from jaxmtl.partitioning import make_mesh
from jaxmtl.tasks import catalog, prompts
from jaxmtl.training import teachers
from jaxmtl.training.hyper_objective import InstructedLoss
from jaxmtl.types import InputError
from jaxmtl.weights import load_pretrained, save_pretrained
from jaxmtl.weights.hyper_io import load_hyper_run


@pytest.fixture(scope="module")
def instructed_store(store, tmp_path_factory):
    """The store's tasks and vocabulary, with instructions apart."""
    tasks = list(catalog.load("toy", None, num_examples=16).values())
    tasks = [task for task in tasks if task.name in TokenStore(store).task_names("train")]
    how = Preprocessing(
        prompt=functools.partial(prompts.tk_instruct, definition=False, max_tokens=40),
        max_input_tokens=40,
        max_target_tokens=24,
        instruction=functools.partial(prompts.instruction_only, num_positive=1),
        max_instruction_tokens=48,
    )
    splits = ("train", "validation", "test")
    tokenizer = TokenStore(store).tokenizer()
    return cache_tasks(tasks, splits, tmp_path_factory.mktemp("instructed") / "store", how, tokenizer).folder


def hyper_words(base, store, run_dir, *more):
    files = ["hypernets/tagi.gin", "runs/hypernet.gin", "mesh/cpu1.gin"]
    places = [f"--gin.PRETRAINED={base}", f"--gin.STORE={store}", f"--gin.RUN_DIR={run_dir}"]
    sizes = ["--gin.RANK=2", "--gin.ALPHA=2", *SHORT]
    return ["train", *(f"--gin_file={file}" for file in files), *places, *sizes, *more]


def teacher_words(base, store, run_dir, *more):
    places = [f"--gin.PRETRAINED={base}", f"--gin.STORE={store}", f"--gin.RUN_DIR={run_dir}"]
    sizes = ["--gin.RANK=2", "--gin.STEPS=2", "--gin.BATCH_SIZE=4", "--gin.NUM_SHAPES=1", "--gin.LEARNING_RATE=0.1"]
    return ["fit_adapters", "--gin_file=runs/teachers.gin", *places, *sizes, *more]


@pytest.mark.long
def test_teachers_hypernetwork_evaluation_and_control(run_dir, instructed_store, tmp_path, capsys):
    """One way through everything: what is compiled once is used by all steps."""
    teachers = tmp_path / "teachers"
    words = teacher_words(run_dir, instructed_store, teachers)
    assert main(words) == 0
    fits = json.loads((teachers / "fits.json").read_text())["fits"]
    entries = TokenStore(instructed_store).manifest.splits["train"].values()
    categories = {entry.category for entry in entries}
    assert set(fits) == categories
    assert all((teachers / entry["folder"] / "adapter_config.json").exists() for entry in fits.values())
    written = lambda one: (teachers / one["folder"] / "adapter_model.safetensors").stat().st_mtime_ns
    before = {name: written(one) for name, one in fits.items()}
    del fits[min(fits)]
    (teachers / "fits.json").write_text(json.dumps({"fits": fits}))
    assert main(words) == 0
    after = json.loads((teachers / "fits.json").read_text())["fits"]
    changed = {name for name, one in after.items() if written(one) != before[name]}
    assert changed == {min(categories)}

    base = load_pretrained(run_dir)
    taught = [f"--gin.TEACHERS={teachers}", "--gin.LEARNING_RATE=0.05"]
    first = hyper_words(run_dir, instructed_store, tmp_path / "hyper", *taught, "--gin.STEPS=4")
    assert main(first) == 0
    said = capsys.readouterr().out
    assert "base" in said and "frozen" in said and "trained" in said
    lines = [json.loads(line) for line in (tmp_path / "hyper" / "metrics.jsonl").read_text().splitlines()]
    assert {f"train/term/{name}" for name in ("target", "teacher", "update")} <= set(lines[-1])
    pretrained, _ = load_hyper_run(tmp_path / "hyper")
    jax.tree.map(np.testing.assert_array_equal, pretrained.params, base.params)

    gin = ["evaluate", "--gin_file=runs/evaluate.gin", f"--gin.CHECKPOINT={tmp_path / 'hyper'}"]
    assert main([*gin, *evaluate_words(instructed_store, tmp_path / "own")]) == 0
    wrong = "--gin.INSTRUCTION_OF=@instructed.of_another_category"
    assert main([*gin, *evaluate_words(instructed_store, tmp_path / "wrong", wrong)]) == 0
    own, wrong = ((tmp_path / folder / "scores.json").read_text() for folder in ("own", "wrong"))
    assert json.loads(wrong)["instruction_of"] == "of_another_category" and own != wrong

    further = [f"--gin.HYPERNET={tmp_path / 'hyper'}", "--gin.LEARNING_RATE=0.0", "--gin.STEPS=2"]
    assert main(hyper_words(run_dir, instructed_store, tmp_path / "further", *further)) == 0
    begun, going_on = (load_hyper_run(tmp_path / folder)[1].params for folder in ("hyper", "further"))
    jax.tree.map(np.testing.assert_array_equal, going_on, begun)
    other = hyper_words(run_dir, instructed_store, tmp_path / "other", *further, "--gin.FUSION='none'")
    assert main(other) == 1 and "its fusion is" in capsys.readouterr().err


@pytest.mark.long
def test_tasks_that_are_learned_by_name_are_validated_by_their_numbers(run_dir, instructed_store, tmp_path):
    words = hyper_words(run_dir, instructed_store, tmp_path / "named", "--gin.STEPS=2", "--gin.EVALUATE_EVERY=2")
    words = [word for word in words if "tagi" not in word] + ["--gin_file=hypernets/text_to_lora.gin"]
    assert main([*words, "--gin.EVALUATIONS=(@hypernet.validation_loss,)"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "named" / "metrics.jsonl").read_text().splitlines()]
    assert any("validation/loss" in line for line in lines)


@pytest.mark.long
def test_a_model_that_reads_demonstrations_teaches_a_hypernetwork(run_dir, instructed_store, tmp_path):
    few = ["--gin.SUPPORTS=4", "--gin.QUERIES=4", "--gin.STEPS=2", f"--gin.TEACHER_PRETRAINED={run_dir}"]
    few += ["--gin.icl_format.Format.query_token='<extra_id_0>'"]
    words = hyper_words(run_dir, instructed_store, tmp_path / "fused", "--gin_file=runs/fid_teacher.gin", *few)
    assert main([*words, "--gin.BASE_OPTIMIZER=@base/optim.adafactor", "--gin.TRAINED='norms and embeddings'"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "fused" / "metrics.jsonl").read_text().splitlines()]
    terms = {name for line in lines for name in line if name.startswith("train/term/")}
    assert terms == {"train/term/target", "train/term/teacher"}, "no adapters, no distance of updates"
    assert lines[-1]["train/term/teacher"] > 0
    before, (after, _) = load_pretrained(run_dir), load_hyper_run(tmp_path / "fused")
    moved = {path for path, leaf in flat(after.params).items() if not np.array_equal(leaf, flat(before.params)[path])}
    assert moved and all("norm" in path or "token_embedding" in path for path in moved)
    names = json.loads((tmp_path / "fused/checkpoints/2/optimizer/_METADATA").read_text())["tree_metadata"]
    of_base = [name for name in names if name.startswith("('base',")]
    assert any("v_row" in name for name in of_base), "Adafactor's"
    assert any("'mu'" in name for name in names) and not any("'mu'" in name for name in of_base), "Adam's"


def test_a_reader_has_the_words_of_the_model(run_dir, other_store, tmp_path):
    base = load_pretrained(run_dir)
    save_pretrained(tmp_path / "other", dataclasses.replace(base, tokenizer=TokenStore(other_store).tokenizer()))
    module = HyperModel(hyper_presets.hypter(), base.module, base.module)
    load = hypernet.weights_of(module=module, path=str(run_dir), reader_path=str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"READER_PRETRAINED has another vocabulary, .*; give a reader with the same"):
        load(None)


def test_each_task_gets_another_instruction_of_another_category():
    """Tasks c and f, of two categories, say the same."""
    names, categories, first = list("abcdef"), ["x", "x", "y", "y", "z", "x"], [b"1", b"2", b"3", b"4", b"5", b"3"]
    choose = instructed.of_another_category
    found = dict(zip(names, choose(names, categories, first), strict=True))
    category, says = (dict(zip(names, column, strict=True)) for column in (categories, first))
    assert all(category[name] != category[other] and says[name] != says[other] for name, other in found.items())
    turned = choose(names[::-1], categories[::-1], first[::-1])
    assert dict(zip(names[::-1], turned, strict=True)) == found
    seeds = [dict(zip(names, choose(names, categories, first, seed=seed), strict=True)) for seed in range(20)]
    assert {one["c"] for one in seeds} == {"a", "b", "e"}
    for categories, first in ((["x", "x"], [b"1", b"2"]), (["x", "y"], [b"1", b"1"])):
        with pytest.raises(InputError, match="task a: none of 2 tasks has another category and another instruction"):
            choose(["a", "b"], categories, first)


def test_tasks_of_the_largest_categories_keep_the_order_of_the_store(instructed_store):
    store = TokenStore(instructed_store)
    names = store.task_names("train")
    assert hypernet.task_names(store=store) == names
    sizes = {}
    for name in names:
        sizes.setdefault(store.entry(name, "train").category, []).append(name)
    largest = min(sizes, key=lambda one: (-len(sizes[one]), one))
    assert hypernet.task_names(store=store, most_categories=1) == sizes[largest]
    with pytest.raises(InputError, match=f"NUM_CATEGORIES is 99; .* has {len(sizes)}"):
        hypernet.task_names(store=store, most_categories=99)


def test_teachers_read_instruction_and_input_as_one_text(instructed_store):
    store = TokenStore(instructed_store)
    name = store.task_names("train")[0]
    fit = fit_adapters.fit_of_tasks(store, "train", "group", [name], 0.1, 0, 1024)
    examples = store.examples(name, "train")
    text = store.tokenizer().decode(list(examples.instruction(0))) + " " + store.tokenizer().decode(examples.row(0)[0])
    assert store.tokenizer().decode(fit.inputs[0]).split() == text.split()
    assert fit.inputs[0].count(store.manifest.vocabulary.eos) == 1
    alone = fit_adapters.fit_of_tasks(store, "train", "group", [name], 0.1, 0, 1024, fit_adapters.input_alone)
    assert alone.inputs == [examples.row(row)[0].tolist() for row in range(len(examples))]
    short = fit_adapters.fit_of_tasks(store, "train", "group", [name], 0.1, 0, 10)
    assert {len(ids) for ids in short.inputs} == {10}


def test_folders_of_groups_are_safe_and_their_own(instructed_store):
    assert fit_adapters.folder_of("Answer / Verification (new)") == "Answer_Verification_new_"
    assert fit_adapters.folder_of("../x") == "_x"
    store = TokenStore(instructed_store)
    names = store.task_names("train")
    with pytest.raises(InputError, match="groups 'a/b' and 'a:b' would share the folder a_b"):
        fit_adapters.grouped(store, "train", lambda name, category: "a/b" if name == names[0] else "a:b")


def test_adapters_count_only_once_they_are_whole(tmp_path):
    assert fit_adapters.finished(tmp_path) is None, "other people's PEFT folders have no such file"
    (tmp_path / "fits.json").write_text(json.dumps({"fits": {"a/b": {"key": "x"}, "broken": 3}}))
    assert fit_adapters.finished(tmp_path) == {"a_b"}


def test_without_teachers_or_weights_only_targets_count(instructed_store):
    store = TokenStore(instructed_store)
    options = dict(store=store, names=store.task_names("train"), path="nowhere", group=fit_adapters.category)
    adapted = functools.partial(teaching.adapted_teacher, reads=teachers.instruction_and_input)
    plain = teaching.taught_loss(**options, make_teacher=adapted, z_loss=0.5)
    assert (plain.teacher, plain.updates, plain.z_loss) == (None, None, 0.5)
    nothing = dict(teachers="nowhere", teacher_weight=0.0, update_weight=0.0)
    assert isinstance(teaching.taught_loss(**options, make_teacher=adapted, **nothing), InstructedLoss)


def test_a_store_without_instructions_and_other_mistakes_are_refused_in_one_line(
    run_dir, store, instructed_store, tmp_path, capsys
):
    def error(*words):
        assert main(list(words)) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ")
        return line

    assert "has no instructions; cache with tasks/with_instructions" in error(
        *hyper_words(run_dir, store, tmp_path / "a")
    )
    gin = ["evaluate", "--gin_file=runs/evaluate.gin", f"--gin.CHECKPOINT={run_dir}"]
    wrong = "--gin.INSTRUCTION_OF=@instructed.of_another_category"
    assert "is no run of a hypernetwork" in error(*gin, *evaluate_words(store, tmp_path / "b", wrong))
    (tmp_path / "c" / "checkpoints").mkdir(parents=True)
    (tmp_path / "c" / "hypernet.json").write_text("{}")
    with pytest.raises(InputError, match="is the run of a hypernetwork, not of a model"):
        load_pretrained(tmp_path / "c")


@pytest.mark.parametrize("encoder", ["shared", "separate"])
def test_a_new_hypernetwork_begins_with_the_weights_of_its_models(run_dir, encoder):
    base = load_pretrained(run_dir)
    hyper = hyper_presets.tagi(encoder=encoder, outputs=(LoRA(rank=2, alpha=2.0),), memory="input")
    reader = load_pretrained(run_dir).module if encoder == "separate" else None
    module = hypernet.module_of(hyper=hyper, base=base.module, reader=reader)
    params = hypernet.weights_of(module=module, path=run_dir, reader_path=run_dir)(make_mesh(data=1))
    wanted = nn.unbox(abstract_params(module))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, wanted)
    jax.tree.map(np.testing.assert_array_equal, params["base"], base.params)
    for path, leaf in flat(params.get("reader", {})).items():
        np.testing.assert_array_equal(leaf, flat(base.params)[path])
