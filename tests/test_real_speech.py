"""Real LibriVox speech in Libri-Light's layout goes through the same code as the embedded corpus."""

from pathlib import Path

import pytest

from datamodules import LibriLightDataModule
from datamodules.batching import Collate, UtteranceDataset
from datamodules.manifest import read_cuts, read_folders
from lit_spectron.llms.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2] / "shared" / "data" / "librilight_mini"
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
    speakers = [{u.speaker for u in data.utterances[split]} for split in ("train", "val", "test")]
    assert all(speakers) and not (speakers[0] & speakers[1] or speakers[0] & speakers[2] or speakers[1] & speakers[2])


def test_a_batch_of_real_speech():
    utterances = [u for u in read_cuts(ROOT / CUTS, ROOT, "download/librilight", 0) if u.duration_seconds > 4][:3]
    dataset = UtteranceDataset(utterances, 16000)
    batch = Collate("train", Tokenizer(), 16000, 3.0)([dataset[i] for i in range(3)])
    assert not batch.skipped and batch.prompt_text == [None] * 3
    assert batch.lengths.tolist() == [round(u.duration_seconds * 16000) for u in utterances]
    assert (batch.waveform.abs().amax(1) > 0.05).all()
