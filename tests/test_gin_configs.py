"""Every gin file is parsed in the order that its header asks for; what is built is looked at where that is cheap."""

import dataclasses
import itertools
import re

import jax
import pytest

from jaxmtl.main import GIN_FOLDER, GinConfig
from jaxmtl.models import bart, bart_config, gpt, gpt_config, t5, t5_config
from jaxmtl.models.t5_config import named_config

SMALL, PRETRAINED, TRAIN = "models/t5_1_1/small.gin", "models/pretrained.gin", "runs/train.gin"
TRAINING = ["STORE=runs/store", "RUN_DIR=runs/first"]
ROBERTAS = sorted(str(path.relative_to(GIN_FOLDER)) for path in GIN_FOLDER.glob("models/roberta/*.gin"))
HEADS = "runs/heads.gin"
MODELS = sorted({str(path.relative_to(GIN_FOLDER)) for path in GIN_FOLDER.glob("models/*/*.gin")} - set(ROBERTAS))
MESHES = sorted(str(path.relative_to(GIN_FOLDER)) for path in GIN_FOLDER.glob("mesh/*.gin"))
TRANSFER = sorted(str(path.relative_to(GIN_FOLDER)) for path in GIN_FOLDER.glob("studies/transfer_matters/*.gin"))
HYPERNET = "runs/hypernet.gin"
HYPERNETS = sorted(str(path.relative_to(GIN_FOLDER)) for path in GIN_FOLDER.glob("hypernets/*.gin"))
TAGI = sorted(str(path.relative_to(GIN_FOLDER)) for path in GIN_FOLDER.glob("studies/tagi/*.gin"))
TAUGHT = ["PRETRAINED=runs/first", "TEACHERS=runs/teachers", "HYPERNET=runs/pretrained"]
CACHING = ["STORE=runs/store", "VOCABULARY=t5/spiece.model"]


def taught_for(study):
    """What a study of TAGI needs besides store and run folder."""
    return TAUGHT[:1] if "pretrain.gin" in study else TAUGHT[:2] if "without_pretraining" in study else TAUGHT


LAYERINGS = [
    *(([model, TRAIN], TRAINING) for model in MODELS),
    (["models/t5.gin", TRAIN], [*TRAINING, "SIZE=t5-small"]),
    (["models/bart.gin", TRAIN], [*TRAINING, "SIZE=bart-base"]),
    (["models/gpt2.gin", TRAIN], [*TRAINING, "SIZE=gpt2-124m"]),
    (["models/opt.gin", TRAIN], [*TRAINING, "SIZE=opt-125m"]),
    ([PRETRAINED, TRAIN], [*TRAINING, "PRETRAINED=google/t5-v1_1-small"]),
    ([SMALL, TRAIN, "runs/validation.gin"], TRAINING),
    ([SMALL, TRAIN, "runs/generation.gin"], TRAINING),
    ([SMALL, TRAIN, "runs/fid.gin"], TRAINING),
    ([SMALL, TRAIN, "runs/interleave.gin"], [*TRAINING, "TEXT_STORE=runs/text"]),
    *(([SMALL, file], [*TRAINING, *["TEXT_STORE=runs/text"] * file.endswith("text.gin")]) for file in TRANSFER),
    (["models/t5_1_1/tiny.gin", "runs/demo.gin"], TRAINING),
    *(([SMALL, TRAIN, mesh], TRAINING) for mesh in MESHES),
    ([SMALL, TRAIN, "runs/plan.gin"], []),
    (["runs/evaluate.gin"], [*TRAINING, "CHECKPOINT=runs/first"]),
    *((["runs/evaluate.gin", mesh], [*TRAINING, "CHECKPOINT=runs/first"]) for mesh in MESHES),
    (["runs/evaluate.gin", "runs/few_shot.gin"], [*TRAINING, "CHECKPOINT=runs/first"]),
    (["runs/evaluate.gin", "runs/few_shot_models.gin"], [*TRAINING, "CHECKPOINT=runs/first"]),
    (["runs/evaluate.gin", "runs/trajectory.gin"], [*TRAINING, "CHECKPOINT=runs/first"]),
    (["runs/evaluate.gin", "runs/rank.gin"], [*TRAINING, "CHECKPOINT=runs/first"]),
    (["runs/evaluate.gin", "runs/rank.gin", "runs/few_shot.gin"], [*TRAINING, "CHECKPOINT=runs/first"]),
    (["runs/evaluate.gin", "runs/rank.gin", "runs/icl.gin"], [*TRAINING, "CHECKPOINT=runs/first"]),
    (["runs/evaluate.gin", "runs/icl.gin"], [*TRAINING, "CHECKPOINT=runs/first", "JUDGE=@target_losses.TargetLosses"]),
    (["tasks/p3.gin"], [*CACHING, "DATA_DIR=data"]),
    (["models/t5_1_1/tiny.gin", "runs/untrained.gin"], TRAINING),
    ([SMALL, "runs/untrained.gin", "mesh/cpu1.gin"], TRAINING),
    *(([model, TRAIN, HEADS], TRAINING) for model in ROBERTAS),
    (["models/roberta.gin", TRAIN, HEADS], [*TRAINING, "SIZE=roberta-base"]),
    (["models/roberta_pretrained.gin", TRAIN, HEADS], [*TRAINING, "PRETRAINED=FacebookAI/xlm-roberta-base"]),
    *(([preset, HYPERNET], [*TRAINING, *TAUGHT]) for preset in HYPERNETS if "text_to_lora" not in preset),
    ([HYPERNET, "hypernets/text_to_lora.gin"], [*TRAINING, *TAUGHT]),
    *((["hypernets/tagi.gin", file], [*TRAINING, *taught_for(file)]) for file in TAGI),
    (["hypernets/tagi.gin", HYPERNET, "runs/fid_teacher.gin"], [*TRAINING, *TAUGHT[:1], "TEACHER_PRETRAINED=runs/fid"]),
    (["hypernets/hint.gin", HYPERNET], [*TRAINING, *TAUGHT[:1], "BASE_OPTIMIZER=@base/optim.adafactor"]),
    (["runs/teachers.gin"], [*TRAINING, "PRETRAINED=runs/first"]),
    (["runs/evaluate_heads.gin"], [*TRAINING, "CHECKPOINT=runs/heads"]),
    *(([model, "runs/untrained_heads.gin"], TRAINING) for model in ROBERTAS),
    (["runs/evaluate_heads.gin", "runs/trajectory.gin"], [*TRAINING, "CHECKPOINT=runs/heads"]),
    (["runs/evaluate_heads.gin", "runs/few_shot_heads.gin"], [*TRAINING, "CHECKPOINT=runs/encoder"]),
    (["tasks/transfer.gin"], [*CACHING, "DATA_DIR=data"]),
]
SNI = ("sni_train", "sni_test", "transfer_matters", "transfer_matters_unseen")
WITH_TENSORFLOW = [
    (["tasks/toy.gin"], CACHING),
    (["tasks/jsonl.gin"], [*CACHING, "DATA_DIR=mine"]),
    (["tasks/jsonl.gin", "tasks/each_instruction.gin"], [*CACHING, "DATA_DIR=mine"]),
    (["tasks/text.gin"], [*CACHING, "DATA_DIR=texts"]),
    (["tasks/seqio_cache.gin"], [*CACHING, "SEQIO_CACHE=cached"]),
    *(([f"tasks/{name}.gin"], [*CACHING, "DATA_DIR=sni"]) for name in SNI),
    (["tasks/sni_train.gin", "tasks/with_instructions.gin"], [*CACHING, "DATA_DIR=sni"]),
]
PUBLISHED = {
    "t5_1_0": ("t5-{}", t5.T5, t5_config),
    "t5_1_1": ("t5-v1.1-{}", t5.T5, t5_config),
    "bart": ("bart-{}", bart.BART, bart_config),
    "gpt2": ("gpt2-{}", gpt.GPT, gpt_config),
    "opt": ("opt-{}", gpt.GPT, gpt_config),
}
"""Folder of sizes: their names, the module, where the named configs are."""
ALONE = ("tasks/seqio_cache.gin", "tasks/with_instructions.gin", "tasks/each_instruction.gin")
# Included by others; they cannot be given alone.
INCLUDED = {"runs/cache.gin", "runs/decoding.gin"}

name_of = lambda layering: " ".join([*layering[0], *layering[1]])


def all_files():
    return {str(path.relative_to(GIN_FOLDER)) for path in GIN_FOLDER.rglob("*.gin")}


def includes(file, other):
    """Whether a gin file includes another, itself or through others."""
    included = re.findall(r'(?m)^include "(.+)"', (GIN_FOLDER / file).read_text())
    return other in included or any(includes(one, other) for one in included)


def macros_of(file):
    """The macros that a gin file or those that it includes give a value."""
    text = (GIN_FOLDER / file).read_text()
    included = map(macros_of, re.findall(r'(?m)^include "(.+)"', text))
    return set(re.findall(r"(?m)^([A-Z_]+) =", text)).union(*included)


def assert_parses_again(files, bindings, tmp_path):
    text = GinConfig(files, bindings).text()
    assert len(text) > 100
    (tmp_path / "config.gin").write_text(text, "utf-8")
    assert GinConfig([str(tmp_path / "config.gin")], []).text() == text


def test_every_file_has_a_layering_here():
    covered = {file for files, _ in LAYERINGS + WITH_TENSORFLOW for file in files} | INCLUDED
    assert all_files() == covered


@pytest.mark.parametrize("files, bindings", LAYERINGS, ids=map(name_of, LAYERINGS))
def test_a_layering_parses_and_its_text_parses_again(files, bindings, tmp_path):
    assert_parses_again(files, bindings, tmp_path)


@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.parametrize("files, bindings", WITH_TENSORFLOW, ids=map(name_of, WITH_TENSORFLOW))
def test_a_layering_for_caching_parses_and_its_text_parses_again(files, bindings, tmp_path):
    assert_parses_again(files, bindings, tmp_path)


def test_files_that_bring_tensorflow_in_are_those_of_caching():
    needs = {file for file in all_files() if "jaxmtl.data" in (GIN_FOLDER / file).read_text()}
    assert needs == {"runs/cache.gin", "tasks/text.gin", "tasks/seqio_cache.gin"}
    assert {file for file in all_files() if includes(file, "runs/cache.gin")} == {
        file for files, _ in WITH_TENSORFLOW for file in files if file not in ALONE
    }


@pytest.mark.parametrize("model", [model for model in MODELS if "tiny" not in model])
def test_named_sizes_are_those_of_the_paper(model):
    _, family, size = model.removesuffix(".gin").split("/")
    name, module, configs = PUBLISHED[family]
    made = GinConfig([model], []).configured(module)().config
    assert made == configs.named_config(name.format(size))


@pytest.mark.parametrize("configs", [t5_config, bart_config, gpt_config], ids=lambda configs: configs.__name__)
def test_every_published_size_has_a_file(configs):
    names = [model.removesuffix(".gin").split("/")[1:] for model in MODELS if "tiny" not in model]
    found = {PUBLISHED[family][0].format(size) for family, size in names if PUBLISHED[family][2] is configs}
    assert found == set(configs.SIZES)


def test_the_tiny_model_is_tiny_and_settings_override():
    tiny = GinConfig(["models/t5_1_1/tiny.gin"], ["VOCAB_ROWS=64", "DTYPE=bfloat16"]).configured(t5.T5)()
    assert (tiny.config.vocab_size, tiny.config.dtype) == (64, "bfloat16")
    shapes = jax.eval_shape(tiny.init, jax.random.key(0), *[jax.ShapeDtypeStruct((1, 1), int)] * 2)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 1_000_000
    gpt2 = GinConfig(["models/gpt2/tiny.gin"], ["VOCAB_ROWS=51000", "POSITIONS=64"]).configured(gpt.GPT)().config
    assert (gpt2.vocab_size, gpt2.max_positions) == (51000, 64)
    small = GinConfig([SMALL], ["DROPOUT=0.3", "VOCAB_ROWS=32100", "REMAT=full"]).configured(t5.T5)().config
    expected = dataclasses.replace(named_config("t5-v1.1-small"), dropout_rate=0.3, vocab_size=32100, remat="full")
    assert small == expected


@pytest.mark.parametrize(
    "mesh, shape", [("cpu1", (1, 1, 1)), ("gpu1", (1, 1, 1)), ("gpu8", (1, 8, 1)), ("v4-8", (1, 4, 1))]
)
def test_meshes_have_the_shape_of_their_name(mesh, shape):
    from jaxmtl import partitioning

    made = GinConfig([f"mesh/{mesh}.gin"], []).configured(partitioning.make_mesh)()
    assert tuple(made.shape[axis] for axis in ("data", "fsdp", "tensor")) == shape


@pytest.mark.parametrize("file", sorted(all_files()))
def test_headers_say_what_a_file_is_for_and_what_it_needs(file):
    lines = (GIN_FOLDER / file).read_text("utf-8").splitlines()
    header = " ".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert len(header) > 30
    assert all(len(line) <= 120 for line in lines)
    required = {found[1] for line in lines if (found := re.match(r"(\w+) = %gin\.REQUIRED", line))}
    assert all(name in header for name in required), f"{required} are REQUIRED, the header does not say so"
    if file.startswith(("runs/", "studies/", "tasks/")):
        assert re.search(r"REQUIRED: |Give after ", header)
        assert re.search(r"Run: jaxmtl |Give after |Included by ", header), "the header does not say how to run it"


@pytest.mark.parametrize(
    "file", sorted(file for file in all_files() if file.startswith(("runs/", "studies/", "tasks/")))
)
def test_what_a_header_says_is_often_changed_can_be_changed(file):
    header = re.sub(r"\n# *", " ", (GIN_FOLDER / file).read_text("utf-8"))
    found = re.search(r"Often changed: (.+?)\.(?: |$)", header, re.MULTILINE)
    said = re.sub(r"\([^)]*\)|=\S+|@\S+", "", found[1]) if found else ""
    names = set(re.findall(r"\b[A-Z][A-Z_]+\b", said))
    assert bool(names) == bool(found)
    assert names <= macros_of(file)
    # The rate of caching weighs a SeqIO mixture only: neither the store nor training depends on it.
    assert not (file.startswith("tasks/") and "RATE" in names)


@pytest.mark.parametrize("file", [file for file in TAGI if "pretrain.gin" not in file])
def test_ablations_of_tagi_differ_from_it_in_one_line(file):
    def values(study):
        text = GinConfig(["hypernets/tagi.gin", study], [*TRAINING, *TAUGHT[: 2 + ("without_pre" not in study)]]).text()
        return set(re.findall(r"(?m)^[A-Z_]+ = .+(?:\n {4}.+)*", text))

    changed = values(file) ^ values("studies/tagi/finetune.gin")
    assert len(changed) == (0 if file.endswith("finetune.gin") else 2), changed


@pytest.mark.parametrize("preset", [preset for preset in HYPERNETS if "text_to_lora" not in preset])
def test_gin_gives_the_presets_of_the_papers(preset):
    from jaxmtl.adapters import hyper_presets

    make = hyper_presets.PRESETS[preset.removeprefix("hypernets/").removesuffix(".gin")]
    files = (
        ["models/pretrained.gin", preset] if "READER_PRETRAINED = %" in (GIN_FOLDER / preset).read_text() else [preset]
    )
    bindings = ["PRETRAINED=runs/first"] * (len(files) - 1)
    assert GinConfig(files, bindings).configured(make)() == make()
