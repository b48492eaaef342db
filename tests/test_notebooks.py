"""Both notebooks run from top to bottom in quick mode, and are saved without traces of the machine they ran on."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ["train_guppylm.ipynb", "use_guppylm.ipynb"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name, monkeypatch):
    monkeypatch.setenv("GUPPYLM_QUICK", "1")
    notebook = nbformat.read(ROOT / name, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_valid_and_clean(name):
    notebook = nbformat.read(ROOT / name, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not [trace for trace in ("/home/", "/Users/", "C:\\", "/tmp/", "/root/") if trace in text]
