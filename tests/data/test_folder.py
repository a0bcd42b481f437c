"""An image folder of anyone's own becomes a data set, or one line that names what is wrong with it."""

import cv2
import numpy as np
import pytest

from cifar_jax.data.sources import load_dataset
from cifar_jax.errors import InputError


def message(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def draw(path, shape, value, name="a.png"):
    path.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path / name), np.full(shape, value, np.uint8))


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    draw(root / "train" / "zebra", (64, 48, 3), (10, 20, 30))  # B, G, R
    draw(root / "train" / "ant", (32, 32), 200)
    draw(root / "train" / "ant", (8, 8, 4), (1, 2, 3, 255), "b.PNG")
    draw(root / "test" / "zebra", (32, 32, 3), (255, 0, 0), "a.bmp")
    draw(root / "test" / "ant", (40, 40, 3), (90, 90, 90), "a.jpg")
    return root


def test_an_image_folder_becomes_a_data_set(images):
    data = load_dataset("folder", str(images))
    assert (data.classes, data.source, data.path, data.verified) == (("ant", "zebra"), "folder", str(images), False)
    assert data.train.images.shape == (3, 32, 32, 3) and data.train.images.dtype == np.uint8
    assert data.train.labels.tolist() == [0, 0, 1] and data.test.labels.tolist() == [0, 1]
    colours = [(200, 200, 200), (3, 2, 1), (30, 20, 10)]  # R, G, B
    np.testing.assert_array_equal(data.train.images, np.broadcast_to(np.array(colours)[:, None, None], (3, 32, 32, 3)))
    np.testing.assert_allclose(data.mean, np.mean(colours, axis=0) / 255)
    np.testing.assert_allclose(data.std, np.std(colours, axis=0) / 255)


def test_shrinking_averages_areas(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    image[::2] = 200
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / split / "a" / "a.png"), image)
    assert np.unique(load_dataset("folder", str(tmp_path)).train.images).tolist() == [100]


@pytest.mark.parametrize(("name", "content"), (("b.png", b"text"), ("b.jpg", b""), ("notes.txt", b"text")))
def test_a_file_that_is_not_an_image_is_named(images, name, content):
    (images / "train" / "ant" / name).write_bytes(content)
    with pytest.raises(InputError, match="not an image") as error:
        load_dataset("folder", str(images))
    assert str(images / "train" / "ant" / name) in message(error)


def test_what_an_image_folder_may_lack_is_nothing(images, tmp_path):
    (images / "test" / "ant").rename(images / "test" / "bee")
    with pytest.raises(InputError, match="class 'ant' is in one of train and test"):
        load_dataset("folder", str(images))
    (images / "train" / "ant").rename(images / "train" / "bee")
    (images / "test" / "bee" / "a.jpg").unlink()
    with pytest.raises(InputError, match="got no images"):
        load_dataset("folder", str(images))
    wrong = {"": "got nothing", str(tmp_path / "no"): "does not exist", str(tmp_path): "train: no such"}
    for directory, words in wrong.items():
        with pytest.raises(InputError, match=words) as error:
            load_dataset("folder", directory)
        assert message(error)
