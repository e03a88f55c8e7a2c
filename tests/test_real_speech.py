"""Real LibriVox speech in Libri-Light's layout goes through the same code as the embedded corpus."""

import json
from pathlib import Path

import pytest

from datamodules import LibriLightDataModule
from datamodules.cuts import read_cuts
from datamodules.loading import Collate, PromptSplit, UtteranceDataset
from datamodules.manifest import Manifest
from datamodules.sampling import BatchLimits, PlannedBatchSampler
from datamodules.sources import read_folders
from lit_spectron.cli import main
from lit_spectron.llms.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2] / "shared" / "data" / "librilight_mini"
WHISPER = Path(__file__).parents[2] / "shared" / "models" / "whisper-tiny.en"
CUTS = "libriheavy_cuts_small.jsonl.gz"
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no real speech at {ROOT}")


def test_cuts_and_folders_name_the_same_files():
    cuts = read_cuts(ROOT / CUTS, ROOT, "download/librilight", 0)
    assert len(cuts) == 251 and all(u.path.is_file() and u.text for u in cuts)
    assert {u.path for u in cuts} == {u.path for u in read_folders(ROOT)}


def test_splits_by_speaker_count_what_is_too_short():
    with pytest.warns(UserWarning, match="shorter than prompt"):
        data = LibriLightDataModule(str(ROOT), CUTS, max_skipped_share=0.25)
        data.setup("fit")
        data.setup("test")
    speakers = [{u.speaker for u in data.manifests[split]} for split in ("train", "val", "test")]
    assert all(speakers) and not (speakers[0] & speakers[1] or speakers[0] & speakers[2] or speakers[1] & speakers[2])


def test_a_batch_of_real_speech():
    utterances = [u for u in read_cuts(ROOT / CUTS, ROOT, "download/librilight", 0) if u.duration_seconds > 4][:3]
    dataset = UtteranceDataset(Manifest.from_utterances(utterances), 16000, PromptSplit("fixed", 3.0, 3.0, 0.5, 0))
    batch = Collate("train", Tokenizer(), 16000)([dataset[i, 0] for i in range(3)])
    assert not batch.skipped and batch.prompt_text == [None] * 3
    assert batch.lengths.tolist() == [round(u.duration_seconds * 16000) for u in utterances]
    assert (batch.waveform.abs().amax(1) > 0.05).all()


def test_little_is_padded():
    """At a budget that fits SmolLM2-135M on a laptop: 160 s, or 16 utterances of 10 s."""
    manifest = Manifest.from_utterances(read_cuts(ROOT / CUTS, ROOT, "download/librilight", 0))
    seconds = manifest.numbers("duration_seconds")
    batches = list(PlannedBatchSampler(seconds, BatchLimits(None, 160.0), shuffle=True))
    padded = sum(len(batch) * seconds[batch].max() for batch in batches)
    assert 1 - seconds.sum() / padded < 0.1


def test_preparing_raw_folders(tmp_path):
    main(
        [
            "prepare",
            "librilight",
            "--root",
            str(ROOT),
            "--out",
            str(tmp_path),
            "--min_seconds",
            "1",
            "--val_share",
            "0.1",
            "--test_share",
            "0.1",
        ]
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["problems"] == 0 and sum(row["speakers"] for row in report["splits"].values()) == 251
    heard = sum(fate["seconds"] for fate in report["fates"].values())
    assert heard == pytest.approx(0.87 * 3600, rel=0.01)
    manifest = Manifest.open(tmp_path / "train.arrow", ROOT)
    assert all(1.0 <= s <= 20.0 for s in manifest.numbers("duration_seconds"))


@pytest.mark.slow
@pytest.mark.skipif(not WHISPER.is_dir(), reason=f"no recogniser at {WHISPER}")
def test_transcribing_while_preparing(tmp_path):
    """Whisper's transcripts of folders without text are those that the corpus's cuts have, since it made them."""
    root = tmp_path / "some"
    files = sorted(ROOT.rglob("*.flac"))[:6]
    for file in files:
        folder = root / file.parent.relative_to(ROOT)
        folder.mkdir(parents=True)
        for path in (file, file.with_suffix(".json")):
            (folder / path.name).symlink_to(path)
    out, shares = tmp_path / "out", ["--val_share", "0", "--test_share", "0"]
    options = ["--recognizer", str(WHISPER), "--word_times", "--max_gap_seconds", "30", "--max_seconds", "30"]
    main(["prepare", "librilight", "--root", str(root), "--out", str(out), *options, *shares])
    cuts = {u.path.relative_to(ROOT): u.text for u in read_cuts(ROOT / CUTS, ROOT, "download/librilight", 0)}
    heard = list(Manifest.open(out / "train.arrow", root))
    assert len(heard) >= 5
    for utterance in heard:
        reference, words = cuts[utterance.path.relative_to(root)].lower().split(), utterance.text.lower().split()
        assert len(set(words) & set(reference)) > 0.7 * len(set(reference))
        assert utterance.words and utterance.text_before(3.0) and utterance.text_before(1.0) != utterance.text
