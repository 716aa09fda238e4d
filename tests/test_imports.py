"""Which parts may import which, read from the source; and that the training path needs no TensorFlow and no torch."""

import ast
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxmtl"
ORDER = (
    "types files host_memory sentencepiece_json tokenizers tasks feed models adapters partitioning weights checkpoints"
    " training evals studies reports commands hosts main"
).split()
ALLOWED = {part: set(ORDER[: ORDER.index(part)]) for part in ORDER}
for part in ("training", "evals", "studies", "reports", "commands", "main"):
    ALLOWED[part].add("writers")
ALLOWED["writers"] = {"types", "files"}
ALLOWED["hosts"] = {"types"}
ALLOWED["data"] = {"types", "files", "tokenizers", "tasks", "feed"}
HEAVY = ("tensorflow", "torch", "transformers", "seqio")


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Yields the full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_part_imports_only_parts_before_it(path):
    part = part_of(path)
    assert part in ALLOWED, f"{part} has no place in the import order"
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] != "jaxmtl" or len(pieces) == 1 or pieces[1] == part or pieces[1] == "__version__":
            continue
        assert pieces[1] in ALLOWED[part], f"{part} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_gin_is_imported_by_main_only_and_tensorflow_by_data_only(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert "gin" not in roots or part_of(path) == "main"
    heavy = roots & {"tensorflow", "seqio", "tensorflow_text", "torch", "apache_beam"}
    # torch's own files are read by torch, which is asked for when there is such a file and not before.
    assert part_of(path) == "data" or heavy <= ({"torch"} if path.name == "torch_pickles.py" else set())


BLOCKED_IMPORT = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocker())
for name in {names!r}:
    importlib.import_module(name)
loaded = sorted(name for name in {heavy!r} if name in sys.modules)
assert not loaded, loaded
"""


def test_everything_but_data_imports_without_tensorflow_and_torch():
    modules = [path for path in FILES if part_of(path) != "data"]
    names = [".".join(("jaxmtl", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in modules]
    names = [name.removesuffix(".__init__") for name in names]
    assert "jaxmtl.training.loop" in names
    code = BLOCKED_IMPORT.format(heavy=HEAVY, names=names)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_package_that_users_must_install_is_imported():
    tree = ast.parse((PACKAGE.parent / "setup.py").read_text("utf-8"))
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    required = {re.split(r"[<>=]", requirement)[0] for requirement in ast.literal_eval(values["BASE"])}
    roots = {name.split(".")[0] for path in FILES for name in imports(path)}
    providers = importlib.metadata.packages_distributions()
    imported = {distribution for root in roots for distribution in providers.get(root, ())}
    assert required <= {re.sub(r"[-_.]+", "-", name).lower() for name in imported}
