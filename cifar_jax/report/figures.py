"""Figures of the report as PNG files in memory: the same bytes for the same numbers and version of Matplotlib.

Each has a light ground of its own, so that it can be read on a dark page and on paper; what colour says, style, place or
text says too. Widths fit a phone at the size of its text.
"""

import functools
import io
from typing import NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle

from cifar_jax import stopping
from cifar_jax.budget import IMAGE_SIZE
from cifar_jax.errors import escape
from cifar_jax.report.data import Field
from cifar_jax.scores import BINS, Reliability

WIDTH = 4.6  # inches: of a phone
MOST_BARS = 40
DOTS = 160  # an inch
GROUND, INK, FAINT, LIGHT = "#fbfaf7", "#1a1a1a", "#c9c6bf", "#a9cbe3"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#56b4e9")  # Okabe & Ito, the yellow darkened
STYLE = {
    "axes.edgecolor": INK,
    "axes.facecolor": GROUND,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.dpi": DOTS,
    "figure.facecolor": GROUND,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # comes with Matplotlib
    "font.size": 8.5,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.facecolor": GROUND,
    "text.parse_math": False,  # names of classes may hold a $
}


class Picture(NamedTuple):
    """A PNG file. width: of its place on the page, in CSS pixels."""

    name: str
    png: bytes
    width: int


def draw(name: str, height: float = 1.0):
    """Makes draw_axes(figure, ...) a function (...) -> Picture of that name; height: in inches, unless draw_axes sets it."""

    def wrap(draw_axes):
        @functools.wraps(draw_axes)
        def drawn(*arguments):
            stopping.check()  # a picture takes up to a second
            with matplotlib.style.context(["default", STYLE]):
                figure = Figure(figsize=(WIDTH, height))
                draw_axes(figure, *arguments)
                file = io.BytesIO()
                figure.savefig(file, format="png", metadata={"Software": None})
            return Picture(name, file.getvalue(), round(figure.get_figwidth() * 96))

        return drawn

    return wrap


def _curve_axes(figure, ylabel, rows):
    axes = figure.subplots()
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return axes, [row["epoch"] for row in rows], "o" if len(rows) < 30 else ""


def _plot(axes, x, y, label, number=0, marker="", **style):
    lines = ("-", "--", ":", "-.")
    style = {"color": COLOURS[number % len(COLOURS)], "linestyle": lines[number % len(lines)]} | style
    return axes.plot(x, y, label=label, marker=marker, markersize=3, **style)


def watched(rows: list[dict]) -> str:
    """What the run looked at after each epoch, from rows of metrics.jsonl."""
    return "test images" if rows[-1]["eval_split"] == "test" else "held-out images"


@draw("loss", 2.8)
def draw_loss(figure, rows):
    axes, epochs, marker = _curve_axes(figure, "loss, nats", rows)
    _plot(axes, epochs, [row["eval_loss"] for row in rows], watched(rows), 0, marker)
    _plot(axes, epochs, [row["train_loss"] for row in rows], "training, augmented", 1, marker)
    axes.set_ylim(bottom=0)
    axes.legend()


@draw("accuracy", 2.8)
def draw_accuracy(figure, rows):
    axes, epochs, marker = _curve_axes(figure, "accuracy, %", rows)
    _plot(axes, epochs, [100 * row["eval_accuracy"] for row in rows], watched(rows), 0, marker)
    _plot(axes, epochs, [100 * row["train_accuracy"] for row in rows], "training, augmented", 1, marker)
    axes.legend(loc="lower right")


@draw("learning-rate", 2.8)
def draw_learning_rate(figure, rows):
    axes, epochs, marker = _curve_axes(figure, "learning rate at the epoch's end", rows)
    _plot(axes, epochs, [row["learning_rate"] for row in rows], "", 0, marker)
    axes.set_ylim(bottom=0)


@draw("course-log", 2.8)
def draw_course_log(figure, rows, log):
    axes, epochs, marker = _curve_axes(figure, "accuracy, %", rows)
    _plot(axes, epochs, [100 * row["eval_accuracy"] for row in rows], f"this run, {watched(rows)}", 0, marker)
    counted = [100 * row["correct"] / row["images"] for row in log]
    _plot(axes, [row["epoch"] for row in log], counted, "course log, its training images", 1)
    axes.legend(loc="lower right")


def _draw_runs(figure, runs, xlabel, x_of):
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel="accuracy, %")
    for number, run in enumerate(runs):
        x, y = x_of(run), [100 * row["eval_accuracy"] for row in run.rows]
        _plot(axes, x, y, "", number)
        axes.annotate(str(number + 1), (x[-1], y[-1]), xytext=(3, 0), textcoords="offset points", fontsize=8, va="center")


@draw("runs-by-epoch", 3)
def draw_runs_by_epoch(figure, runs):
    _draw_runs(figure, runs, "epoch", lambda run: [row["epoch"] for row in run.rows])


@draw("runs-by-time", 3)
def draw_runs_by_time(figure, runs):
    _draw_runs(figure, runs, "minutes", lambda run: np.cumsum([row["seconds"] for row in run.rows]) / 60)


def has_letters_of(classes) -> bool:
    """Whether the font of the figures has every letter of these names."""
    font = FT2Font(findfont("DejaVu Sans")).get_charmap()
    return all(ord(letter) in font for name in classes for letter in escape(name))


def short_names(classes) -> list[str]:
    """Names of classes that fit an axis: cut at 14 characters, or the classes' numbers where the font lacks a letter of any."""
    if not has_letters_of(classes):
        return [str(number) for number in range(len(classes))]
    names = [escape(name) for name in classes]
    return [name if len(name) <= 14 else f"{name[:13]}…" for name in names]


@draw("classes")
def draw_classes(figure, classes, correct, images, order):
    """Accuracy of the classes `order`, the last of them below; of more than MOST_BARS the last ones."""
    shown = order[: -MOST_BARS - 1 : -1]
    figure.set_size_inches(WIDTH, 0.8 + 0.2 * len(shown))
    axes = figure.subplots()
    values = 100 * correct[shown] / images[shown]
    axes.barh(range(len(shown)), values, color=COLOURS[0], height=0.7)
    for place, value in enumerate(values):
        axes.annotate(f"{value:.1f}", (value, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5)
    names = short_names(classes)
    axes.set_yticks(range(len(shown)), [names[c] for c in shown])
    axes.set(xlabel="accuracy, %", xlim=(0, 113), ylim=(-0.6, len(shown) - 0.4))
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="y", visible=False)


@draw("confusion")
def draw_confusion(figure, classes, matrix):
    """Counts by true (rows) and predicted class; shades by the share of a row, its root, so that the small ones show."""
    side = max(WIDTH, 1 + 0.36 * len(classes))
    figure.set_size_inches(side, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = min(max(65 / len(classes), 6.5), 11)
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            ink = "white" if shares[row, column] > 0.4 else INK
            axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=ink)
    names = short_names(classes)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(visible=False)


@draw("reliability", 4.2)
def draw_reliability(figure, bins: Reliability):
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = bins.images > 0
    bars = {"x": np.arange(BINS)[filled] / BINS, "width": 1 / BINS, "align": "edge", "edgecolor": INK, "linewidth": 0.5}
    above.bar(height=bins.accuracy[filled], color=LIGHT, label="accuracy", **bars)
    middle = bins.confidence[filled]
    above.plot(middle, middle, "D", color=COLOURS[1], markersize=4, label="mean confidence")
    above.plot([0, 1], [0, 1], "--", color=INK, linewidth=0.8, label="what accuracy should be")
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(loc="outside upper center", ncols=3, fontsize=7.5, columnspacing=1)
    below.bar(height=bins.images[filled], color=FAINT, **bars)
    below.set(xlabel="confidence", ylabel="images", yscale="log")
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.yaxis.set_minor_formatter("")


def _show(axes, image):
    axes.imshow(image)
    axes.set_axis_off()


@draw("augmentation")
def draw_samples(figure, originals, samples):
    """Rows of images; columns: the original, what the host made of it in each epoch, what the device made."""
    blocks = [("original", originals[:, None]), ("host", samples["host"]), ("device", samples["device"])]
    figure.set_size_inches(WIDTH, 0.4 + WIDTH / 7.2 * len(originals))
    columns = [block.shape[1] for _, block in blocks]
    for part, (title, block) in zip(figure.subfigures(1, 3, width_ratios=columns), blocks, strict=True):
        part.suptitle(title, fontsize=9)
        axes = part.subplots(*block.shape[:2], squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
        for row, images in zip(axes, block, strict=True):
            for cell, image in zip(row, images, strict=True):
                _show(cell, image)


@draw("receptive-field", 2.55)
def draw_field(figure, field: Field):
    """Two panels: the image with the theoretical square around it, and the effective field on the image, enlarged."""
    around, within = figure.subplots(1, 2)
    low, high = field.centre - field.side / 2, field.centre + field.side / 2
    effective = field.effective / max(field.effective.max(), 1e-30)
    grey = np.repeat(field.image.mean(-1, keepdims=True) / 255, 3, -1)
    around.imshow(field.image)
    within.imshow(0.35 * grey + 0.65 * matplotlib.colormaps["inferno"](effective)[..., :3])
    edges = -0.5, IMAGE_SIZE - 0.5
    for axes, limits, title in (
        (around, (min(low, edges[0]) - 2, max(high, edges[1]) + 2), "theoretical"),
        (within, edges, "effective"),
    ):
        axes.add_patch(Rectangle((low, low), high - low, high - low, fill=False, edgecolor=COLOURS[1], linestyle="--"))
        axes.plot(field.centre, field.centre, "+", color=COLOURS[5], markersize=7)
        axes.set(xlim=limits, ylim=limits[::-1], title=title, aspect="equal")
        axes.set_axis_off()


@draw("first-layer")
def draw_kernels(figure, kernels):
    columns = 8
    rows = -(-len(kernels) // columns)
    figure.set_size_inches(WIDTH, WIDTH / columns * rows)
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if number < len(kernels):
            axes.imshow(kernels[number])
