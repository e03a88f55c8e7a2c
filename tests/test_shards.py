"""Checkpoints as folders: what is read from them, and what is not. With several processes: tests/test_parallel.py."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from lit_spectron import files
from lit_spectron.checkpoint import consolidate, read_checkpoint
from lit_spectron.errors import UserError
from lit_spectron.files import put_back, replace_folder
from lit_spectron.shards import PLAIN_FILE, write_shards

MOMENTS = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 2)}
CHECKPOINT = {
    "state_dict": {"model.a.weight": torch.eye(2), "model.frames": torch.tensor(7)},
    "optimizer_states": [{"state": {0: MOMENTS}, "param_groups": [{"lr": 0.5, "betas": (0.9, 0.98), "params": [0]}]}],
    "config": {"vocoder": {}},
    "rebuild_args": {},
    "global_step": 3,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(CHECKPOINT, tmp_path / "last.ckpt", True)
    return tmp_path / "last.ckpt"


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key in ("config", "rebuild_args", "global_step"):
        assert found[key] == expected[key]
    assert found["optimizer_states"][0]["param_groups"] == expected["optimizer_states"][0]["param_groups"]
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value)


def test_the_same_comes_back(folder, tmp_path):
    consolidate(folder, tmp_path / "new/one.ckpt")
    for found in (read_checkpoint(folder, "all"), torch.load(tmp_path / "new/one.ckpt", weights_only=True)):
        assert_same(found, CHECKPOINT)
        moments = found["optimizer_states"][0]["state"][0]
        assert moments.keys() == MOMENTS.keys() and all(torch.equal(moments[k], v) for k, v in MOMENTS.items())


def test_no_more_than_is_asked_for(folder):
    weights, shapes = read_checkpoint(folder), read_checkpoint(folder, "shapes")
    assert_same(weights, CHECKPOINT)
    assert weights["optimizer_states"][0]["state"] == shapes["optimizer_states"][0]["state"] == {}
    assert shapes["state_dict"]["model.a.weight"].is_meta and shapes["state_dict"]["model.a.weight"].shape == (2, 2)


class Harmful:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", [".metadata", PLAIN_FILE])
def test_no_code_of_a_stranger_runs(folder, tmp_path, name):
    if name == PLAIN_FILE:
        torch.save(Harmful(tmp_path / "harmed"), folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Harmful(tmp_path / "harmed")))
    with pytest.raises(UserError, match=r"last\.ckpt"):
        read_checkpoint(folder)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", [".metadata", PLAIN_FILE, "__0_0.distcp"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_folder_is_one_line(folder, tmp_path, name, damage):
    if damage == "missing":
        (folder / name).unlink()
    else:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"last\.ckpt") as error:
        consolidate(folder, tmp_path / "one.ckpt")
    assert "\n" not in str(error.value) and {p.name for p in tmp_path.iterdir()} == {"last.ckpt"}


def test_nothing_is_consolidated_twice_or_over_something(folder, tmp_path):
    (tmp_path / "one.ckpt").write_bytes(b"")
    for arguments, named in (((folder, tmp_path / "one.ckpt"), "--out"), ((tmp_path / "one.ckpt", folder), "--ckpt")):
        with pytest.raises(UserError, match=named):
            consolidate(*arguments)


@pytest.mark.parametrize("name", ["__0_0.distcp", PLAIN_FILE])
def test_a_full_disk_is_called_so(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_shards({**CHECKPOINT, "state_dict": {"weight": torch.ones(100_000)}}, tmp_path, True)


@pytest.fixture(params=[True, False])
def at_one_instant(request, monkeypatch) -> bool:
    """With what Linux offers for it, and as it is elsewhere."""
    if not request.param:
        monkeypatch.setattr(files, "exchange", lambda *_: False)
    return request.param


@pytest.mark.usefixtures("at_one_instant")
@pytest.mark.parametrize("before", ["folder", "file", "nothing"])
def test_a_folder_takes_the_place_of_what_was_there(tmp_path, before):
    path, new = tmp_path / "last.ckpt", tmp_path / "new"
    if before == "folder":
        (path / "inner").mkdir(parents=True)
    elif before == "file":
        path.write_text("one")
    (tmp_path / ".last.ckpt.old").mkdir()
    new.mkdir()
    (new / "shard").write_text("two")
    replace_folder(path, new)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"] and [p.name for p in path.iterdir()] == ["shard"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("allowed", range(3))  # renames before the kill
def test_killed_at_any_moment_one_of_both_is_there(tmp_path, monkeypatch, allowed, at_one_instant):
    path, new = tmp_path / "last.ckpt", tmp_path / ".last.ckpt.part"
    for folder, content in ((path, "one"), (new, "two")):
        folder.mkdir()
        (folder / "shard").write_text(content)
    rename, remove, done = Path.rename, files.remove, []

    def rename_or_die(self: Path, target: Path) -> Path:
        if len(done) == allowed:
            raise Killed
        done.append(target)
        return rename(self, target)

    def remove_or_die(folder: Path) -> None:
        if folder.exists():
            raise Killed
        remove(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_or_die)
        patch.setattr(files, "remove", remove_or_die)
        with pytest.raises(Killed):
            replace_folder(path, new)
    assert path.exists() == (at_one_instant or allowed != 1)
    put_back(path)
    assert (path / "shard").read_text() == ("two" if at_one_instant or allowed == 2 else "one")


@pytest.mark.usefixtures("at_one_instant")
def test_what_can_not_be_replaced_stays(tmp_path):
    path = tmp_path / "last.ckpt"
    path.mkdir()
    with pytest.raises(FileNotFoundError):
        replace_folder(path, tmp_path / "nothing")
    put_back(path)
    assert list(tmp_path.iterdir()) == [path]
