"""Bad flags: every flag of every verb without a value, with an empty one, and given to a verb that does not have it."""

import argparse
import pathlib

import pytest

import run

SMOKE = str(pathlib.Path(__file__).parent.parent / "configs" / "smoke.py")
# Every verb with what it cannot do without.
NEEDED = {
    "train": ["--config", SMOKE],
    "sweep": ["--config", SMOKE, "--seeds", "0"],
    "summary": ["--config", SMOKE],
    "evaluate": ["--weights", "base"],
    "predict": ["nosuch.png", "--weights", "base"],
    "export": ["--weights", "base", "--output", "x.onnx"],
    "report": ["--workdir", "nosuch"],
    "data": [],
}
PARSERS = next(action for action in run.make_parser()._actions if isinstance(action, argparse._SubParsersAction)).choices


def flags_of(verb):
    """{flag: whether it takes a value}."""
    actions = [action for action in PARSERS[verb]._actions if action.dest != "help" and action.option_strings]
    return {action.option_strings[0]: action.nargs != 0 for action in actions}


FLAGS = {(verb, flag): takes_value for verb in PARSERS for flag, takes_value in flags_of(verb).items()}
FOREIGN = [(verb, flag) for verb in PARSERS for flag in sorted({flag for _, flag in FLAGS}) if (verb, flag) not in FLAGS]


def test_every_verb_is_here():
    assert NEEDED.keys() == PARSERS.keys()


@pytest.mark.parametrize(("verb", "flag"), [key for key, takes_value in FLAGS.items() if takes_value])
def test_a_flag_without_its_value(refused, verb, flag):
    line = refused(verb, *NEEDED[verb], flag)
    assert f"{flag}: got no value, expected one; see run.py {verb} --help" in line
    for empty in ([flag, ""], [f"{flag}="]):
        said = {"--seeds": "got '', expected whole numbers", "--top": "got '', expected a whole number, 1 or more; see"}
        default = "got an empty name, expected that of a file or folder; see"
        assert f"{flag}: {said.get(flag, default)}" in refused(verb, *NEEDED[verb], *empty)


@pytest.mark.parametrize(("verb", "flag"), [key for key, takes_value in FLAGS.items() if not takes_value])
@pytest.mark.parametrize("value", ["", "x", "true"])
def test_a_flag_with_a_value_that_it_does_not_take(refused, verb, flag, value):
    assert f"{flag}: got the value {value!r}, expected none; see" in refused(verb, *NEEDED[verb], f"{flag}={value}")
    said = f"{value or repr(value)}: unknown argument"
    assert said in refused(verb, *NEEDED[verb], flag, value)


@pytest.mark.parametrize(("verb", "flag"), [*FOREIGN, *((verb, flag) for verb in PARSERS for flag in ("--epochs", "-x"))])
def test_a_flag_that_the_verb_does_not_have(refused, verb, flag):
    for argv in ([flag], [flag, "x"], [f"{flag}=x"]):
        assert f"{argv[0]}: unknown argument; see run.py {verb} --help" in refused(verb, *NEEDED[verb], *argv)


@pytest.mark.parametrize(("verb", "flag"), FLAGS)
def test_a_flag_is_not_abbreviated(refused, verb, flag):
    assert f"{flag[:-1]}=x: unknown argument" in refused(verb, *NEEDED[verb], f"{flag[:-1]}=x")


@pytest.mark.parametrize("verb", PARSERS)
@pytest.mark.parametrize("word", ["x", "", "two words", "train", "seed=1", "--seed=1", "--noconfig.seed"])
def test_a_word_that_is_no_flag(refused, verb, word):
    line = refused(verb, *NEEDED[verb], word)
    shown = f"'{word}'" if " " in word or not word else word
    assert f"error: {shown}: unknown argument; see run.py {verb} --help; overrides are --config.key=value" in line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], ["VERB", "--config FILE to train", "--help"]),
        (["-x"], ["VERB", "--help"]),
        ([""], ["''", "expected one of", "train", "--help"]),
        (["tarin"], ["'tarin'", "expected one of", "train", "--help"]),
        (["Train"], ["'Train'", "train"]),
        (["train"], ["got no --config", "run.py train --help"]),
        (["summary"], ["got no --config", "run.py summary --help"]),
        (["--workdir", "x"], ["got no --config", "run.py train --help"]),
        (["--config", SMOKE, "--epochs=3"], ["--epochs=3", "unknown argument", "--config.key=value"]),
        (["--config", SMOKE, "--confi.train.epochs=3"], ["--confi.train.epochs=3", "unknown argument"]),
        (["--config", SMOKE, "--config.train.epochs", "3"], ["3: unknown argument", "--config.key=value"]),
        (["evaluate"], ["got neither", "--workdir", "--weights", "expected one of"]),
        (["evaluate", "--workdir", "x", "--weights", "y"], ["got both", "--workdir", "--weights", "expected one of"]),
    ],
)
def test_what_does_not_make_a_command(refused, argv, said):
    line = refused(*argv)
    assert all(word in line for word in said), line


def test_of_a_flag_given_twice_the_last_counts(refused, capsys):
    assert "nosuch.py" in refused("--config", SMOKE, "--config", "nosuch.py")
    assert run.main(["summary", "--config", "nosuch.py", "--config", SMOKE]) == 0
    assert "seed: got -2" in refused("--config", SMOKE, "--config.seed=-1", "--config.seed=-2")
    assert "seed: got 'x'" in refused("--config", SMOKE, "--config.seed=x", "--config.seed=1")  # and every one must be valid


@pytest.mark.parametrize(
    ("overrides", "blamed"),
    [
        (["optim.nesterov=1", "train.epochs=abc"], "train.epochs: got 'abc'"),
        (["seed=0x10", "train.epochs=abc"], "train.epochs: got 'abc'"),
        (["optim.nesterov", "train.epochs"], "train.epochs: got no value, expected a whole number"),
        (["data.dir"], "data.dir: got no value, expected a text; write --config.data.dir=VALUE, for example"),
        (["model.widths=(8,8"], "model.widths: got '(8,8', expected numbers in brackets; write '--config.model.widths=[16, "),
    ],
)
def test_the_override_that_is_wrong_is_the_one_that_is_named(refused, overrides, blamed):
    assert f"error: {blamed}" in refused("--config", SMOKE, *(f"--config.{override}" for override in overrides))


@pytest.mark.parametrize("argv", [["--config", "a\nb"], ["--config", SMOKE, "--config.a\nb=1"], ["--config", SMOKE, "a\nb"]])
def test_a_line_feed_does_not_break_the_line(refused, argv):
    assert "a\\nb" in refused(*argv)
