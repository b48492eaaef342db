"""What the notebooks carry of the package, so that each runs alone. To renew it after a change: python tests/carry.py

In a folder that has no `guppylm/`, a notebook's set-up cell unpacks the archive that stands in its `carried = "..."`.
"""

import base64
import io
import re
import tarfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
SOURCE = ["guppylm/*.py", "guppylm/web/*"]
CARRIED = {"train_guppylm.ipynb": [*SOURCE, "data_templates/*.toml"], "use_guppylm.ipynb": SOURCE}
LINE = re.compile(r'^carried = "(.*)"$', re.M)


def contents(patterns: list[str]) -> dict[str, str]:
    """The text of each file, by its path in the project."""
    paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def pack(texts: dict[str, str]) -> str:
    """The files as a compressed archive, spelled in letters that a string in a notebook can hold (base85).

    It names no dates and no owners, so the same files make the same archive.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:bz2") as tar:
        for path, text in texts.items():
            entry, data = tarfile.TarInfo(path), text.encode()
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return base64.b85encode(archive.getvalue()).decode()


def unpack(source: str) -> dict[str, str]:
    """What the set-up cell with this source would unpack: the text of each file, by its path."""
    archive = io.BytesIO(base64.b85decode(LINE.search(source)[1]))
    with tarfile.open(fileobj=archive) as tar:
        return {entry.name: tar.extractfile(entry).read().decode() for entry in tar}


def setup_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The one cell that carries an archive."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and LINE.search(cell.source)]
    return cell


def renew(name: str) -> None:
    """Write the archive of the files as they are now into a notebook."""
    notebook = nbformat.read(ROOT / name, as_version=4)
    cell, line = setup_cell(notebook), f'carried = "{pack(contents(CARRIED[name]))}"'
    cell.source = LINE.sub(lambda _: line, cell.source)
    nbformat.write(notebook, ROOT / name)
    print(f"{name}: {len(line) / 1000:.0f} KB carried")


if __name__ == "__main__":
    for name in CARRIED:
        renew(name)
