"""The same Albumentations pipeline behind a torch DataLoader, each image with the random stream that cifar_jax gives it."""

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cifar_jax.data.augment import make_image_augment, make_train_transform, normalize


class Augmented(Dataset):
    """Training images by (epoch, index): (float32 (32, 32, 3), label)."""

    def __init__(self, split, augment, mean, std, seed):
        self.split, self.seed = split, seed
        self.compose = make_train_transform(augment, mean, std)
        self.epoch = None

    def __len__(self):
        return len(self.split)

    def __getitem__(self, key):
        epoch, index = key
        if epoch != self.epoch:
            self.epoch, self.augment = epoch, make_image_augment(self.compose, seed=self.seed, epoch=epoch)
        image = self.augment(self.split.images[index], index)
        return torch.from_numpy(image), int(self.split.labels[index])


class ShuffledKeys(Sampler):
    """(epoch, index) for every index in a new order each epoch; call set_epoch before each."""

    def __init__(self, num_images, seed):
        self.num_images, self.seed, self.epoch = num_images, seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.num_images

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 2**31 + self.epoch)
        order = torch.randperm(self.num_images, generator=generator)
        return ((self.epoch, index) for index in order.tolist())


def make_train_loader(split, augment, mean, std, *, batch_size, seed, workers, start_method=None):
    """A DataLoader of (float32 (b, 32, 32, 3), int64 (b,)); its sampler is a ShuffledKeys. The last partial batch is dropped.

    start_method: of the workers; PyTorch's default, fork, may hang where JAX runs in the same process: name "spawn" there.
    """
    dataset = Augmented(split, augment, mean, std, seed)
    return DataLoader(
        dataset,
        batch_size,
        sampler=ShuffledKeys(len(dataset), seed),
        num_workers=workers,
        multiprocessing_context=start_method if workers else None,
        drop_last=True,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def eval_batches(split, mean, std, batch_size):
    """Yields (images, labels) in order, the last batch as small as it comes."""
    for first in range(0, len(split), batch_size):
        images = normalize(split.images[first : first + batch_size], mean, std)
        yield torch.from_numpy(images), torch.from_numpy(split.labels[first : first + batch_size]).long()
