"""Trains the PyTorch twin from the same config files and leaves the same rows and results as run.py.

python -m baselines.train --config configs/base.py [--workdir DIR] [--config.key=value ...]

It runs on a GPU where there is one. It does not resume: it is here to compare with.
"""

import math
import os
import pathlib
import platform
import sys
import time

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from baselines.data import eval_batches, make_train_loader
from baselines.model import create_model
from cifar_jax import arguments
from cifar_jax.config import check_config, read_config, to_json
from cifar_jax.data.augment import check_host
from cifar_jax.data.dataset import split_training
from cifar_jax.data.sources import load_dataset
from cifar_jax.errors import InputError, RunError
from cifar_jax.jsonfile import write_json
from cifar_jax.log import RunLog


def check_optimizer(optim) -> None:
    """Raises InputError for an optimizer that PyTorch has not: its Muon takes no convolutions."""
    if optim.name not in ("sgd", "adamw"):
        raise InputError(f"optim.name: got {optim.name} for PyTorch, expected sgd or adamw; set one of them and its keys")


def make_optimizer(model, optim, learning_rate):
    """SGD or AdamW; weight decay on kernels only. Raises InputError for others."""
    check_optimizer(optim)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(optim.momentum, optim.b2))
    return torch.optim.SGD(groups, lr=learning_rate, momentum=optim.momentum, nesterov=optim.nesterov)


def make_scheduler(optimizer, schedule, num_steps):
    """Steps once a batch; the same rates as cifar_jax.optim.make_schedule."""
    warmup = round(num_steps * schedule.warmup_fraction)
    down = max(num_steps - warmup, 1)

    def factor(step):
        if schedule.name == "constant":
            return 1.0
        if step < warmup:
            return (step + 1) / warmup
        done = min((step - warmup) / down, 1.0)
        fraction = (1 + math.cos(math.pi * done)) / 2 if schedule.name == "cosine" else 1 - done
        return schedule.final_fraction + (1 - schedule.final_fraction) * fraction

    return LambdaLR(optimizer, factor)


def make_ema(model, decay):
    """An average of weights and running statistics that follows closely at first, or None where decay is 0."""

    def average(mean, value, count):
        if not mean.is_floating_point():  # a counter of batches
            return value
        step = count.item() - 1
        return torch.lerp(mean, value, 1 - min(decay, (1.0 + step) / (10.0 + step)))

    if not decay:
        return None
    ema = AveragedModel(model, avg_fn=average, use_buffers=True)
    ema.n_averaged.fill_(1)  # begin from the initial weights: the default replaces them by the first update
    return ema


def train_step(model, optimizer, scheduler, images, labels, *, label_smoothing=0.0, autocast=None):
    """One update of everything; returns (summed loss, number right). images: (b, 32, 32, 3)."""
    images = images.permute(0, 3, 1, 2)  # a view: NHWC memory is channels_last
    with torch.autocast(images.device.type, dtype=autocast, enabled=autocast is not None):
        logits = model(images)
    loss = F.cross_entropy(logits.float() if autocast else logits, labels, label_smoothing=label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    scheduler.step()
    return loss.detach() * len(labels), (logits.argmax(1) == labels).sum()


@torch.no_grad()
def evaluate(model, split, mean, std, device, batch_size=500):
    """Loss, accuracy, correct, examples, and class_accuracy of a split, in the shape that cifar_jax.evaluate returns."""
    model.eval()
    loss, hits = 0.0, []
    for images, labels in eval_batches(split, mean, std, batch_size):
        images, labels = images.to(device).permute(0, 3, 1, 2), labels.to(device)
        logits = model(images)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        hits.append((logits.argmax(1) == labels).cpu())
    hit, labels = torch.cat(hits).numpy(), split.labels
    by_class = [float(hit[labels == c].mean()) if (labels == c).any() else None for c in range(logits.shape[1])]
    correct = int(hit.sum())
    return {
        "loss": loss / len(hit),
        "accuracy": correct / len(hit),
        "correct": correct,
        "examples": len(hit),
        "class_accuracy": by_class,
    }


def train_epoch(step, loader, device):
    """One pass. Returns (mean loss, fraction right, examples, seconds waiting for input)."""
    loss, correct, examples, wait = torch.zeros((), device=device), torch.zeros((), device=device), 0, 0.0
    began = time.perf_counter()
    for images, labels in loader:
        wait += time.perf_counter() - began
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        batch_loss, batch_correct = step(images, labels)
        loss, correct, examples = loss + batch_loss, correct + batch_correct, examples + len(labels)
        began = time.perf_counter()
    if not math.isfinite(loss.item()):
        raise RunError(f"the loss is {loss.item()}; lower schedule.learning_rate and start in a new workdir")
    return loss.item() / examples, correct.item() / examples, examples, wait


def check(config, path: pathlib.Path) -> None:
    """Raises InputError for a config that is invalid or over budget, or a folder that is not empty."""
    check_config(config)
    check_host(config.augment)
    check_optimizer(config.optim)
    if config.init.weights:
        raise InputError(
            f"init.weights: got {config.init.weights!r}, expected '': the PyTorch twin begins from the seed; leave it out"
        )
    if config.distill.weights:
        raise InputError(
            f"distill.weights: got {config.distill.weights!r}, expected '': the PyTorch twin knows no teacher; leave it out"
        )
    parameters = sum(p.numel() for p in create_model(config.model).parameters())
    if parameters >= config.budget.parameters:
        raise InputError(
            f"model: got {parameters:,} parameters, expected fewer than {config.budget.parameters:,} (budget.parameters); "
            "lower model.widths"
        )
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"--workdir: got {path}, expected a new or empty folder: the baseline does not resume; name another")


def train(config, path: pathlib.Path):
    """Trains in the empty or new folder `path`; returns what result.json holds."""
    check(config, path)
    dataset = load_dataset(config.data.source, config.data.dir)
    kept, held_out = split_training(dataset, config)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "config.json", {"config": to_json(config), "framework": "pytorch"})
    except OSError as error:
        raise InputError(f"--workdir: got {path}, which cannot be written ({error.strerror}); name another") from error
    torch.manual_seed(config.seed)
    loader = make_train_loader(
        kept,
        config.augment,
        dataset.mean,
        dataset.std,
        batch_size=config.train.batch_size,
        seed=config.seed,
        workers=config.data.workers,
    )
    log = RunLog(path, config.log, num_epochs=config.train.epochs, steps_per_epoch=len(loader))
    counts, model = run_epochs(config, dataset, held_out, loader, log)
    return write_result(path, config, dataset, counts, log.rows, model)


def run_epochs(config, dataset, held_out, loader, log: RunLog):
    """Every epoch, with a row each. Returns (counts of the test set, the model that made them)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    watched, split = (held_out, "validation") if len(held_out) else (dataset.test, "test")
    model = create_model(config.model).to(device)
    optimizer = make_optimizer(model, config.optim, config.schedule.learning_rate)
    scheduler = make_scheduler(optimizer, config.schedule, config.train.epochs * len(loader))
    ema = make_ema(model, config.ema.decay)
    final = ema.module if ema else model
    autocast = torch.bfloat16 if config.model.dtype == "bfloat16" else None
    options = {"label_smoothing": config.train.label_smoothing, "autocast": autocast}

    def step(images, labels):
        sums = train_step(model, optimizer, scheduler, images, labels, **options)
        if ema:
            ema.update_parameters(model)
        return sums

    for epoch in range(1, config.train.epochs + 1):
        began = time.perf_counter()
        loader.sampler.set_epoch(epoch)
        model.train()
        loss, accuracy, examples, wait = train_epoch(step, loader, device)
        trained = time.perf_counter()
        counts = evaluate(final, watched, dataset.mean, dataset.std, device)
        row = {
            "epoch": epoch,
            "step": epoch * len(loader),
            "learning_rate": scheduler.base_lrs[0] * scheduler.lr_lambdas[0](epoch * len(loader) - 1),
            "train_loss": loss,
            "train_accuracy": accuracy,
            "eval_split": split,
            "eval_loss": counts["loss"],
            "eval_accuracy": counts["accuracy"],
            "eval_correct": counts["correct"],
            "eval_examples": counts["examples"],
            "seconds": time.perf_counter() - began,
            "images_per_second": examples / (trained - began),
            "input_wait_fraction": wait / (trained - began),
        }
        log.write(row, row["seconds"] * (config.train.epochs - epoch))
    if split != "test":
        counts = evaluate(final, dataset.test, dataset.mean, dataset.std, device)
    return counts, final


def write_result(path, config, dataset, counts, rows, model):
    """Leaves weights.safetensors (in the form of cifar_jax, through port.py) and result.json."""
    from cifar_jax import budget, port, workdir  # they bring JAX, which has no place in the memory of the training above
    from cifar_jax.weights import save_weights

    seconds = sum(row["seconds"] for row in rows)
    variables = port.from_state_dict({k: v.cpu() for k, v in model.state_dict().items()}, config.model)
    save_weights(
        path / "weights.safetensors",
        variables,
        config=workdir.portable(to_json(config)),
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        train_seconds=seconds,
    )
    parameters = sum(p.numel() for p in model.parameters())
    device = next(model.parameters()).device
    result = workdir.evaluation_result(config, dataset.classes, "test", counts, parameters, seconds) | {
        "framework": "pytorch",
        "receptive_field": budget.summarize(config.model).receptive_field,
        "train_loss": rows[-1]["train_loss"],
        "train_accuracy": rows[-1]["train_accuracy"],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    if device.type == "cuda":
        result["device"] = f"gpu: 1 x {torch.cuda.get_device_name(device)}"
    write_json(path / "result.json", result)
    print(workdir.format_result(result, path))
    return result


def main(argv):
    parser = arguments.Parser(prog="python -m baselines.train", description=__doc__.splitlines()[0])
    a_path = {"type": arguments.path}
    parser.add_argument("--config", required=True, metavar="FILE", help="a config file, such as configs/base.py", **a_path)
    parser.add_argument("--workdir", metavar="DIR", help="a new folder; default runs/NAME_torch", **a_path)
    flags, overrides = arguments.parse(parser, argv)
    config = read_config(flags.config, overrides)
    train(config, pathlib.Path(flags.workdir or f"runs/{pathlib.Path(flags.config).stem}_torch"))


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
