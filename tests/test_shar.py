"""A corpus packed into lhotse's Shar is read as the files are that it was packed from."""

import gzip
import json
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from datamodules.loading import PromptSplit, UtteranceDataset
from datamodules.manifest import Manifest
from lit_spectron.cli import main
from lit_spectron.errors import UserError
from lit_spectron.types import SpeechBatch
from tests.conftest import write_gzip_lines
from tests.flawed import RATE, run
from tests.test_datamodules import data_module

pytest.importorskip("lhotse")


@pytest.fixture
def packed(corpus: Path) -> Path:
    """A corpus whose nine utterances are prepared, in ``made``, and packed, in ``packed``, in shards of four.

    The last ends a sample after its file, as rounding may have it.
    """
    with gzip.open(corpus / "cuts.jsonl.gz", "rt") as file:
        cuts = [json.loads(line) for line in file]
    cuts[-1]["duration"] = 2 + 1 / RATE
    write_gzip_lines(corpus / "cuts.jsonl.gz", cuts)
    run(corpus, corpus / "made", layout="cuts", cuts=("cuts.jsonl.gz",), val_share=0.0, test_share=0.0)
    export(corpus, corpus / "packed")
    return corpus


def export(corpus: Path, out: Path, manifest: str = "made/train.arrow") -> None:
    options = ["--manifest", str(corpus / manifest), "--root", str(corpus), "--shard_size", "4"]
    main(["prepare", "export", *options, "--out", str(out)])


def same(one: SpeechBatch, other: SpeechBatch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(SpeechBatch)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_batches_are_those_of_the_original_files(packed):
    """Bit for bit, and by the same plan: even a run that was begun with the files can go on with the shards."""
    assert sorted(p.name for p in (packed / "packed").glob("*.tar")) == [f"recording.00000{i}.tar" for i in range(3)]
    shards = Manifest.open(packed / "packed.arrow", packed)
    files = Manifest.open(packed / "made/train.arrow", packed)
    kept = [
        replace(u, path=f.path, start_seconds=f.start_seconds, member=None) for u, f in zip(shards, files, strict=True)
    ]
    assert kept == list(files) and {u.path.parent.name for u in shards} == {"packed"}
    loaders = []
    for name in ("made/train.arrow", "packed.arrow"):
        module = data_module(packed, train_cuts=name, prompt_split="pause", max_prompt_seconds=1.5, batch_size=2)
        module.setup("fit")
        loaders.append(module.train_dataloader())
    assert loaders[0].planned.checksum() == loaders[1].planned.checksum()
    for _ in range(2):
        batches = list(zip(*loaders, strict=True))
        assert sum(len(batch) for batch, _ in batches) == 9 and all(same(*pair) for pair in batches)


def test_packed_and_other_corpora_mix(packed):
    module = data_module(packed, train_cuts=["packed.arrow", "cuts.jsonl.gz"], train_shares=[1.0, 1.0])
    module.setup("fit")
    assert sum(len(batch) for batch in module.train_dataloader()) == 18
    assert sum(u.member is None for u in module.manifests["train"]) == 9


def test_a_packed_corpus_can_be_moved(packed, tmp_path):
    (tmp_path / "moved").mkdir()
    for name in ("packed", "packed.arrow"):
        (packed / name).rename(tmp_path / "moved" / name)
    module = data_module(tmp_path / "moved", train_cuts="packed.arrow", val_cuts=None, val_share=0.34, test_cuts=None)
    module.setup("fit")
    assert sum(len(batch) for batch in module.train_dataloader()) > 0


DAMAGE = {
    "gone": (lambda path, _: path.unlink(), "no such file"),
    "truncated": (lambda path, content: path.write_bytes(content[:5000]), "truncated: ends at byte 5000, before"),
    "zeroed": (lambda path, content: path.write_bytes(bytes(len(content))), "unreadable audio: "),
    "shifted": (lambda path, content: path.write_bytes(bytes(512) + content), "unreadable audio: "),
    "a folder": (lambda path, _: (path.unlink(), path.mkdir()), "no such file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_one_line(packed, damage):
    do, message = DAMAGE[damage]
    shard = packed / "packed/recording.000001.tar"
    do(shard, shard.read_bytes())
    dataset = UtteranceDataset(Manifest.open(packed / "packed.arrow", packed), RATE, PromptSplit("fixed", 1, 1, 0.1, 0))
    items = dataset.__getitems__([(index, 0) for index in range(9)])
    assert [bool(item.problem) for item in items] == [False] * 4 + [True] * 4 + [False]
    for item in items[4:8]:
        assert item.problem.startswith(f"{shard}: {message}") and len(item.problem.splitlines()) == 1
        assert " object at " not in item.problem
    module = data_module(packed, train_cuts="packed.arrow")
    module.setup("fit")
    with pytest.raises(UserError, match=r"book_0000_\d: .*recording\.000001\.tar: "):
        for batch in module.train_dataloader():
            module.on_after_batch_transfer(batch, 0)


@pytest.mark.parametrize("member", [{"offset_bytes": -1, "size_bytes": 9}, {"offset_bytes": 0, "size_bytes": 0}, None])
def test_an_impossible_place_is_named(packed, member):
    table = Manifest.open(packed / "packed.arrow", packed).table
    members = table["member"].to_pylist()
    members[2] = member
    with pa.ipc.new_file(str(packed / "bad.arrow"), table.schema) as writer:
        writer.write_table(table.set_column(7, table.field(7), pa.array(members, table.field(7).type)))
    with pytest.raises(UserError, match=r"bad\.arrow: damaged: utterance 2, small/s0/book/book_0000_2 .* at byte"):
        Manifest.open(packed / "bad.arrow", packed)


@pytest.mark.parametrize(
    ("out", "manifest", "message"),
    [
        ("made/train", "made/train.arrow", "made/train.arrow: exists"),
        ("packed", "made/train.arrow", "packed: exists"),
        ("again", "packed.arrow", "--manifest: .*packed.arrow: is packed already"),
        ("again.jsonl", "packed.arrow", "--manifest: .*packed.arrow: is packed already"),
    ],
)
def test_nothing_is_written_over_or_packed_twice(packed, capsys, out, manifest, message):
    before = {path: path.stat().st_mtime_ns for path in packed.rglob("*")}
    with pytest.raises(SystemExit) as caught:
        export(packed, packed / out, manifest)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and len(error.splitlines()) == 1
    assert all(part in error for part in message.split(".*")), error
    assert {path: path.stat().st_mtime_ns for path in packed.rglob("*")} == before
