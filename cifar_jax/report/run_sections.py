"""Sections of the report on what a run left: goals, comparison, model, curves, config. Each is (parts as HTML, pictures)."""

from cifar_jax.config import flatten
from cifar_jax.duration import format_duration
from cifar_jax.report import figures
from cifar_jax.report.markup import definitions, figure, paragraph, percent, side_by_side, table
from cifar_jax.report.runs import read_course_log

GOAL = 0.85  # of the test images, what the assignment asks for


def answered(result: dict) -> str:
    """The test accuracy in figures, from a result.json."""
    return f"{percent(result['accuracy'])} ({result['correct']} of {result['examples']})"


def goals_section(run, findings):
    result, limits = run.result, run.config.budget
    rows = [
        ("parameters", f"below {limits.parameters:,}", f"{result['parameters']:,}", result["parameters"] < limits.parameters),
        (
            "receptive field, pixels",
            f"above {limits.receptive_field}",
            result["receptive_field"],
            result["receptive_field"] > limits.receptive_field,
        ),
    ]
    note = ""
    if findings.cifar10:
        rows.append(("test accuracy", f"at least {percent(GOAL)}", answered(result), result["accuracy"] >= GOAL))
    else:
        said = f"The accuracy asked for, {percent(GOAL)}, is one on CIFAR-10; this run, on other data, has {answered(result)}."
        note = paragraph(said)
    shown = [[name, goal, reached, "met" if met else "not met"] for name, goal, reached, met in rows]
    return [table("What was asked for and what was reached", ["goal", "asked for", "reached", "outcome"], shown, set()), note], []


def compared_section(runs):
    head = ["run", "folder", "network", "seed", "parameters", "field", "epochs", "seconds", "test accuracy", "images", "device"]
    rows = [
        [
            number,
            run.path,
            f"{run.config.model.name}/{run.config.model.variant}",
            run.result["seed"],
            f"{run.result['parameters']:,}",
            run.result["receptive_field"],
            run.result["epochs"],
            f"{run.result['train_seconds']:.0f}",
            percent(run.result["accuracy"]),
            run.result["examples"],
            run.result["device"],
        ]
        for number, run in enumerate(runs, 1)
    ]
    ends = "; ".join(f"run {number} ends at {percent(run.rows[-1]['eval_accuracy'])}" for number, run in enumerate(runs, 1))
    by_epoch, by_time = figures.draw_runs_by_epoch(runs), figures.draw_runs_by_time(runs)
    caption = "Accuracy after each epoch, on test images or on those held out; a curve ends at the number of its run."
    shown = [
        figure(by_epoch, f"Accuracy of {len(runs)} runs by epoch: {ends}", caption),
        figure(by_time, f"Accuracy of {len(runs)} runs by minutes of training: {ends}", "The same by minutes of training."),
    ]
    differ = len({run.data for run in runs if run.data}) > 1
    note = paragraph("Not all of these runs are on the same data: their accuracies do not compare.") if differ else ""
    first = "Runs, the first of which is reported below"
    return [table(first, head, rows, {0, 3, 4, 5, 6, 7, 8, 9}), note, side_by_side(shown)], [by_epoch, by_time]


def model_section(summary):
    totals = {
        "parameters": f"{summary.parameters:,}",
        "multiply-accumulates an image": f"{summary.macs:,}",
        "receptive field": f"{summary.receptive_field} pixels",
        "weights": f"{summary.weight_bytes:,} bytes in float32",
        "peak activations": f"{summary.peak_activation_bytes:,} bytes for one image",
    }
    rows = [
        [
            layer.name,
            layer.kind,
            "×".join(map(str, layer.shape)),
            layer.kernel,
            layer.stride,
            layer.dilation,
            layer.turns,
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            layer.receptive_field,
        ]
        for layer in summary.layers
    ]
    head = ["layer", "kind", "output", "kernel", "stride", "dilation", "turns", "parameters", "MACs", "field"]
    return [definitions(totals), table("Layers in order", head, rows, set(range(3, 10)))], []


def curves_section(run, findings):
    rows, last = run.rows, run.rows[-1]
    seen, highest = figures.watched(rows), max(row["learning_rate"] for row in rows)
    loss, accuracy, rate = figures.draw_loss(rows), figures.draw_accuracy(rows), figures.draw_learning_rate(rows)
    pictures = [loss, accuracy, rate]
    distill = run.config.distill
    taught = f", {distill.share:g} of it the divergence from {distill.weights}" if distill.weights else ""
    shown = [
        figure(
            loss,
            f"Loss by epoch: {last['eval_loss']:.3f} on {seen} and {last['train_loss']:.3f} in training after the last",
            f"Loss by epoch. In training it is the objective: on augmented images, with label smoothing{taught}.",
        ),
        figure(
            accuracy,
            f"Accuracy by epoch: {percent(last['eval_accuracy'])} on {seen} and {percent(last['train_accuracy'])} in training "
            "after the last",
            "Accuracy by epoch. In training it is the running one, on augmented images.",
        ),
        figure(
            rate,
            f"Learning rate by epoch: at most {highest:.3g}, {last['learning_rate']:.3g} at the end",
            "Learning rate at the last step of each epoch.",
        ),
    ]
    if findings.cifar10:
        log = read_course_log()
        pictures.append(figures.draw_course_log(rows, log))
        counted = f"{log[-1]['correct']:,} of {log[-1]['images']:,}"
        shown.append(
            figure(
                pictures[-1],
                f"This run reaches {percent(last['eval_accuracy'])} on {seen} in {last['epoch']} epochs, the course log "
                f"{percent(log[-1]['correct'] / log[-1]['images'])} on its training images in {log[-1]['epoch']}",
                f"Beside the log of the course: what it calls test accuracy is counted over its 50,000 training images "
                f"({counted} at the end) and is no test result.",
            )
        )
        return [side_by_side(shown)], pictures
    note = paragraph("The course log is of CIFAR-10 and is left out: this run is on other data.")
    return [side_by_side(shown), note], pictures


def run_section(run):
    result = run.result
    facts = {
        "folder": run.path,
        "network": f"{run.config.model.name}, variant {run.config.model.variant}, widths {tuple(run.config.model.widths)}",
        "epochs": f"{result['epochs']} in {format_duration(result['train_seconds'])}",
        "seed": result["seed"],
        "data": f"from {result.get('data_source', run.config.data.source)}{', verified' * bool(result.get('data_verified'))}",
        "device": result["device"],
        "kernels": result.get("kernels", result.get("framework", "not recorded")),
        "test loss": f"{result['loss']:.4f}",
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    }
    rows = [[key, value] for key, value in sorted(flatten(run.config).items())]
    config = table("Every key of the config", ["key", "value"], rows, set())
    return [definitions(facts), f"<details><summary>The config</summary>{config}</details>"], []
