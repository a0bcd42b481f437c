"""The report of a tiny run: its figures are the run's, its page is whole, and what strangers named does no harm to it."""

import base64
import dataclasses
import errno
import html.parser
import json
import os
import re
import shutil
import signal

import cv2
import jax
import numpy as np
import pytest
from browser import open_page

import run
from cifar_jax import train as train_module
from cifar_jax.config import read_config
from cifar_jax.data import shapes
from cifar_jax.data.augment import normalize
from cifar_jax.data.dataset import Split
from cifar_jax.models import c1c2c3c40, create_model
from cifar_jax.models.layers import conv, conv_ln, gate, separable, separable_ln
from cifar_jax.report import data as data_module
from cifar_jax.report import figures, network, network_sections, run_sections, write
from cifar_jax.report.page import make_page
from cifar_jax.report.runs import read_course_log, read_runs
from cifar_jax.scores import expected_calibration_error

# Names that a folder may have: they would be markup, mathematics, lines, or letters that the font lacks.
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "$\\frac{1}{$", "a\nb\udce9", "犬", "&amp;", *"efgh")
DATA = dataclasses.replace(shapes.make_shapes(60, 40), classes=HOSTILE)
TINY = ["model.widths=(4,8,12,16)", "train.batch_size=20", "train.epochs=2", "log.tensorboard=false", "log.progress=off"]
TINY += ["budget.receptive_field=8"]


def shallow(w1, w2, w3, w4):
    """Three layers in place of twelve, with a field of 13 pixels, less than an image."""
    return (conv("c1_conv", w1), separable("t1", w2, stride=2), separable("t2", w4, stride=2, dilation=2))


def shallow_gated(w1, w2, w3, w4):
    """The last layer takes two turns."""
    return (conv_ln("c1_conv", w1), separable_ln("t2", w4, kernel=4, stride=4, padding=0), gate("c4_gated", w4, turns=2))


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Shallow networks on few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(c1c2c3c40.VARIANTS, "strided", shallow)
        patch.setitem(c1c2c3c40.VARIANTS, "gated", shallow_gated)
        for module in ("train", "evaluate"):
            patch.setattr(f"cifar_jax.{module}.load_dataset", lambda source, directory: DATA)
        yield


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """(the folder of a run with its report, its findings)."""
    path = tmp_path_factory.mktemp("reported") / "run <&>"
    train_module.train(read_config("configs/smoke.py", [f"--config.{text}" for text in TINY]), path)
    kept = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "find", lambda *arguments: kept.append(data_module.find(*arguments)) or kept[0])
        assert run.main(["report", "--workdir", str(path)]) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return path, kept[0]


@pytest.fixture
def page(reported):
    return (reported[0] / "report.html").read_text()


@pytest.fixture
def result(reported):
    return json.loads((reported[0] / "result.json").read_text())


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, and the text of cells, rows of them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self._cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._cell = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        if self._cell:
            self.rows[-1].append("")

    def handle_data(self, text):
        if self._cell:
            self.rows[-1][-1] += text

    def handle_endtag(self, tag):
        self._cell = False


def inlined(page):
    """The PNG files in a page."""
    return [base64.b64decode(text) for text in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]


def percent(fraction):
    return f"{100 * fraction:.2f} %"


def test_the_numbers_are_those_of_the_result(page, result):
    rows = Reader(page).rows
    accuracy = f"{percent(result['accuracy'])} ({result['correct']} of {result['examples']})"
    assert ["parameters", "below 100,000", f"{result['parameters']:,}", "met"] in rows
    assert ["receptive field, pixels", "above 8", "13", "met"] in rows and result["receptive_field"] == 13
    assert "test accuracy" not in [row[0] for row in rows] and f"this run, on other data, has {accuracy}." in page
    shown = {row[1]: row[3] for row in rows if len(row) == 4 and row[1].isdigit()}
    assert shown == {str(i): percent(value) for i, value in enumerate(result["per_class_accuracy"].values())}
    assert accuracy in page.split("<nav")[0]


def test_on_cifar10_the_accuracy_asked_for_is_a_goal(reported):
    path, found = reported
    (of_run,) = read_runs([str(path)])
    parts, _ = run_sections.goals_section(of_run, dataclasses.replace(found, cifar10=True))
    assert Reader(parts[0]).rows[-1][:2] + Reader(parts[0]).rows[-1][3:] == ["test accuracy", "at least 85.00 %", "not met"]


def test_each_test_image_is_counted_once(reported, result):
    _, found = reported
    assert found.confusion.sum() == found.class_images.sum() == found.reliability.images.sum() == 40
    assert found.confusion.trace() == found.class_correct.sum() == found.correct == result["correct"]
    wrong = found.confusion - np.diag(found.confusion.diagonal())
    assert {(label, predicted): wrong[label, predicted] for label, predicted, _ in found.confusions} == {
        (label, predicted): images for label, predicted, images in found.confusions
    }
    assert found.confusions[0][2] == wrong.max()


def test_mistakes_are_the_surest_wrong_answers(reported):
    _, found = reported
    confidences = [answer.confidence for answer in found.mistakes]
    assert len(confidences) == min(12, 40 - found.correct) and confidences == sorted(confidences, reverse=True)
    for answer in found.mistakes:
        assert answer.predicted != answer.label == DATA.test.labels[answer.index]
        np.testing.assert_array_equal(answer.image, DATA.test.images[answer.index])
    for maps in found.right_maps:
        assert maps.answer.predicted == maps.answer.label and len(maps.maps) == len(maps.logits) == 1
    for maps in found.wrong_maps:
        assert len(maps.maps) == len(maps.logits) == 2 and maps.logits[0] >= maps.logits[1]


def test_the_calibration_error_on_the_page_is_that_of_the_answers(reported, page):
    assert f"calibration error is {percent(expected_calibration_error(reported[1].reliability))}" in page


@pytest.mark.parametrize(("variant", "head"), [("strided", "dense"), ("strided", "pointwise"), ("gated", "dense")])
def test_class_maps_add_up_to_the_logits(model_config, variant, head):
    model = create_model(model_config(variant=variant, head=head, kernels="xla"))
    images = normalize(DATA.test.images[:3], DATA.mean, DATA.std)
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    variables["params"]["head"]["bias"] = np.arange(10.0)
    logits, maps = network.class_maps(model, variables, images)
    assert maps.shape == (3, 8, 8, 10)
    np.testing.assert_allclose(maps.sum((1, 2)), logits, rtol=1e-5, atol=1e-5)  # float32
    expected = jax.jit(lambda: model.apply(variables, images, train=False))()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["strided", "gated"])
def test_first_kernels_are_those_of_the_variables(model_config, variant):
    model = create_model(model_config(variant=variant, kernels="xla"))
    variables = jax.jit(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False))()
    conv_of = variables["params"]["c1_conv"]["conv"]
    kernel = np.asarray(conv_of["kernel"] if variant == "gated" else conv_of)
    shown = network.first_kernels(variables, model)
    assert shown.shape == (kernel.shape[-1], 3, 3, 3) and 0 in (shown.min(), 1 - shown.max())
    np.testing.assert_allclose((shown - 0.5).transpose(1, 2, 3, 0) * 2 * abs(kernel).max(), kernel, atol=1e-6)


def test_a_map_keeps_its_values_at_the_centres_of_its_units(model_config):
    centres = network.unit_centres(model_config())
    assert centres.tolist() == [4.0 * i for i in range(8)]
    values = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    large = data_module.spread(values, centres)
    assert large.shape == (32, 32)
    np.testing.assert_allclose(large[::4, ::4], values, rtol=1e-5)
    np.testing.assert_allclose(large[2, 0], (values[0, 0] + values[1, 0]) / 2, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(large[28:, 28:], values[7, 7])


def test_the_effective_field_lies_inside_the_theoretical_square(reported):
    field = reported[1].field
    assert (field.side, field.centre, field.num_images) == (13, 16.0, 40)
    inside = np.zeros((32, 32), bool)
    inside[10:23, 10:23] = True
    assert not field.effective[~inside].any()
    assert (field.effective[inside] > 0).mean() > 0.5


def test_both_sides_show_the_same_images(reported):
    found = reported[1]
    assert found.originals.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(found.originals, DATA.train.images[:6])
    for shown in found.samples.values():
        assert shown.shape == (6, 3, 32, 32, 3) and shown.dtype == np.uint8
        assert (shown != found.originals[:, None]).any()
        # Warped, flipped, partly covered, one in twenty grey: still nearer to its own image than to the others.
        means = shown.mean((1, 2, 3)), found.originals.mean((1, 2))
        gaps = abs(means[0][:, None] - means[1][None]).sum(-1)
        assert (gaps.argmin(1) == np.arange(6)).mean() > 0.6


def test_every_picture_is_whole_and_lies_in_the_folder_too(reported, page):
    pictures = inlined(page)
    files = {file.name: file.read_bytes() for file in (reported[0] / "figures").iterdir()}
    assert len(pictures) == page.count("<img") == len(files) > 20
    assert sorted(pictures) == sorted(files.values())
    for picture in pictures:
        assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR) is not None
        assert not {b"tEXt", b"tIME", b"iTXt"} & set(re.findall(rb"tEXt|tIME|iTXt", picture))


def test_the_same_run_gives_the_same_bytes(reported, page):
    path, found = reported
    again, _ = make_page(read_runs([str(path)]), found)
    assert again == page


def test_names_from_strangers_are_text(page):
    tags = Reader(page).tags
    assert "script" not in {tag for tag, _ in tags} and not any("onerror" in attributes for _, attributes in tags)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "&amp;amp;" in page and "a\\nb\\udce9" in page and "犬" in page
    assert "<title>Report of run &lt;&amp;&gt;</title>" in page


def test_names_that_the_font_lacks_are_numbers_in_figures(page):
    assert page.count("Classes have the numbers of the table of classes") == 2
    assert figures.short_names(HOSTILE) == [str(i) for i in range(10)]
    assert figures.short_names(["cat", "$x$", "a" * 20]) == ["cat", "$x$", "a" * 13 + "…"]


def test_the_page_needs_nothing_else_and_can_be_read_aloud(page):
    reader = Reader(page)
    for _, attributes in reader.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#"))
    assert "url(" not in page and "@import" not in page
    alts = [attributes.get("alt", "") for tag, attributes in reader.tags if tag == "img"]
    assert all(len(alt) > 20 for alt in alts)
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for tag, attributes in reader.tags if tag == "a"} <= set(ids)


def test_the_course_log_counts_its_training_images(reported, page):
    path, found = reported
    log = read_course_log()
    assert len(log) == 90 and {row["images"] for row in log} == {50_000} and log[-1]["correct"] == 43_237
    (of_run,) = read_runs([str(path)])
    parts, pictures = run_sections.curves_section(of_run, dataclasses.replace(found, cifar10=True))
    assert "course-log" in [picture.name for picture in pictures]
    assert "50,000 training images (43,237 of 50,000 at the end) and is no test result" in parts[0]
    assert "The course log is of CIFAR-10 and is left out" in page and not (path / "figures" / "course-log.png").exists()


@pytest.mark.parametrize("count", [2, 25, 26, 100])
def test_other_numbers_of_classes(reported, result, count):
    found = dataclasses.replace(
        reported[1],
        classes=tuple(f"class {c}" for c in range(count)),
        class_correct=np.arange(count) % 5,
        class_images=np.full(count, 5),
        confusion=np.full((count, count), 7) if count <= 25 else None,
        confusions=[(0, 1, 7)],
    )
    (_, classes), [bars] = network_sections.classes_section(result, found)
    assert ["class 0", "0", "0 of 5", "0.00 %"] in Reader(classes).rows
    assert ("; the 40 worst of 100." in classes) == (count == 100)
    assert size(bars)[1] < 1500
    parts, pictures = network_sections.confusion_section(found)
    assert (f"{count} classes are more than the 25 that can be read" in parts[0]) == (count > 25)
    assert len(pictures) == (count <= 25) and all(min(size(picture)) >= 55 * count for picture in pictures)
    assert ["class 0", "class 1", "7"] in Reader("".join(parts)).rows


def size(picture):
    height, width, _ = cv2.imdecode(np.frombuffer(picture.png, np.uint8), cv2.IMREAD_COLOR).shape
    return width, height


def test_a_run_without_mistakes_says_so(reported):
    perfect = dataclasses.replace(reported[1], mistakes=[], wrong_maps=[], right_maps=[])
    assert "every test image is answered right" in network_sections.mistakes_section(perfect)[0][0]
    assert network_sections.maps_section(perfect)[0].count("<p>There are none.</p>") == 2


def test_a_count_that_differs_from_the_results_is_said(reported, result):
    parts, _ = network_sections.classes_section(result | {"correct": result["correct"] + 1}, reported[1])
    assert f"Counted again for this report: {result['correct']} right, not {result['correct'] + 1}" in parts[0]


def test_several_runs_are_compared_in_the_folder_of_the_first(reported, tmp_path, monkeypatch, result):
    path, found = reported
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        shutil.copytree(path, folder, ignore=shutil.ignore_patterns("report.html", "figures", "checkpoints"))
    monkeypatch.setattr(write, "find", lambda *_: found)
    said = write.write_report([str(first), str(second)], [])
    assert said.startswith(f"{first / 'report.html'}, and its ")
    page = (first / "report.html").read_text()
    rows = [row for row in Reader(page).rows if row[0] in ("1", "2") and len(row) == 11]
    assert [row[1] for row in rows] == [str(first), str(second)]
    same = [f"{result['parameters']:,}", "13", "2", f"{result['train_seconds']:.0f}", percent(result["accuracy"]), "40"]
    assert [row[4:10] for row in rows] == [same, same]
    assert (first / "figures" / "runs-by-epoch.png").exists() and not (second / "report.html").exists()
    assert "not all of these runs" not in page.lower()


@pytest.fixture
def copied(reported, tmp_path):
    """A function that copies the run to a folder named `run` in tmp_path, and returns the folder."""
    return shutil.copytree(reported[0], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))


def test_an_unfinished_or_a_missing_run_is_refused(refused, copied):
    (copied / "result.json").unlink()
    for folder in ("run", "nosuch", "run/config.json"):
        assert f"--workdir: got {folder}, which holds no finished run" in refused("report", "--workdir", folder)
    assert "got no --workdir, expected it" in refused("report")


def test_a_run_named_twice_and_too_many_are_refused(refused, copied):
    assert "--workdir: got ./run twice, expected each run once" in refused("report", "--workdir", "run", "--workdir", "./run")
    assert "got 13 folders, expected at most 12" in refused("report", *["--workdir", "run"] * 13)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", ""),
        ("metrics.jsonl", "{}\n"),
        ("metrics.jsonl", "x"),
        ("metrics.jsonl", '{"epoch": 1, "eval_split": "train"}'),
        ("result.json", '{"format_version": 1}'),
        ("config.json", "x"),
        ("weights.safetensors", "x"),
    ],
)
def test_a_damaged_file_is_refused(refused, copied, name, content):
    (copied / name).write_text(content)
    line = refused("report", "--workdir", "run")
    assert name in line and ("damaged" in line or "not a whole weights file" in line)


def test_a_result_without_what_is_shown_is_refused(refused, copied):
    content = json.loads((copied / "result.json").read_text()) | {"format_version": 1, "seed": "x"}
    (copied / "result.json").write_text(json.dumps({key: content[key] for key in content if key != "sha256"}))
    assert "result.json: got a damaged file (TypeError: seed is 'x')" in refused("report", "--workdir", "run")


def test_data_that_cannot_be_had_or_is_other_data_is_refused(refused, copied, monkeypatch):
    other = dataclasses.replace(DATA, test=Split(DATA.test.images[::-1], DATA.test.labels))
    monkeypatch.setattr("cifar_jax.evaluate.load_dataset", lambda source, directory: other)
    assert "--workdir: run holds a run on other data" in refused("report", "--workdir", "run")
    monkeypatch.undo()
    argv = ["--config.data.source=folder", "--config.data.dir=nosuch"]
    with pytest.MonkeyPatch.context() as patch:
        from cifar_jax.data import sources

        patch.setattr("cifar_jax.evaluate.load_dataset", sources.load_dataset)
        assert "data.dir: got 'nosuch', which does not exist" in refused("report", "--workdir", str(copied), *argv)
    assert "the config of trained weights is a fact" in refused("report", "--workdir", str(copied), "--config.seed=1")


def test_a_folder_that_cannot_be_written_is_refused(refused, copied, monkeypatch):
    def no_file(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    shutil.rmtree(copied / "figures")
    (copied / "figures").touch()
    assert "run/figures is no folder that can be written" in refused("report", "--workdir", "run")
    (copied / "figures").unlink()
    (copied / "report.html").unlink()
    (copied / "report.html").mkdir()
    assert "in which report.html is a folder" in refused("report", "--workdir", "run")
    (copied / "report.html").rmdir()
    monkeypatch.setattr("cifar_jax.workdir.tempfile.TemporaryFile", no_file)
    assert "run cannot be written (Read-only file system)" in refused("report", "--workdir", "run")


def test_a_full_disk_leaves_the_report_before_whole(copied, monkeypatch, capsys):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    before = (copied / "report.html").read_bytes()
    monkeypatch.setattr(write, "find", lambda *_: None)
    monkeypatch.setattr("cifar_jax.report.page.make_page", lambda *_: ("new", [figures.Picture("one", b"", 1)]))
    monkeypatch.setattr(write, "replace_file", full)
    assert run.main(["report", "--workdir", str(copied)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot be written (No space left on device); make room there" in err
    assert (copied / "report.html").read_bytes() == before


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")
def test_in_a_browser(reported):
    with open_page(CHROMIUM) as page:
        grounds = {}
        for width, dark in ((390, False), (390, True), (1200, False)):
            page.open(reported[0] / "report.html", width=width, dark=dark)
            assert page.evaluate("document.images.length") > 20
            assert page.evaluate("[...document.images].filter(image => !(image.naturalWidth > 0)).length") == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            grounds[dark] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert grounds == {False: "rgb(255, 255, 255)", True: "rgb(22, 24, 27)"}
        assert page.errors == []
