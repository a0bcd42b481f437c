"""What the documents say: examples in docstrings run, links lead to files, keys and files in commands exist."""

import doctest
import importlib
import pathlib
import re
import shlex

import pytest

from cifar_jax.config import flatten
from configs import base

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "results/reliability.md")
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in NAMES)]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MODULES = [path for path in sorted((ROOT / "cifar_jax").rglob("*.py")) if ">>> " in path.read_text()]
every_page = pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_in_docstrings(path, monkeypatch):
    monkeypatch.chdir(ROOT)  # they name configs and images
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted and not done.failed


@every_page
def test_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


@every_page
def test_keys_of_the_config_exist(path):
    keys = re.findall(r"--config\.([a-z_0-9.]*[a-z_0-9])", path.read_text())
    assert set(keys) <= flatten(base.get_config()).keys()


def find_runs(text: str) -> list[tuple[str, str]]:
    """(workdir, what a run there was made by: settings of XLA, config, overrides) of each command that trains."""
    command = r"(?:XLA_FLAGS=\S+ )?python (?:run\.py(?: sweep)?|-m baselines\.train) --config[^\n`]*"
    found = []
    for line in re.findall(command, text.replace("\\\n", " ")):
        words = shlex.split(line, comments=True)
        kind = "-sweep" * ("sweep" in words) + "_torch" * ("baselines.train" in words)
        name = pathlib.Path(words[words.index("--config") + 1]).stem + kind
        workdir = words[words.index("--workdir") + 1] if "--workdir" in words else f"runs/{name}"
        made_by = [
            w for w in words if w.startswith(("XLA_FLAGS", "--config.")) and not re.search(r"\.(coordinator|num_proc|process)", w)
        ]
        if "--config.parallel.process_id=1" not in words:  # which needs no workdir
            found.append((workdir, " ".join([name, *sorted(made_by)])))
    return found


def test_no_command_trains_in_the_folder_of_another():
    runs = {run for path in [*PAGES, *sorted((ROOT / "configs").glob("*.py"))] for run in find_runs(path.read_text())}
    workdirs = [workdir for workdir, _ in runs]
    assert len(runs) > 25 and sorted(run for run in runs if workdirs.count(run[0]) > 1) == []


OTHERS = {"configs/NAME.py", "configs/short.py", "benchmarks/NAME.py"}  # what a reader puts there


@every_page
def test_files_that_are_named_exist(path):
    folders = "cifar_jax|configs|tests|results|baselines|benchmarks|examples|docs"
    files = re.findall(rf"\b((?:{folders})/[\w./]+\.\w+)", path.read_text())
    assert [file for file in files if file not in OTHERS and not (ROOT / file).exists()] == []
