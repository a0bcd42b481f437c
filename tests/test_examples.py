"""The notebook runs from its first cell to its last and is stored without outputs."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def test_it_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """{id of a code cell: (what it printed, how many pictures it showed)}."""
    notebook, folder = nbformat.read(NOTEBOOK, as_version=4), tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "TMPDIR"):
            patch.setenv(name, str(folder))
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    found = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            text = "".join(output.get("text", "") for output in cell.outputs)
            found[cell.id] = text, sum("image/png" in output.get("data", {}) for output in cell.outputs)
    return found


def test_base_knows_the_images(outputs):
    words = [line.split() for line in outputs["predict"][0].splitlines()]
    assert len(words) == 10 and sum(name == f"{found}.png" for name, found, _ in words) >= 8
    assert outputs["show"][1] == 1


def test_it_trains_two_epochs_and_shows_them(outputs):
    assert "Epoch 2/2" in outputs["train"][0] and "of 1000 test images" in outputs["train"][0]
    assert outputs["curve"][1] == outputs["own"][1] == 1
    assert "they are:" in outputs["own"][0]
