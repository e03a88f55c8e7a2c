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


IN_A_WORKER = """
import resource
import numpy as np
from torch.utils.data import Dataset
from datamodules.loading import ResumableLoader
from datamodules.sampling import BatchLimits, PlannedBatchSampler

class Faults(Dataset):
    def __getitem__(self, place):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(10_000_000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plan = PlannedBatchSampler(np.ones(6), BatchLimits(1), False)
first, *_, last = (faults for (faults,) in ResumableLoader(Faults(), plan, list, workers=1))
print(first, last)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries can't be told")
@pytest.mark.parametrize("code", [CODE, IN_A_WORKER], ids=["here", "in a worker"])
def test_the_system_is_not_asked_again(repository, code):
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 100
