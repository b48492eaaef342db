"""Both notebooks run in quick mode, beside a checkout and alone; they show what they promise and name no machine."""

import copy
import http.server
import io
import itertools
import json
import re
import shutil
import statistics
import threading

import nbformat
import pytest
import torch
from carry import CARRIED, ROOT, contents, pack, setup_cell, unpack
from conftest import SHIPPED
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from test_export import Hub

from guppylm import checkpoint

NOTEBOOKS = ["train_guppylm.ipynb", "use_guppylm.ipynb"]
PARTS = ["Data", "Tokenizer", "The transformer", "Training", "Overfitting", "Generation", "Inside", "Honest evaluation",
         "Swap the data", "Take it home"]  # fmt: skip
ABSOLUTE = re.compile(r"(?<![\w.])/(?:home|Users|tmp|root|content|usr|var|private|work)/|[A-Z]:\\")
DRAWS = re.compile(r"\bplots\.(?!visible)")  # a cell that draws. An import names the module without the point

# Read by Python as it starts: no way out of this machine, and of the packages only those that Colab is sure to have.
ALONE = """
import socket, sys
sys.modules.update(dict.fromkeys(["safetensors", "onnx", "onnxscript", "onnxruntime", "transformers", "hypothesis"]))
connect = socket.socket.connect
def stay(self, address):
    if isinstance(address, tuple) and not address[0].startswith("127."):
        raise OSError(f"no network: {address}")
    return connect(self, address)
socket.socket.connect = stay
"""


def read(name):
    """The notebook without its outputs."""
    notebook = nbformat.read(ROOT / name, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    return notebook


def execute(notebook, folder, **environment):
    """The notebook with its outputs, run in quick mode in a folder. An error in a cell is an error here."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {"GUPPYLM_QUICK": "1", **environment}.items():
            patch.setenv(variable, str(value))
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


@pytest.fixture(scope="module")
def empty_folder(tmp_path_factory):
    """Where both notebooks are tried alone: the one that trains first, so that the other finds a fish."""
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what stands beside the notebooks, in which nobody has trained a fish of their own."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in ("guppylm", "data_templates"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "guppylm" / "train.py").open("a", encoding="utf-8") as file:
        file.write("# a learner's own line\n")
    return folder


@pytest.fixture(scope="module")
def gone_on(checkout, tmp_path_factory):
    """The training notebook, run again after its training was cut off, and the folder of its runs.

    This second time the two cells that begin and train are run twice.
    """
    runs = tmp_path_factory.mktemp("runs")
    cut_off, whole = read("train_guppylm.ipynb"), read("train_guppylm.ipynb")
    (begin,) = [i for i, cell in enumerate(whole.cells) if "state = train.start(model, config, p" in cell.source]
    (loop,) = [i for i, cell in enumerate(whole.cells) if "in tqdm(train.train(" in cell.source]
    cut_off.cells = cut_off.cells[: loop + 1]
    saved = "        runs.save(folder, state, data, config, record)\n"
    assert saved in cut_off.cells[loop].source
    cut_off.cells[loop].source = cut_off.cells[loop].source.replace(saved, saved + "        raise SystemError\n")
    with pytest.raises(CellExecutionError, match="SystemError"):
        execute(cut_off, checkout, GUPPYLM_RUNS=runs)
    whole.cells[loop + 1 : loop + 1] = [copy.deepcopy(whole.cells[i]) for i in (begin, loop)]
    for cell in whole.cells[loop + 1 : loop + 3]:
        cell.id += "again"  # two cells may not share one
    return execute(whole, checkout, GUPPYLM_RUNS=runs), runs


@pytest.fixture(scope="module", params=list(itertools.product(NOTEBOOKS, ("checkout", "alone"))), ids=" ".join)
def executed(request, tmp_path_factory, empty_folder, checkout):
    """The name of a notebook, and the notebook with its outputs."""
    name, where = request.param
    if where == "checkout":
        gone_on = name == "train_guppylm.ipynb"
        return name, request.getfixturevalue("gone_on")[0] if gone_on else execute(read(name), checkout)
    start = tmp_path_factory.mktemp("start")
    (start / "sitecustomize.py").write_text(ALONE, encoding="utf-8")
    if name == "use_guppylm.ipynb" and not (empty_folder / "checkpoints").exists():
        execute(read("train_guppylm.ipynb"), empty_folder, PYTHONPATH=start)
    notebook = execute(read(name), empty_folder, PYTHONPATH=start)
    assert (empty_folder / "guppylm" / "train.py").read_bytes() == (ROOT / "guppylm" / "train.py").read_bytes()
    return name, notebook


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
        if DRAWS.search(cell.source) and "if copied" not in cell.source:  # a run that goes on gets no lesson
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


def test_a_run_that_was_cut_off_goes_on_where_it_was_saved_and_cells_run_twice_keep_it(gone_on):
    again, runs = gone_on
    steps = [re.findall(r"at step (\d) of 6", written(cell)) for cell in code_cells(again)]
    assert [step for step in steps if step] == [["2"], ["6"]]
    (history,) = runs.glob("guppy-*/history.jsonl")
    assert [json.loads(line)["step"] for line in history.read_text(encoding="utf-8").splitlines()] == [2, 4, 6]


def test_beside_a_checkout_nothing_is_unpacked(gone_on, checkout):
    assert (checkout / "guppylm" / "train.py").read_text(encoding="utf-8").endswith("# a learner's own line\n")


@pytest.mark.parametrize("wanted", ["me/minnow", "mine"])
def test_the_fish_that_is_named_is_found(wanted, tmp_path):
    """A published one, in the published layout, or a folder; the package is unpacked, and ships none."""
    model, tok, _ = checkpoint.load(SHIPPED, torch.device("cpu"))
    sizes = {theirs: getattr(model.config, ours) for ours, theirs in checkpoint.PUBLISHED.items()}
    torch.save(model.state_dict(), weights := io.BytesIO())
    Hub.files = {"config.json": json.dumps({"model_type": "guppylm", **sizes}).encode(),
                 "tokenizer.json": tok.to_json().encode(), "pytorch_model.bin": weights.getvalue()}  # fmt: skip
    shutil.copytree(SHIPPED, tmp_path / "mine")
    notebook = read("use_guppylm.ipynb")
    (form,) = [cell for cell in code_cells(notebook) if 'wanted = ""' in cell.source]
    form.source = form.source.replace('wanted = ""', f'wanted = "{wanted}"')
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        execute(notebook, tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()
    fetched = tmp_path / "checkpoints" / "me" / "minnow" / "pytorch_model.bin"
    assert fetched.exists() == (wanted == "me/minnow")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_stored_outputs_are_those_of_one_whole_run(name):
    cells = code_cells(nbformat.read(ROOT / name, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not [out for out in cell.outputs if out.output_type == "error"], cell.source
        assert pictures(cell) or not DRAWS.search(cell.source), cell.source
        assert not written(cell).startswith("quick mode"), "the stored run was a quick one"


def test_the_parameters_add_up(executed):
    name, notebook = executed
    if name == "train_guppylm.ipynb":
        assert any("8,726,016 = 8,726,016" in written(cell) for cell in code_cells(notebook))


def test_there_is_more_to_read_than_to_run():
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
def test_it_carries_the_package_as_it_is(name):
    source = setup_cell(nbformat.read(ROOT / name, as_version=4)).source
    assert unpack(source) == contents(CARRIED[name]), "renew the copy: python tests/carry.py"
    assert pack(contents(CARRIED[name])) in source  # in the spelling of the command, so that renewing changes nothing


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_valid_and_clean(name):
    notebook = nbformat.read(ROOT / name, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not [trace for trace in ("/home/", "/Users/", "C:\\", "/tmp/", "/root/") if trace in text]
    assert "pip install" not in text and "GITHUB_REPO" not in text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_first_cell_leads_to_colab(name):
    first = nbformat.read(ROOT / name, as_version=4).cells[0].source
    assert re.search(r"\[!\[Open in Colab\]\(https://\S+badge.svg\)\]\(https://colab.research.google.com/", first)


def test_the_training_notebook_asks_for_a_gpu():
    metadata = nbformat.read(ROOT / "train_guppylm.ipynb", as_version=4).metadata
    assert metadata["accelerator"] == "GPU" and metadata["colab"]["gpuType"] == "T4"
