"""Writes the report of finished runs: report.html, whole in itself, and its pictures in figures/."""

from cifar_jax import workdir
from cifar_jax.data.dataset import fingerprint
from cifar_jax.errors import InputError
from cifar_jax.evaluate import load_trained
from cifar_jax.files import replace_file
from cifar_jax.report.data import find
from cifar_jax.report.runs import read_runs

REPORT = "report.html"
FIGURES = "figures"


def write_report(directories: list[str], overrides: list[str]) -> str:
    """Reports the first run, compared with the others, in its folder; returns a line that says what was written.

    overrides: as for evaluate.load_trained. Raises InputError before anything is written where a folder holds no finished
    run or cannot be written, or the data cannot be had or is other data than the first run's.
    """
    runs = read_runs(directories)
    path = runs[0].path
    for folder in (path, path / FIGURES):
        workdir.check_writable(folder)
    if (path / REPORT).is_dir():
        raise InputError(f"--workdir: got {path}, in which {REPORT} is a folder, expected a file or nothing; move it away")
    trained = load_trained(directories[0], None, overrides)
    workdir.check_data(path, fingerprint(trained.dataset))
    from cifar_jax.report.page import make_page  # importing Matplotlib writes its cache of fonts, which bad input must not

    text, pictures = make_page(runs, find(runs[0], trained))
    with workdir.errors_of_writing(path):
        (path / FIGURES).mkdir(exist_ok=True)
        for picture in pictures:
            replace_file(path / FIGURES / f"{picture.name}.png", picture.png)
        replace_file(path / REPORT, text.encode())
    return f"{path / REPORT}, and its {len(pictures)} figures in {path / FIGURES}"
