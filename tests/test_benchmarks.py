"""What the benchmarks report: the right way round, over all that they claim to measure, in one JSON object, last."""

import importlib.util
import itertools
import json
import math

import chex
import jax
import pytest
from test_train import shallow

from benchmarks import convolutions, gpu_compile, kernels, measure, seeds, train_step
from cifar_jax.budget import summarize
from cifar_jax.config import read_config
from cifar_jax.errors import InputError
from cifar_jax.models import c1c2c3c40, native, ops
from cifar_jax.models.layers import conv


@pytest.fixture(scope="module")
def base():
    return read_config("configs/base.py", [])


def test_sides_take_turns_after_a_round_that_does_not_count():
    called = []
    seconds = measure.in_turn({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, repeats=3)
    assert "".join(called) == "ba" + "ab" + "ba" + "ab"
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_a_pause_is_taken_before_each_call_and_not_counted(monkeypatch):
    clock = [0.0]

    def advance(seconds):
        clock[0] += seconds

    monkeypatch.setattr(measure.time, "sleep", advance)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    seconds = measure.in_turn({"a": lambda: advance(2.0)}, repeats=2, pause=0.5)
    assert seconds == {"a": [2.0, 2.0]}
    assert clock == [3 * 2.5]


def test_a_ratio_above_one_means_that_ours_is_faster():
    seconds = {"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 6.0, 4.0]}
    assert measure.ratio(seconds, "ours", "theirs") == {"median": 2.0, "low": 1.5, "high": 2.5, "n": 3}
    assert measure.summarize(seconds, 2.0)["theirs"] == {"median": 2.0, "low": 1.5, "high": 2.5, "n": 3}


@pytest.mark.parametrize("name", ["base", "mixed", "record"])
def test_every_convolution_of_the_network_is_measured(name):
    model = read_config(f"configs/{name}.py", []).model
    found = convolutions.list_convolutions(model)
    cost = summarize(model)
    macs = sum(math.prod(shape) * after**2 for _, _, (_, after), shape in found)
    head = next(layer for layer in cost.layers if layer.name == "head")
    assert macs == cost.macs - head.macs
    for _, window, (before, after), shape in found:
        assert after == ops.output_size(before, shape[0], **{"stride": 1, "dilation": 1, "padding": 0} | window)
    for (_, _, (_, after), _), (_, _, (before, _), _) in itertools.pairwise(found):
        assert after == before


def test_the_floor_of_a_step_is_three_forward_passes(base, monkeypatch):
    monkeypatch.setattr(measure, "peak_flops", lambda: 1e9)
    monkeypatch.setattr(measure, "peak_bandwidth", lambda: 1e9)
    least = train_step.floor(base)
    assert least["gflop"] == pytest.approx(3 * 2 * summarize(base.model).macs * 128 / 1e9)
    assert least["flops_s"] == pytest.approx(least["gflop"])
    assert least["bytes_s"] == pytest.approx(least["gigabytes"])


@pytest.mark.slow
def test_seeds_mapped_take_the_steps_of_seeds_alone(monkeypatch):
    monkeypatch.setitem(c1c2c3c40.VARIANTS, "coarse", shallow)
    small = ["--config.model.kernels=xla", "--config.model.widths=(4, 4, 4, 4)", "--config.train.batch_size=4"]
    config = read_config("configs/fast.py", small)
    sides = seeds.make_sides(config, num_seeds=2)
    alone, mapped = (sides[f"{way}, xla"]() for way in ("in turn", "vmap"))
    assert set(sides) == {"in turn, xla", "vmap, xla"}
    for i, state in enumerate(alone):
        assert state.step == seeds.STEPS
        chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[i], mapped), state, rtol=1e-3, atol=1e-4)  # noqa: B023


def test_where_mapped_seeds_are_faster_the_ratio_is_above_one(monkeypatch, capsys):
    monkeypatch.setattr(
        seeds, "make_sides", lambda config, num: dict.fromkeys(("in turn, a", "vmap, a", "in turn, b", "vmap, b"))
    )
    times = {"in turn, a": [3.0], "vmap, a": [1.0], "in turn, b": [2.0], "vmap, b": [4.0]}
    monkeypatch.setattr(measure, "in_turn", lambda sides, repeats: {name: times[name] for name in sides})
    seeds.main(["--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["ratio"] == 2.0 and report["ratios"].keys() == {"in turn, b over vmap, a"}
    assert report["sides"]["vmap, a"]["median"] == pytest.approx(1 / (4 * seeds.STEPS))


def test_json_is_one_object_on_the_last_line(capsys):
    small = ["--config.train.batch_size=2", "--config.model.widths=(4, 4, 4, 4)"]
    convolutions.main(["--config", "configs/mixed.py", "--repeats", "1", "--json", *small])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    kinds = ("dense", "depthwise", "pointwise")
    assert set(report["sides"]) == {kind + end for kind in kinds for end in ("", " by lax")}
    ours, by_lax = (sum(report["sides"][kind + end]["median"] for kind in kinds) for end in ("", " by lax"))
    assert report["ratio"] == pytest.approx(by_lax / ours)


@pytest.mark.skipif(not native.find_compiler(), reason="no C compiler")
def test_kernels_are_compared_with_those_of_xla(monkeypatch, capsys):
    monkeypatch.setitem(c1c2c3c40.VARIANTS, "strided", lambda *widths: (conv("c1_conv", 4),))
    small = ["--config.train.batch_size=2", "--config.budget.receptive_field=3"]
    kernels.main(["--repeats", "1", "--json", *small])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = {f"{what}, {which}" for what in ("evaluation", "training") for which in ("native", "xla")}
    assert names == set(report["sides"]) == set(report["compile_seconds"])
    for what in ("evaluation", "training"):
        ours, xla = (report["sides"][f"{what}, {which}"]["median"] for which in ("native", "xla"))
        assert report["ratios"][f"{what}, xla over native"]["median"] == pytest.approx(xla / ours)
        assert report["images_per_second"][f"{what}, native"] == round(2 / ours)
    assert report["ratio"] == report["ratios"]["training, xla over native"]["median"]

    _, config = measure.parse(measure.make_parser(kernels.__doc__), small)
    for which, chosen in kernels.choose_sides(config).items():
        steps = kernels.make_steps(chosen)
        for step, *arguments in steps.values():
            assert ("cifar_jax_block" in jax.jit(step).lower(*arguments).as_text()) == (which == "native")
        assert "correct" in jax.eval_shape(*steps["evaluation"]) and jax.eval_shape(*steps["training"])[0].params


def test_kernels_of_bfloat16_are_compared_with_those_of_float32_too(monkeypatch):
    monkeypatch.setattr(kernels, "choose_kernels", lambda model: ("native", ""))
    sides = kernels.choose_sides(read_config("configs/base.py", ["--config.model.dtype=bfloat16"]))
    assert {name: (side.model.dtype, side.model.kernels) for name, side in sides.items()} == {
        "native": ("bfloat16", "auto"),
        "native, float32": ("float32", "auto"),
        "xla": ("bfloat16", "xla"),
    }


def test_where_there_are_no_others_there_is_nothing_to_compare():
    with pytest.raises(InputError, match="model.kernels is xla"):
        kernels.main(["--config.model.kernels=xla"])


def test_augmentation_is_compared_with_albumentations(capsys):
    from benchmarks import augment

    augment.main(["--repeats", "1", "--json", "--config.train.batch_size=2"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report["sides"]) | set(report["left_out"]) == {"ours", "host", "kornia", "torchvision"}
    assert report["ratio"] == pytest.approx(report["sides"]["host"]["median"] / report["sides"]["ours"]["median"])


def test_the_loader_is_compared_with_pytorch_and_the_floor(capsys):
    pytest.importorskip("torch")
    from benchmarks import loader

    loader.main(["--workers", "0", "--repeats", "1", "--json", "--config.train.batch_size=2"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report["sides"]) == {"ours", "torch", "floor"}
    assert report["ratio"] == pytest.approx(report["sides"]["torch"]["median"] / report["sides"]["ours"]["median"])


SAID = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'gate_gradient_96_96' for 'sm_90a'
ptxas info    : Function properties for gate_gradient_96_96
    832 bytes stack frame, 1060 bytes spill stores, 860 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 832 bytes cumulative stack size
ptxas info    : Compiling entry function 'fusion_2' for 'sm_90a'
ptxas info    : Function properties for fusion_2
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers
"""
SEQUENCE = """
004: kCustomKernel [prev=003 (1) | sink ] gate_gradient_96_96 grid: [4096, 1, 1] threads: [128, 1, 1]  shared_memory: 69888 bytes
005: kCustomKernel [source | sink ] fusion_2 grid: [7, 1, 1] threads: [1024, 1, 1]  shared_memory: 0 bytes
"""


def test_what_the_assembler_says_of_our_kernels_is_read():
    expected = {"registers": 255, "spilled_bytes": 1060, "shared_bytes": 69888}
    assert gpu_compile.read_kernels(SAID, SEQUENCE) == {"gate_gradient_96_96": expected}


@pytest.mark.skipif(bool(importlib.util.find_spec("jax_cuda12_plugin")), reason="it is installed here")
def test_without_a_compiler_for_gpus_one_line_says_what_brings_it():
    with pytest.raises(InputError, match=r'expected one; pip install -e ".\[cuda12\]" brings it'):
        gpu_compile.find_gpu()
