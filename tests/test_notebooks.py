"""Both notebooks run from top to bottom in quick mode, show what they promise, and keep no trace of the machine."""

import re
import statistics
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ["train_guppylm.ipynb", "use_guppylm.ipynb"]
PARTS = ["Data", "Tokenizer", "The transformer", "Training", "Overfitting", "Generation", "Inside", "Honest evaluation",
         "Swap the data", "Take it home"]  # fmt: skip
ABSOLUTE = re.compile(r"(?<![\w.])/(?:home|Users|tmp|root|content|usr|var|private|work)/|[A-Z]:\\")


@pytest.fixture(scope="module", params=NOTEBOOKS)
def executed(request, tmp_path_factory):
    """The name of a notebook, and the notebook with its outputs. An error in a cell is an error here."""
    notebook = nbformat.read(ROOT / request.param, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUPPYLM_QUICK", "1")
        patch.setenv("GUPPYLM_RUNS", str(tmp_path_factory.mktemp("runs")))
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    return request.param, notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(cell):
    return [out for out in cell.outputs if "image/png" in out.get("data", {})]


def parts(notebook):
    """The cells under each heading "## 3. Something", by that something."""
    found, name = {}, None
    for cell in notebook.cells:
        if heading := re.match(r"## \d+\. ([^:\n,]+)", cell.source):
            name = heading[1]
        found.setdefault(name, []).append(cell)
    return found


def written(cell):
    """All text that a cell has put out."""
    texts = [out.get("text", "") for out in cell.outputs]
    texts += [text for out in cell.outputs for kind, text in out.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(texts)


def test_every_cell_ran_without_an_error(executed):
    for cell in code_cells(executed[1]):
        assert cell.execution_count, cell.source
        assert not [out for out in cell.outputs if out.output_type == "error"], cell.source


def test_no_picture_is_missing(executed):
    name, notebook = executed
    for cell in code_cells(notebook):
        if re.search(r"^(?:\w+ = display\()?plots\.", cell.source, re.M):
            assert pictures(cell), f"draws nothing: {cell.source}"
    if name == "train_guppylm.ipynb":
        for part in PARTS:
            assert any(pictures(cell) for cell in parts(notebook)[part] if cell.cell_type == "code"), part


def test_outputs_name_no_place_on_this_machine(executed):
    for cell in code_cells(executed[1]):
        assert not ABSOLUTE.search(written(cell)), (cell.source, written(cell))


def test_the_run_that_was_trained_is_kept_and_loads_again(executed):
    name, notebook = executed
    if name == "train_guppylm.ipynb":
        (again,) = [cell for cell in code_cells(notebook) if "again = chat.load" in cell.source]
        assert written(again).startswith("True")


def test_the_parameters_add_up(executed):
    name, notebook = executed
    if name == "train_guppylm.ipynb":
        assert any("8,726,016 = 8,726,016" in written(cell) for cell in code_cells(notebook))


def test_it_is_there_to_be_read():
    notebook = nbformat.read(ROOT / "train_guppylm.ipynb", as_version=4)
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert len(notebook.cells) - len(lengths) >= 1.2 * len(lengths)
    assert statistics.median(lengths) <= 8


def test_each_part_ends_with_something_to_break_and_a_folded_answer():
    found = parts(nbformat.read(ROOT / "train_guppylm.ipynb", as_version=4))
    assert [name for name in found if name not in (None, "Set-up")] == PARTS
    for part in PARTS:
        texts = [cell.source for cell in found[part] if cell.cell_type == "markdown"]
        (task,) = [i for i, text in enumerate(texts) if text.startswith("**Something to break.**")]
        assert texts[task + 1].startswith("<details><summary>") and texts[task + 1].endswith("</details>")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_valid_and_clean(name):
    notebook = nbformat.read(ROOT / name, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not [trace for trace in ("/home/", "/Users/", "C:\\", "/tmp/", "/root/") if trace in text]
    assert "pip install" not in text and "GITHUB_REPO" not in text


def test_the_training_notebook_asks_for_a_gpu():
    metadata = nbformat.read(ROOT / "train_guppylm.ipynb", as_version=4).metadata
    assert metadata["accelerator"] == "GPU" and metadata["colab"]["gpuType"] == "T4"
