"""The notebooks of docs/guides/notebooks run where Jupyter starts them, and print what is stored in them."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
FOLDER = Path(__file__).parents[1] / "docs" / "guides" / "notebooks"
#: What each prints in any case; the rest of a notebook's numbers differ from processor to processor.
PRINTED = {"classify": "zoom_in", "features": "to 1.28 s (256,)", "own_videos": "label='"}


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs)


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in outputs)


#: One in the fast tests: the guides' commands do what the other two do.
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name != "classify" else name for name in PRINTED]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs_and_gives_what_is_stored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    fresh = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(fresh, timeout=120, resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert PRINTED[name] in printed(stored) and PRINTED[name] in printed(fresh)
    assert pictures(stored) == pictures(fresh)


def test_all_notebooks_are_listed_here() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(PRINTED)
