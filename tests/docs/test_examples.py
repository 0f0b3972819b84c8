"""The notebook and the examples run as they are printed: these train on what it distilled."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs/quickstart.ipynb"


def execute(folder):
    """The notebook's cells after they ran in `folder`."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # `ims3`
        patched.setenv("PYTHONPATH", str(ROOT))
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook.cells


def result(cells, last_line):
    """What the cell that ends so gave, as text."""
    (cell,) = (cell for cell in cells if cell.source.endswith(last_line))
    return cell.outputs[-1].data["text/plain"]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return execute(tmp_path_factory.mktemp("notebook"))


@pytest.fixture(scope="module")
def distilled(cells):
    return Path(ast.literal_eval(result(cells, 'run.distilled, run.figures["accuracy"]'))[0])


@pytest.fixture(scope="module")
def printed(distilled, tmp_path_factory):
    """What each example printed, by its name: side by side, each on one core."""
    there = tmp_path_factory.mktemp("examples")
    pushed, train, test = there / "pushed", *(distilled.parents[1] / "digits" / n for n in ("train", "test"))
    own = {"PYTHONPATH": str(ROOT), "HF_HOME": str(there), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    options = {"cwd": ROOT, "env": os.environ | own, "text": True}
    subprocess.run([sys.executable, "jobs/push.py", distilled, "--to", pushed], **options, check=True)
    given = {
        "train_resnet": (distilled / "train", test),
        "train_timm": (distilled, test),
        "train_hf": (pushed, test),
        "continual": (distilled, train, test),
    }
    running = {
        name: subprocess.Popen(
            [sys.executable, f"examples/{name}.py", *words], **options, stdout=subprocess.PIPE
        )
        for name, words in given.items()
    }
    return {name: process.communicate()[0] for name, process in running.items()}


def accuracy(printed):
    return float(re.search(r"^([\d.]+) % of 1,000 images right$", printed, re.MULTILINE)[1])


def test_the_notebook_is_kept_without_what_it_printed():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None]


@pytest.mark.chaos
def test_the_notebook_distils_looks_chooses_scores_sweeps_and_queries(cells):
    printed = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", ()))
    (picture,) = (c.outputs[-1].data for c in cells if "contact-sheet.png" in c.source)
    assert "image/png" in picture
    assert ast.literal_eval(result(cells, 'run.distilled, run.figures["accuracy"]'))[1] > 0.8
    assert "ran: ['select', 'export', 'evaluate', 'report']" in printed
    assert re.search(r"^ +ours +100 ", printed, re.MULTILINE)
    assert "best by accuracy on the validation images" in printed
    assert "distillation" in result(cells, '"metrics.accuracy"]]')


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["train_resnet", "train_timm", "train_hf"])
def test_a_network_learns_the_digits_from_the_distilled_set(printed, name):
    assert accuracy(printed[name]) > 80


@pytest.mark.chaos
def test_a_memory_of_distilled_images_holds_the_classes_as_they_come(printed):
    said = r"^(\d+) classes, (\d+) images, ([a-z ]+): ([\d.]+) % right$"
    lines = re.findall(said, printed["continual"], re.MULTILINE)
    kinds = ("distilled", "random real")
    steps = [(str(seen), str(10 * seen), name) for seen in (2, 4, 6, 8, 10) for name in kinds]
    assert [line[:3] for line in lines] == steps
    assert min(float(line[3]) for line in lines) > 70
