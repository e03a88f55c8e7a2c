"""Freed memory that stays with the process."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource
import numpy as np
from lit_spectron.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(10_000_000)  # 80 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries can't be told")
def test_the_system_is_not_asked_again(repository):
    done = subprocess.run([sys.executable, "-c", CODE], cwd=repository, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 100
