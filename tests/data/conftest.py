"""A small release of CIFAR-10 (twenty images a file) in every form it is published in, as its publishers write it."""

import dataclasses
import gzip
import hashlib
import io
import json
import pathlib
import struct
import tarfile

import cv2
import numpy as np
import pytest

from cifar_jax.data.cache import Arrays, Release, digest
from cifar_jax.data.formats import BATCHES, BINARY, LABELS, NPM, PYTHON

COUNT = 20


def python2_pickle(rows, labels):
    """The bytes that Python 2 wrote: protocol 2, byte strings, the numpy module names of its time."""
    head = b"\x80\x02}(U\x04data" + b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    shape = b"(K\x01" + b"M" + struct.pack("<H", rows.shape[0]) + b"M" + struct.pack("<H", rows.shape[1]) + b"\x86"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content = b"\x89T" + struct.pack("<I", rows.size) + rows.tobytes() + b"tb"
    numbers = b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return head + shape + dtype + content + numbers + b"u."


def batches(arrays):
    """(name, images, labels) of each file of the release."""
    images = [*np.split(arrays.x_train, 5), arrays.x_test]
    labels = [*np.split(arrays.y_train, 5), arrays.y_test]
    return zip(BATCHES, images, labels, strict=True)


def planes(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)  # n h w c -> n (c h w)


def binary_files(arrays):
    return {f"{name}.bin": np.c_[labels, planes(images)].tobytes() for name, images, labels in batches(arrays)}


def python_files(arrays):
    return {name: python2_pickle(planes(images), labels) for name, images, labels in batches(arrays)}


def npm_files(arrays):
    sheets = {f"{name}.png": images.reshape(len(images), 1024, 3)[..., ::-1] for name, images, _ in batches(arrays)}
    files = {name: cv2.imencode(".png", sheet)[1].tobytes() for name, sheet in sheets.items()}
    labels = (json.dumps(labels.tolist()).encode() for labels in (arrays.y_train, arrays.y_test))
    return files | dict(zip(LABELS, labels, strict=True))


def tar_gz(folder, files):
    """A .tar.gz in memory, the same for the same files."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


@dataclasses.dataclass
class Small:
    """The arrays, what is known of them beforehand, and the files of each form (by the name of its archive)."""

    arrays: Arrays
    release: Release
    files: dict[str, dict[str, bytes]]
    archives: dict[str, bytes]

    def write_archive(self, form, directory):
        path = pathlib.Path(directory, form.archive)
        path.write_bytes(self.archives[form.archive])
        return path

    def write_folder(self, form, directory):
        path = pathlib.Path(directory, form.folder)
        path.mkdir(parents=True)
        for name, content in self.files[form.archive].items():
            (path / name).write_bytes(content)
        return path


def make_small(seed=0):
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for n in (5 * COUNT, COUNT)]
    labels = [rng.integers(0, 10, n).astype(np.uint8) for n in (5 * COUNT, COUNT)]
    arrays = Arrays(images[0], labels[0], images[1], labels[1])
    forms = {BINARY: binary_files(arrays), PYTHON: python_files(arrays), NPM: npm_files(arrays)}
    archives = {form.archive: tar_gz(form.folder, files) for form, files in forms.items()}
    release = Release(
        images_per_file=COUNT,
        digests={name: digest(array) for name, array in arrays._asdict().items()},
        archives={name: hashlib.sha256(content).hexdigest() for name, content in archives.items()},
        pickles={name: hashlib.md5(content).hexdigest() for name, content in forms[PYTHON].items()},
    )
    return Small(arrays, release, {form.archive: files for form, files in forms.items()}, archives)


@pytest.fixture(scope="session")
def small():
    return make_small()


@pytest.fixture(scope="session")
def prepared(small, tmp_path_factory):
    """The data_dir of the small release as TensorFlow Datasets prepares it: shuffled, in array_record files."""
    import tensorflow_datasets as tfds

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            image, label = tfds.features.Image(shape=(32, 32, 3)), tfds.features.ClassLabel(num_classes=10)
            features = {"id": tfds.features.Text(), "image": image, "label": label}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "test")}

        def _generate_examples(self, split):
            images, labels = getattr(small.arrays, f"x_{split}"), getattr(small.arrays, f"y_{split}")
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                png = io.BytesIO(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
                yield i, {"id": f"{split}_{i:05d}", "image": png, "label": int(label)}

    root = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    Cifar10(data_dir=root, file_format="array_record").download_and_prepare()
    return root
