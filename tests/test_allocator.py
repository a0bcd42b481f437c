"""Freed memory stays with the process: the next block of the same size costs no page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from cifar_jax.allocator import keep_freed_memory

taken = keep_freed_memory() if sys.argv[1] == "keep" else True
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**26, np.uint8)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(taken, faults * resource.getpagesize() / 2**26)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_a_freed_block_is_used_again():
    def run(word):
        command = [sys.executable, "-c", PROGRAM, word]
        taken, faulted = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert taken == "True"
        return float(faulted)  # the share of the third block's pages that faulted

    assert run("keep") < 0.01
    assert run("default") > 0.001  # at least one huge page: the measure sees what there is to see
