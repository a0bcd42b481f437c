"""Every form ends in the same arrays; a form that is damaged or hostile ends in one line and nothing else."""

import dataclasses
import gzip
import hashlib
import os
import pickle
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cifar_jax.data import formats
from cifar_jax.data.cache import CIFAR10
from cifar_jax.data.formats import BINARY, NPM, PYTHON, read_archive, read_folder, read_members
from cifar_jax.errors import InputError

FORMS = pytest.mark.parametrize("form", (BINARY, PYTHON, NPM), ids=("binary", "python", "npm"))


def assert_same(arrays, expected):
    for name, found, wanted in zip(arrays._fields, arrays, expected, strict=True):
        assert found.dtype == np.uint8, name
        np.testing.assert_array_equal(found, wanted, err_msg=name)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@FORMS
def test_an_archive_gives_the_official_arrays(small, tmp_path, form):
    assert_same(read_archive(form, small.write_archive(form, tmp_path), small.release), small.arrays)


@FORMS
def test_an_extracted_folder_gives_the_official_arrays(small, tmp_path, form):
    assert_same(read_folder(form, small.write_folder(form, tmp_path), small.release), small.arrays)


@FORMS
@pytest.mark.parametrize("kept", (0, 100, 0.5, -1))
def test_a_truncated_archive_is_refused_by_its_checksum(small, tmp_path, form, kept):
    path = small.write_archive(form, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match="SHA-256") as error:
        read_archive(form, path, small.release)
    assert str(path) in one_line(error) and "fetch it again" in one_line(error)


@FORMS
def test_a_truncated_archive_is_refused_while_it_is_read(small, tmp_path, form):
    path = small.write_archive(form, tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="not a whole"):
        read_members(path, form.folder, form.limits(small.release))


@FORMS
def test_every_file_of_a_folder_is_needed_whole(small, tmp_path, form):
    for number, name in enumerate(small.files[form.archive]):
        folder = small.write_folder(form, tmp_path / f"cut{number}")
        (folder / name).write_bytes(small.files[form.archive][name][:-7])
        with pytest.raises(InputError):
            read_folder(form, folder, small.release)
        (folder / name).unlink()
        with pytest.raises(InputError, match="No such file") as error:
            read_folder(form, folder, small.release)
        assert name in one_line(error)


def test_a_file_that_is_too_long_is_not_read_to_its_end(small, tmp_path):
    folder = small.write_folder(BINARY, tmp_path)
    with open(folder / "data_batch_3.bin", "r+b") as file:
        file.truncate(2**40)  # sparse: reading all of it would exhaust the memory
    with pytest.raises(InputError, match="more than 61460 bytes"):
        read_folder(BINARY, folder, small.release)


def test_a_member_that_claims_too_much_is_refused_before_it_is_read(tmp_path):
    member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    member.size = 2**40
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(InputError, match=f"claims {2**40} bytes"):
        read_members(path, "cifar-10-batches-bin", BINARY.limits(CIFAR10))


@pytest.mark.parametrize("name", ("../data_batch_1.bin", "/etc/data_batch_1.bin", "other/data_batch_1.bin"))
def test_only_the_named_members_are_read_and_nothing_is_written(small, tmp_path, name):
    files = small.files[BINARY.archive]
    path = tmp_path / "in" / "archive.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for member in (tarfile.TarInfo(name), *(tarfile.TarInfo(f"{BINARY.folder}/{key}") for key in list(files)[1:])):
            archive.addfile(member)
    with pytest.raises(InputError, match="data_batch_1.bin is missing"):
        read_members(path, BINARY.folder, BINARY.limits(small.release))
    assert os.listdir(path.parent) == ["archive.tar.gz"] and os.listdir(tmp_path) == ["in"]


def test_a_link_is_not_followed(small, tmp_path):
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo(f"{BINARY.folder}/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    with pytest.raises(InputError, match="is missing"):
        read_members(path, BINARY.folder, BINARY.limits(small.release))


class Trap:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_not_opened_before_its_checksum_has_matched(small, tmp_path):
    folder, sprung = small.write_folder(PYTHON, tmp_path), tmp_path / "sprung"
    (folder / "data_batch_2").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(InputError, match="data_batch_2: got another MD5"):
        read_folder(PYTHON, folder, small.release)
    assert not sprung.exists()


@pytest.mark.parametrize("protocol", (0, 2, 4))
def test_a_pickle_can_name_nothing_but_arrays_even_with_a_matching_checksum(small, tmp_path, protocol):
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung), protocol=protocol)
    folder = small.write_folder(PYTHON, tmp_path)
    (folder / "data_batch_1").write_bytes(trap)
    pickles = small.release.pickles | {"data_batch_1": hashlib.md5(trap).hexdigest()}
    with pytest.raises(InputError, match="mkdir is not allowed"):
        read_folder(PYTHON, folder, dataclasses.replace(small.release, pickles=pickles))
    assert not sprung.exists()
    pickle.loads(trap)
    assert sprung.is_dir()  # so the trap was a real one


@pytest.mark.parametrize(
    ("name", "content", "words"),
    (
        ("data_batch_1.png", b"not a picture at all, but long enough", "its header cannot be read"),
        ("train_lables.json", b"[1, 2", "cannot be parsed"),
        ("train_lables.json", b"[1, 2]", "2 and 20 labels"),
        ("test_lables.json", b"[10" + b",0" * 19 + b"]", "from 0 to 9"),
        ("test_lables.json", b"[0.5" + b",0" * 19 + b"]", "from 0 to 9"),
        ("test_lables.json", b'{"a": 1}', "from 0 to 9"),
    ),
)
def test_a_broken_file_of_the_npm_package_is_said_in_one_line(small, tmp_path, name, content, words):
    folder = small.write_folder(NPM, tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        read_folder(NPM, folder, small.release)
    assert one_line(error)


def test_a_picture_that_claims_a_huge_size_is_refused_by_its_header(small, tmp_path):
    folder = small.write_folder(NPM, tmp_path)
    content = bytearray(small.files[NPM.archive]["test_batch.png"])
    content[20:24] = (2**30).to_bytes(4, "big")
    (folder / "test_batch.png").write_bytes(content)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (folder / "test_batch.png").write_bytes(content)
    with pytest.raises(InputError, match="it claims far too many pixels"):
        read_folder(NPM, folder, small.release)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_binary_form_round_trips(data):
    count = data.draw(st.integers(1, 3))
    images = data.draw(hnp.arrays(np.uint8, (6, count, 32, 32, 3), fill=st.integers(0, 255)))
    labels = data.draw(hnp.arrays(np.uint8, (6, count), elements=st.integers(0, 9)))
    files = {}
    for name, x, y in zip(formats.BATCHES, images, labels, strict=True):
        files[f"{name}.bin"] = b"".join(
            bytes([label]) + b"".join(image[..., channel].tobytes() for channel in range(3))
            for image, label in zip(x, y, strict=True)
        )
    arrays = formats.parse_binary(files, dataclasses.replace(CIFAR10, images_per_file=count))
    np.testing.assert_array_equal(arrays.x_train, images[:5].reshape(-1, 32, 32, 3))
    np.testing.assert_array_equal(arrays.y_train, labels[:5].ravel())
    np.testing.assert_array_equal(arrays.x_test, images[5])
    np.testing.assert_array_equal(arrays.y_test, labels[5])
