"""JSON files of a run: written whole or not at all, and no changed bit of their content is taken for what was written."""

import json
import os

import pytest

from cifar_jax.errors import InputError
from cifar_jax.jsonfile import FORMAT_VERSION, read_json, write_json

CONTENT = {"config": {"seed": 7, "widths": [8, 16]}, "accuracy": 0.8125, "name": "ship", "none": None}


@pytest.fixture
def written(tmp_path):
    write_json(tmp_path / "x.json", CONTENT)
    return tmp_path / "x.json"


def test_what_was_written_is_read(written):
    assert read_json(written) == CONTENT
    stored = json.loads(written.read_text())
    assert stored.pop("format_version") == FORMAT_VERSION and len(stored.pop("sha256")) == 64
    assert stored == CONTENT


def test_a_file_that_is_not_there_is_none(tmp_path):
    assert read_json(tmp_path / "x.json") is None


def test_it_appears_whole_or_not_at_all(written, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(written, {"a": 2})
    assert read_json(written) == CONTENT


def test_what_json_cannot_hold_leaves_the_file_alone(written):
    with pytest.raises(TypeError):
        write_json(written, {"a": object()})
    assert read_json(written) == CONTENT


def test_every_flipped_bit_is_noticed_or_changes_nothing(written):
    whole = written.read_bytes()
    noticed = 0
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        written.write_bytes(content)
        try:
            assert read_json(written) == CONTENT, bit
        except InputError as error:
            assert str(written) in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > 0.9 * 8 * len(whole)


def test_every_cut_is_noticed(written):
    whole = written.read_bytes().rstrip()
    for size in range(len(whole)):
        written.write_bytes(whole[:size])
        with pytest.raises(InputError, match="damaged file"):
            read_json(written)


def test_a_file_made_before_there_was_a_digest_is_read(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"format_version": 1, **CONTENT}))
    assert read_json(tmp_path / "x.json") == CONTENT


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(InputError, match="no ordinary file"):
        read_json(tmp_path / "x.json")


def test_a_later_format_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"format_version": FORMAT_VERSION + 1, **CONTENT}))
    with pytest.raises(InputError, match="got format 3, expected at most 2; update"):
        read_json(tmp_path / "x.json")
