"""What is no file or folder, given as one: for every flag and key that names one; exit code 2, one line, and no waiting."""

import os
import pathlib
import socket

import cv2
import numpy as np
import pytest

import run

SMOKE = str(pathlib.Path(__file__).parent.parent / "configs" / "smoke.py")


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # the current folder is the path's: a whole path may be too long for a socket


# Names below the current folder, each with what is put there.
MADE = {
    "folder": pathlib.Path.mkdir,
    "text": lambda path: path.write_text("no config"),
    "empty file": pathlib.Path.touch,
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "line\nfeed": lambda path: path.write_text("no config"),
    "pipe": os.mkfifo,
    "socket": make_socket,
    "dangling": lambda path: path.symlink_to("nosuch"),
    "loop": lambda path: path.symlink_to("loop"),
    "file/below": lambda path: path.parent.touch(),
}
# Names of what is nowhere, or what there is on every machine.
MISSING = ("missing", " ", "~/missing", "~nosuchuser/x", "a\nb", os.fsdecode(b"caf\xe9"), "x" * 300, "x/" * 3000 + "x")
DEVICES = ("/dev/null", "/proc/nosuch", "/proc/self/mem", "/")
NAMES = (*MADE, *MISSING, *DEVICES)


@pytest.fixture
def named(refused, tmp_path):
    """A function like `refused` whose last argument is followed by a name; something of that name is made first."""

    def check(*argv, name, joined=False):
        if name in MADE:
            MADE[name](tmp_path / name)
        *before, last = argv
        line = refused(*before, *([f"{last}={name}"] if joined else [last, name]))
        assert "expected" in line or "; name " in line, line
        shown = name.rstrip("x") if name.startswith("x/") else name.replace("~/", f"{tmp_path}/" if not joined else "~/")
        assert "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown) in line, line
        return line

    return check


def ids(name):
    return repr(name)[:20]


@pytest.mark.parametrize("name", NAMES, ids=ids)
@pytest.mark.parametrize("verb", ["train", "summary", "data"])
def test_as_a_config(named, verb, name):
    assert "--config: got " in named(verb, "--config", name=name)


# Training makes a folder that is missing, and may use an empty one.
@pytest.mark.parametrize("name", [*(set(MADE) - {"folder"}), "x" * 300, "x/" * 3000 + "x", *DEVICES], ids=ids)
def test_as_a_workdir(named, name):
    assert "--workdir: got " in named("--config", SMOKE, "--workdir", name=name)


@pytest.mark.parametrize("name", NAMES, ids=ids)
@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_as_the_workdir_of_a_finished_run(named, verb, name):
    line = named(verb, "--workdir", name=name)
    assert "--workdir: got " in line and "holds no finished run" in line and "result.json" in line


@pytest.mark.parametrize("name", NAMES, ids=ids)
def test_as_weights(named, name):
    assert "weights" in named("evaluate", "--weights", name=name)


@pytest.mark.parametrize("name", NAMES, ids=ids)
@pytest.mark.parametrize("source", ["auto", "archive", "tfds", "npm", "folder"])
def test_as_data(named, source, name):
    line = named("data", f"--config.data.source={source}", "--config.data.dir", name=name, joined=True)
    assert "data.dir" in line


@pytest.mark.parametrize("name", ["pipe", "nosuch", "/dev/null", ".."])
@pytest.mark.parametrize("split", ["train", "test"])
def test_in_place_of_an_image(refused, tmp_path, name, split):
    for folder in ("train/a", "test/a"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "1.png").write_bytes(cv2.imencode(".png", np.zeros((32, 32, 3), np.uint8))[1].tobytes())
    path = tmp_path / "data" / split / "a" / "1.png"
    path.unlink()
    os.mkfifo(path) if name == "pipe" else path.symlink_to(name)
    line = refused("data", "--config.data.source=folder", "--config.data.dir=data")
    assert f"data/{split}/a/1.png: not an image" in line and "expected a whole .png" in line


@pytest.mark.parametrize("argv", [["summary", "--config"], ["--workdir"], ["evaluate", "--weights"], ["evaluate", "--workdir"]])
def test_a_tilde_is_the_home_folder(refused, tmp_path, argv):
    (tmp_path / "home.py").write_text("import nosuchmodule")  # HOME is tmp_path
    needed = ["--config", SMOKE] if argv == ["--workdir"] else []
    assert f"{tmp_path}/home.py" in refused(*needed, *argv, "~/home.py")
    assert f"{tmp_path}/home.py" in refused(*needed, *argv[:-1], f"{argv[-1]}=~/home.py")


def test_a_config_whose_name_has_a_line_feed_is_read(refused, tmp_path, capsys):
    (tmp_path / "a\nb.py").write_text(pathlib.Path(SMOKE).read_text())
    assert run.main(["summary", "--config", "a\nb.py"]) == 0
    assert "parameters" in capsys.readouterr().out
