import os
import pathlib

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
TOY_SIZE = "FOLDER = 'here'\nROWS_PER_TASK = 20\nSTEPS = 8"


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(cell):
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def cell_with(notebook, text):
    return next(cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source)


def test_outputs_are_not_kept():
    code = [cell for cell in read().cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)


def test_one_cell_holds_the_sizes():
    assert [cell.source.count("STEPS =") for cell in read().cells if "parameters" in cell.metadata.get("tags", ())] == [
        1
    ]


@pytest.mark.long
def test_the_notebook_runs_from_rows_to_scores(tmp_path, monkeypatch):
    import nbclient

    notebook = read()
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = TOY_SIZE
    # The kernel is a process of its own: it must find the package, and its own folder for settings.
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()

    assert "train: 48 examples" in outputs(cell_with(notebook, "cache_tasks"))
    assert any("image/png" in output.get("data", {}) for output in cell_with(notebook, "plt.show").outputs)
    table = outputs(cell_with(notebook, "evaluate("))
    assert all(word in table for word in ("exact_match", "colour", "mood", "count"))
    assert "a hat and a green boat ->" in outputs(cell_with(notebook, "generate("))
    assert "model.safetensors" in outputs(cell_with(notebook, "save_pretrained"))
    assert (tmp_path / "here" / "run" / "scores.json").exists() and sorted(os.listdir(tmp_path)) == ["here", "ipython"]
