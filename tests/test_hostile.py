"""Files from strangers: whatever is in them, an InputError of one line comes out, soon and without much memory."""

import contextlib
import io
import json
import os
import resource
import struct
import tarfile
import zlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_jax import workdir
from cifar_jax.config import read_config, to_json
from cifar_jax.data import cache, formats
from cifar_jax.data.decode import MOST_BYTES, PNG
from cifar_jax.data.folder import read_image
from cifar_jax.data.tfds_source import read_prepared
from cifar_jax.errors import InputError
from cifar_jax.jsonfile import read_json
from cifar_jax.models import create_model
from cifar_jax.weights import check_variables, load_weights, save_weights
from fuzz import targets

TARGETS = targets.make_targets()
PLACES = st.integers(0, 2**32)
WORDS = [b"\xff" * 8, b"\0" * 8, b"\x7f" * 4, b"[" * 50, b"9" * 30, b"NaN", b"null"]
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), PLACES),
        st.tuples(st.just("cut"), PLACES),
        st.tuples(st.just("put"), PLACES, st.binary(max_size=12)),
        st.tuples(st.just("drop"), PLACES, st.integers(1, 40)),
        st.tuples(
            st.just("set"), PLACES, st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f" * 4, b"[" * 50, b"9" * 30, b"NaN", b"null"])
        ),
    ),
    min_size=1,
    max_size=4,
)


def changed(data: bytes, changes) -> bytes:
    for kind, place, *more in changes:
        at = place % max(len(data), 1)
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ 1 << place % 8]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "put":
            data = data[:at] + more[0] + data[at:]
        elif kind == "drop":
            data = data[:at] + data[at + more[0] :]
        elif kind == "set":
            data = data[:at] + more[0] + data[at + len(more[0]) :]
    return data


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150)
@given(changes=CHANGES, which=st.integers(0, 9))
def test_only_input_errors_come_out_of_changed_files(name, changes, which):
    target, seeds = TARGETS[name]
    target(seeds[0])  # a whole file passes
    try:
        target(changed(seeds[which % len(seeds)], changes))
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=50)
@given(data=st.binary(max_size=300))
def test_only_input_errors_come_out_of_any_bytes(name, data):
    try:
        TARGETS[name][0](data)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.fixture
def sparing():
    """Fails a test that takes over 100 MB more at once than was ever taken before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def bmp(width, height):
    content = bytearray(cv2.imencode(".bmp", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def jpg(width, height):
    content = bytearray(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("size", [(30000, 30000), (9000, 8000)])
@pytest.mark.parametrize("make", [png, bmp, jpg])
def test_an_image_that_claims_to_be_huge_is_refused_by_its_header(tmp_path, sparing, make, size):
    path = tmp_path / f"i.{make.__name__}"
    path.write_bytes(make(*size))
    with pytest.raises(InputError, match="not an image .it claims .* pixels., expected a whole .* of at most 64 million pixels"):
        read_image(path)


def test_a_chunk_that_claims_to_be_huge_is_not_allocated(tmp_path, sparing):
    """302 bytes for which OpenCV 5 allocates 4 GB; found by fuzzing."""
    content = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    at = content.index(b"IDAT") - 4
    (tmp_path / "i.png").write_bytes(content[:at] + b"\xff\xff\xff\x0d" + content[at + 4 :])
    with pytest.raises(InputError, match="not an image .a chunk reaches beyond its end."):
        read_image(tmp_path / "i.png")


def test_a_huge_image_file_is_not_read(tmp_path, sparing):
    with (tmp_path / "i.png").open("wb") as file:
        file.write(png(8, 8))
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(InputError, match="not an image"):
        read_image(tmp_path / "i.png")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "i.png")
    with pytest.raises(InputError, match="not an image"):
        read_image(tmp_path / "i.png")
    os.mkfifo(tmp_path / "data_batch_1.bin")
    with pytest.raises(InputError, match="data_batch_1.bin: cannot be read .no ordinary file"):
        formats.read_folder(formats.BINARY, tmp_path, targets.RELEASE)


def test_another_format_in_place_of_a_png_is_not_decoded(monkeypatch):
    """Its size would stand elsewhere than where a PNG's does."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    forged = bytearray(bmp(30000, 30000))
    forged[16:24] = struct.pack(">II", 1024, 2)
    with pytest.raises(InputError, match="its header cannot be read"):
        targets.in_form(formats.NPM, "data_batch_1.png", targets.npm_files())(bytes(forged))


@pytest.mark.parametrize("text", [b"[" * 10**5, b'{"a":' * 10**5, b"1" * 10**5, b"[1e400]", b"[-1]", b"[null]"])
def test_json_that_is_no_list_of_labels(text, tmp_path):
    target = targets.in_form(formats.NPM, formats.LABELS[1], targets.npm_files())
    with pytest.raises(InputError):
        target(text)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "1" * 10**5, '{"format_version": 1e999}'])
def test_json_that_is_no_file_of_ours(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="damaged file"):
        read_json(tmp_path / "x.json")


def test_an_array_that_claims_to_be_huge_is_not_allocated(tmp_path, sparing, caplog):
    folder = tmp_path / cache.FOLDER
    folder.mkdir()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 32, 32, 3)})
    for name in cache.Arrays._fields:
        (folder / f"{name}.npy").write_bytes(header.getvalue() + bytes(100))
    assert cache.read_cache(str(tmp_path), targets.RELEASE) is None
    assert "x_train.npy cannot be read" in caplog.text


def test_members_of_an_archive_stay_in_memory_and_within_their_limits(tmp_path, sparing):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, kind in (("../../escaped", tarfile.REGTYPE), ("/escaped", tarfile.REGTYPE), ("f/link", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        bomb = tarfile.TarInfo("f/bomb")
        bomb.size = 3 * 10**8
        archive.addfile(bomb, io.BytesIO(bytes(bomb.size)))
        wanted = tarfile.TarInfo("f/wanted")
        wanted.size = 3
        archive.addfile(wanted, io.BytesIO(b"yes"))
    assert formats.read_members(path, "f", {"wanted": 3}) == {"wanted": b"yes"}
    assert os.listdir(tmp_path) == ["a.tar.gz"] and not os.path.exists("/escaped")
    with pytest.raises(InputError, match="bomb claims 300000000 bytes"):
        formats.read_members(path, "f", {"bomb": 10**6})


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_a_prepared_set_cannot_name_code_to_import(tmp_path, key):
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "features.json").write_text(json.dumps({"featuresDict": {"features": {"x": {key: "antigravity.X"}}}}))
    with pytest.raises(
        InputError, match="features.json: names the class 'antigravity.X', expected only those of tensorflow_datasets"
    ):
        read_prepared(tmp_path)


def test_weights_that_claim_a_giant_network_are_refused_without_making_one(tmp_path, sparing):
    smoke = str(targets.ROOT / "configs" / "smoke.py")
    config = to_json(read_config(smoke, ["--config.model.widths=(4096,4096,4096,4096)"]))
    content = {"config": config, "classes": list("abcdefghij"), "mean": (0.5,) * 3, "std": (0.2,) * 3, "train_seconds": 1.0}
    save_weights(tmp_path / "w", {"params": {"head": {"bias": np.zeros(10, np.float32)}}}, **content)
    found = load_weights(str(tmp_path / "w"))
    model = create_model(found.config.model)
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    with pytest.raises(InputError, match="these weights are for another network"):
        check_variables(found.variables, expected, found.path)


@pytest.mark.parametrize(
    "changes", [{"classes": [1] * 10}, {"train_seconds": "long"}, {"train_seconds": {}}, {"classes": "abcdefghij!"}]
)
def test_weights_whose_metadata_is_of_another_kind(tmp_path, changes):
    config = to_json(read_config(str(targets.ROOT / "configs" / "smoke.py"), []))
    content = {"config": config, "classes": list("abcdefghij"), "mean": (0.5,) * 3, "std": (0.2,) * 3, "train_seconds": 1.0}
    save_weights(tmp_path / "w", {"params": {"x": {"y": np.zeros(1, np.float32)}}}, **(content | changes))
    with pytest.raises(InputError, match="not a whole weights file"):
        load_weights(str(tmp_path / "w"))


def test_an_array_of_another_type_is_not_copied(tmp_path, sparing):
    """10**10 texts of no length: nothing in the file, 10 GB in memory."""
    folder = tmp_path / cache.FOLDER
    folder.mkdir()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|S0", "fortran_order": False, "shape": (10**10,)})
    for name in cache.Arrays._fields:
        (folder / f"{name}.npy").write_bytes(header.getvalue() + bytes(100))
    assert cache.read_cache(str(tmp_path), targets.RELEASE) is None


@pytest.mark.parametrize(("suffix", "reason"), [(".png", "does not match its checksum"), (".bmp", "it is not whole")])
def test_a_damaged_image_is_said_once(tmp_path, capfd, suffix, reason):
    """libpng and OpenCV would say it on stderr, too."""
    content = targets.encode(suffix)
    damaged = content[:-1] if suffix == ".bmp" else content[:200] + bytes([content[200] ^ 1]) + content[201:]
    (tmp_path / f"i{suffix}").write_bytes(damaged)
    with pytest.raises(InputError, match=reason):
        read_image(tmp_path / f"i{suffix}")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08", b"\x1f\x8b\x08\x04" + bytes(6)])
def test_a_gzip_header_without_its_end(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match="not a whole .tar.gz archive"):
        formats.read_members(tmp_path / "a", "f", {"x": 1})


@pytest.mark.parametrize("header", [{"GNU.sparse.map": "x"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}])
def test_a_map_of_a_sparse_member_that_is_none(tmp_path, header):
    with tarfile.open(tmp_path / "a", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("f/x")
        member.pax_headers = header
        archive.addfile(member)
    with pytest.raises(InputError, match="not a whole .tar.gz archive"):
        formats.read_members(tmp_path / "a", "f", {"x": 1})


def test_a_line_of_error_steers_no_terminal_and_ends():
    assert str(InputError("x: got a\n\x1b[31m\u202eb")) == "x: got a\\n\\x1b[31m\\u202eb"
    long = str(InputError("x: got " + "y" * 10**6 + "; remedy"))
    assert len(long) < 20_000 and long.startswith("x: got") and long.endswith("; remedy")


def test_a_config_nested_to_the_limit_of_the_interpreter(tmp_path):
    smoke = read_config(str(targets.ROOT / "configs" / "smoke.py"), [])
    text = json.dumps({"format_version": 1, "config": to_json(smoke) | {"x": 0}})

    def nested(depth):
        return text.replace('"x": 0', '"x": ' + '{"a":' * depth + "0" + "}" * depth)

    def parses(depth):
        with contextlib.suppress(RecursionError):
            return bool(json.loads(nested(depth)))

    deepest = next(depth for depth in range(1000, 0, -1) if parses(depth))
    for depth in range(deepest - 10, deepest + 10):  # at a few of them the parser still follows and what comes after does not
        (tmp_path / "config.json").write_text(nested(depth))
        with pytest.raises(InputError):
            workdir.check(tmp_path, smoke)


def test_the_data_of_a_run_of_another_type(tmp_path):
    smoke = read_config(str(targets.ROOT / "configs" / "smoke.py"), [])
    (tmp_path / "config.json").write_text(json.dumps({"format_version": 1, "config": to_json(smoke), "data": 5}))
    with pytest.raises(InputError, match="holds a run on other data"):
        workdir.create(tmp_path, smoke, "abc")


def test_a_huge_json_file_is_not_read(tmp_path, sparing):
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(2**33)  # sparse
    with pytest.raises(InputError, match="damaged file .ValueError: it has 8589934592 bytes"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("size", [5 * 10**6, 2**40])
def test_weights_of_a_huge_size_are_not_read(tmp_path, sparing, size):
    header = json.dumps({"__metadata__": {"config": "[" + "[]," * (5 * 10**6 // 3) + "1]"}}).encode()
    with (tmp_path / "w").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header if size < 2**30 else struct.pack("<Q", 100))
        file.truncate(max(size, file.tell()))
    with pytest.raises(InputError, match="not a whole weights file of cifar_jax .ValueError: a header of"):
        load_weights(str(tmp_path / "w"))
