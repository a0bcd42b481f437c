"""The device that JAX computes on: whether there is one."""

import os

import jax

from cifar_jax.errors import InputError


def check_device() -> None:
    """Raises InputError where JAX finds no device to run on."""
    try:
        jax.devices()
    except Exception as error:  # of several kinds, by the platform that was asked for
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"JAX finds no device ({reason}); JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')!r}: unset it, or install "
            "what it names, such as cifar_jax[cuda12]"
        ) from error
