"""docs/PARTS.md, followed to the letter."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_part_of_your_own(tmp_path: Path):
    page = (ROOT / "docs/PARTS.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", page, flags=re.S))
    assert blocks.keys() == {"python", "yaml", "sh"}
    (tmp_path / "my_parts.py").write_text(blocks["python"], encoding="utf-8")
    (tmp_path / "my_encoder.yaml").write_text(blocks["yaml"], encoding="utf-8")
    python, *command = shlex.split(blocks["sh"].replace("my_encoder.yaml", str(tmp_path / "my_encoder.yaml")))
    assert python == "python"
    short = {
        "trainer.max_steps": 2,
        "trainer.limit_val_batches": 0,
        "trainer.accelerator": "cpu",
        "data.batch_size": 2,
        "model.statistics_batches": 1,
        "trainer.logger.init_args.save_dir": tmp_path / "runs",
    }
    options = [part for key, value in short.items() for part in (f"--{key}", str(value))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    config = (tmp_path / "runs/quickstart/version_0/config.yaml").read_text(encoding="utf-8")
    assert "my_parts.RecurrentEncoder" in config and "hidden_size: 48" in config
    assert (tmp_path / "runs/quickstart/version_0/checkpoints/last.ckpt").is_file()
