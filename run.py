"""The command line: flags and verbs, nothing else. `python run.py --help` lists them."""

import contextlib
import json
import logging
import os
import pathlib
import sys

from cifar_jax import allocator, arguments, stopping
from cifar_jax.errors import InputError, RunError

BASE = pathlib.Path(__file__).parent / "configs" / "base.py"


def make_parser() -> arguments.Parser:
    parser = arguments.Parser(prog="run.py", description="CIFAR-10 classifiers under 100,000 parameters in JAX.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    override = "and any --config.key=value"

    def verb(name, help_, note=override, **flags):
        sub = verbs.add_parser(name, help=help_, description=f"{help_} ({note})")
        for flag, options in flags.items():
            sub.add_argument(f"--{flag}", **options)
        return sub

    file = {"type": arguments.path, "metavar": "FILE", "help": "a config file, such as configs/base.py"}
    as_json = {"action": "store_true", "help": "print one JSON object"}
    folder = {"type": arguments.path, "metavar": "DIR", "help": "the folder of the run; default runs/NAME"}
    verb("train", "train, or resume what the workdir holds (the default verb)", config=file | {"required": True}, workdir=folder)
    verb(
        "sweep",
        "train from several seeds, one after the other, or resume; mean and standard deviation",
        config=file | {"required": True},
        seeds={"type": arguments.seeds, "required": True, "metavar": "0,1,2", "help": "the seeds, in place of the config's"},
        workdir=folder | {"help": "the folder of the runs; default runs/NAME-sweep"},
        json=as_json,
    )
    verb("summary", "layers, parameters, MACs, receptive field", config=file | {"required": True}, json=as_json)
    weights = file | {"metavar": "NAME|FILE", "help": "a committed name, such as base, or a weights file"}
    verb(
        "evaluate",
        "count the test images that a trained network gets right",
        workdir=folder | {"help": "the folder of a finished run"},
        weights=weights,
        json=as_json,
    )
    predict = verb(
        "predict",
        "say which classes images are of",
        note="PNG, JPEG, WebP or BMP files of any size, and folders of them",
        weights=weights | {"required": True},
        top={"type": arguments.whole(1), "default": 3, "metavar": "N", "help": "how many classes to show; default 3"},
        json=as_json,
    )
    predict.add_argument(
        "images", nargs="+", type=arguments.path, metavar="IMAGE", help="an image, or a folder, with all below it"
    )
    verb(
        "export",
        "write a trained network for other programs: ONNX, ONNX in int8, or StableHLO",
        weights=weights | {"required": True},
        output=file | {"required": True, "metavar": "MODEL.onnx", "help": "MODEL.onnx, MODEL.int8.onnx or MODEL.stablehlo"},
        json=as_json,
    )
    verb(
        "report",
        "write report.html: goals, curves, mistakes, calibration, receptive field of a finished run",
        workdir=folder | {"action": "append", "required": True, "help": "the folder of a finished run; again: runs to compare"},
    )
    verb("data", "fetch the data, verify it, say where it lies", config=file | {"default": str(BASE)})
    return parser


def parse(argv: list[str]):
    """Returns (flags, overrides); the verb `train` may be left out."""
    if argv and argv[0].startswith("--") and argv[0] not in ("--help",):
        argv = ["train", *argv]
    return arguments.parse(make_parser(), argv)


def show(text: str) -> None:
    """Prints what a command is for; raises RunError where the output takes no more, such as a file on a full disk."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"the output cannot be written ({error.strerror}); make room there or send it elsewhere") from error


def train(flags, overrides):
    from cifar_jax import config, processes, train, workdir

    directory = flags.workdir or f"runs/{pathlib.Path(flags.config).stem}"
    result = train.train(config.read_config(flags.config, overrides), directory)
    if processes.is_first():
        show(workdir.format_result(result, directory))


def sweep(flags, overrides):
    from cifar_jax import config, sweep

    directory = flags.workdir or f"runs/{pathlib.Path(flags.config).stem}-sweep"
    settings = config.read_config(flags.config, overrides)
    with contextlib.redirect_stdout(sys.stderr) if flags.json else contextlib.nullcontext():
        result = sweep.sweep(settings, directory, flags.seeds)
    show(json.dumps(result) if flags.json else sweep.format_sweep(result))


def summary(flags, overrides):
    import dataclasses

    from cifar_jax import budget, config

    settings = config.read_config(flags.config, overrides)
    config.check_config(settings)
    counted = budget.summarize(settings.model)
    if flags.json:
        fields = dataclasses.asdict(counted) | {"config": config.to_json(settings), "budget": settings.budget.to_dict()}
        show(json.dumps(fields))
    else:
        show(budget.format_table(counted))
    budget.check_budget(settings.model, settings.budget)


def evaluate(flags, overrides):
    from cifar_jax import evaluate, workdir

    result = evaluate.evaluate_files(flags.workdir, flags.weights, overrides)
    show(json.dumps(result) if flags.json else workdir.format_counts(result))


def predict(flags, overrides):
    import cifar_jax
    from cifar_jax import predict

    for override in overrides:
        raise InputError(f"{override}: the config of trained weights is a fact, expected no overrides; leave it out")
    with stopping.interruptible():
        found = predict.find_images(flags.images)
    model = cifar_jax.load(flags.weights)
    rows = predict.predict_files(model, found)
    if flags.json:
        show(predict.to_json(rows, model, flags.weights, flags.top))
        return
    for line in predict.format_rows(rows, model, found, flags.top):
        show(line)


def export(flags, overrides):
    from cifar_jax import export

    report = export.export(flags.weights, flags.output, overrides)
    show(json.dumps(report) if flags.json else export.format_report(report))


def report(flags, overrides):
    from cifar_jax.report import write

    show(write.write_report(flags.workdir, overrides))


def data(flags, overrides):
    from cifar_jax import config
    from cifar_jax.data.sources import load_dataset

    settings = config.read_config(flags.config, overrides)
    config.check_config(settings)
    with stopping.interruptible():
        dataset = load_dataset(settings.data.source, settings.data.dir)
    checked = "every digest matches" if dataset.verified else "no digests to match"
    show(
        f"{len(dataset.train)} training and {len(dataset.test)} test images of {len(dataset.classes)} classes from "
        f"{dataset.source}; {checked}; in {dataset.path or 'memory'}"
    )


def report_unraisable(unraisable) -> None:
    """sys.unraisablehook, but silent where Orbax has given up a save at its first error, such as a full disk, and closed its
    event loop: TensorStore's threads have the other errors for that loop, and each would be a traceback."""
    if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def answer(argv: list[str]) -> None:
    """Does what the arguments ask for."""
    flags, overrides = parse(argv)
    verbs = {
        "train": train,
        "sweep": sweep,
        "summary": summary,
        "evaluate": evaluate,
        "predict": predict,
        "export": export,
        "report": report,
        "data": data,
    }
    verbs[flags.verb](flags, overrides)


def main(argv: list[str]) -> int:
    """Runs a command and returns its exit code."""
    allocator.keep_freed_memory()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("cifar_jax").setLevel(logging.INFO)
    for name in ("absl", "asyncio"):  # Orbax logs a traceback of what it then raises as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        stopping.listen()
        return arguments.run(answer, argv)
    except stopping.Stopped as stopped:
        stopping.ignore()  # ending already
        print(stopping.describe(stopped.args[0]), file=sys.stderr)
        return 128 + stopped.args[0]
    except BrokenPipeError:
        return 1  # the reader left: nothing more to say


def drop_output() -> None:
    """Forgets what stdout could not take: the interpreter would try again at its end, complain, and end with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.unraisablehook = report_unraisable
    code = main(sys.argv[1:])
    stopping.ignore()  # the interpreter takes its time to end, and would let a signal kill it with another exit code
    drop_output()
    if code:  # amid anything: the interpreter's own end would wait for other processes of the run, or crash in XLA's threads
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
