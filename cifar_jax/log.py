"""What a run says and writes while it goes: a progress bar, a line an epoch, metrics.jsonl and TensorBoard events."""

import json
import pathlib
import sys

from tqdm import tqdm

from cifar_jax.duration import format_duration
from cifar_jax.files import replace_file
from cifar_jax.tensorboard import append_scalars, create_events

# Fields of a row that TensorBoard shows as curves; the rest are constants or counts.
SCALARS = (
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "eval_loss",
    "eval_accuracy",
    "images_per_second",
    "input_wait_fraction",
)
SPLIT_NAMES = {"test": "Test set", "validation": "Held-out set"}


def epoch_line(row: dict) -> str:
    """The line an epoch in the manner of the log, from a row of metrics.jsonl."""
    return (
        f"{SPLIT_NAMES[row['eval_split']]}: average loss {row['eval_loss']:.4f}, "
        f"accuracy {row['eval_correct']}/{row['eval_examples']} ({100 * row['eval_accuracy']:.2f}%)"
    )


class RunLog:
    """The log of one run in its workdir.

    workdir: None says and writes nothing. rows: those of the epochs done before, on resume; metrics.jsonl is written anew
    from them, so that it never holds an epoch twice or one that the checkpoint does not have.
    """

    def __init__(self, workdir: pathlib.Path | None, config, *, num_epochs: int, steps_per_epoch: int, rows=()):
        self.rows, self._workdir = list(rows), workdir
        self._progress = config.progress if workdir else "off"
        self._bar_wanted = self._progress == "bar" or (self._progress == "auto" and sys.stderr.isatty())
        self._num_epochs, self._steps_per_epoch = num_epochs, steps_per_epoch
        self._events = None
        if workdir:
            replace_file(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows).encode())
            self._events = create_events(workdir / "tensorboard", len(self.rows) + 1) if config.tensorboard else None

    def say(self, line: str) -> None:
        """Prints a line, unless log.progress is off."""
        if self._progress != "off":
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def epoch_bar(self, epoch: int, done: int = 0):
        """A bar over the steps of an epoch, of which `done` are; disabled where stderr is no terminal."""
        return tqdm(
            initial=done,
            total=self._steps_per_epoch,
            desc=f"epoch {epoch}/{self._num_epochs}",
            unit="step",
            leave=False,
            dynamic_ncols=True,
            disable=not self._bar_wanted,
        )

    def write(self, row: dict, seconds_left: float) -> None:
        """Records an epoch."""
        self.rows.append(row)
        if self._workdir:
            with (self._workdir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self._events:
            append_scalars(self._events, row["epoch"], {name: row[name] for name in SCALARS})
        self.say(
            f"Epoch {row['epoch']}/{self._num_epochs}: loss {row['train_loss']:.4f}, "
            f"accuracy {100 * row['train_accuracy']:.2f}%, {row['images_per_second']:.0f} images/s, "
            f"{row['seconds']:.1f} s, {format_duration(seconds_left)} left\n{epoch_line(row)}"
        )
