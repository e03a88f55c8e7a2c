import gzip
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datamodules import LibriLightDataModule
from datamodules.batching import Collate, LengthBatchSampler, UtteranceDataset
from datamodules.manifest import read_cuts, read_folders, split_by_speaker
from lit_spectron.audio_files import read_audio
from lit_spectron.errors import UserError
from lit_spectron.llms.tokenizer import Tokenizer

RATE, PREFIX = 16000, "download/librilight"


def cut_lines(corpus: Path) -> list[str]:
    with gzip.open(corpus / "cuts.jsonl.gz", "rt") as file:
        return file.read().splitlines()


def test_cuts(corpus):
    first = read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 0)
    assert len(first) == 9 and all(u.path.is_file() and u.path.is_relative_to(corpus) for u in first)
    assert first[4].id == "small/s1/book/book_0000_1" and first[4].speaker == "s1"
    assert (first[4].start_seconds, first[4].duration_seconds) == (2.0, 2.0)
    assert first[4].path.suffix == ".wav" and first[3].text == "One, two, three 0."
    assert read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 1)[3].text == "ONE TWO THREE 0"
    assert [first[0].text_before(s) for s in (0.1, 0.4, 0.9, 1.0, 2.0)] == [
        "",
        "one",
        "one two",
        "one two",
        "one two three",
    ]


def test_cuts_without_word_times_and_plain_text(corpus):
    cut = json.loads(cut_lines(corpus)[0])
    cut["supervisions"][0] = {"speaker": "s0", "text": " Hello. "}
    (corpus / "plain.jsonl").write_text(json.dumps(cut) + "\n\n")
    (utterance,) = read_cuts(corpus / "plain.jsonl", corpus, PREFIX, 1)
    assert utterance.text == "Hello." and utterance.words is None and utterance.text_before(1.0) is None


def test_the_audio_prefix_stands_for_the_root(corpus):
    here = read_cuts(corpus / "cuts.jsonl.gz", Path("/elsewhere"), "download", 0)
    assert here[0].path == Path("/elsewhere/librilight/small/s0/book/book_0000.flac")


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"id": "x"}', '{"id": "x", "supervisions": []}', '{"id": "x", "supervisions": null}']
)
def test_a_malformed_line_is_named(corpus, line):
    lines = cut_lines(corpus)
    (corpus / "bad.jsonl").write_text("\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(UserError, match=r"bad\.jsonl:3") as caught:
        read_cuts(corpus / "bad.jsonl", corpus, PREFIX, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [("duration", "NaN"), ("start", "NaN"), ("start", "Infinity")])
def test_impossible_times_are_named(corpus, field, value):
    cut = {**json.loads(cut_lines(corpus)[0]), field: float(value)}
    (corpus / "bad.jsonl").write_text(json.dumps(cut))
    with pytest.raises(UserError, match=r"bad\.jsonl:1"):
        read_cuts(corpus / "bad.jsonl", corpus, PREFIX, 0)


def test_a_text_that_is_not_there_is_named(corpus):
    with pytest.raises(UserError, match=r"cuts\.jsonl\.gz:1"):
        read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 2)


def test_damaged_manifests_are_named(corpus):
    content = (corpus / "cuts.jsonl.gz").read_bytes()
    (corpus / "truncated.jsonl.gz").write_bytes(content[: len(content) // 2])
    (corpus / "plain.jsonl.gz").write_text("\n".join(cut_lines(corpus)))
    (corpus / "empty.jsonl").write_text("\n")
    (corpus / "twice.jsonl").write_text("\n".join(cut_lines(corpus)[:2] + cut_lines(corpus)[1:]))
    (corpus / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    for name in ("truncated.jsonl.gz", "plain.jsonl.gz", "empty.jsonl", "twice.jsonl", "latin.jsonl", "no.jsonl"):
        with pytest.raises(UserError, match=name.replace(".", r"\.")) as caught:
            read_cuts(corpus / name, corpus, PREFIX, 0)
        assert "\n" not in str(caught.value)


def test_raw_librilight(corpus):
    utterances = read_folders(corpus)
    assert len(utterances) == 6 and len({u.id for u in utterances}) == 6
    assert {u.speaker for u in utterances} == {"s0", "s1", "s2"}
    second = next(u for u in utterances if u.id == "small/s0/book/book_0000_1")
    assert (second.start_seconds, second.duration_seconds, second.text) == (2.5, 2.5, "")
    (corpus / "small/s1/book/book_0000.json").write_text('{"speaker": "s1"}')
    with pytest.raises(UserError, match=r"s1/book/book_0000\.json"):
        read_folders(corpus)
    (corpus / "nothing").mkdir()
    with pytest.raises(UserError, match="nothing"):
        read_folders(corpus / "nothing")


def test_splitting_by_speaker(corpus):
    utterances = read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 0)
    parts = split_by_speaker(utterances, 0.34, 0.34)
    speakers = [{u.speaker for u in part} for part in parts]
    assert [len(s) for s in speakers] == [1, 1, 1] and set.union(*speakers) == {"s0", "s1", "s2"}
    assert sum(map(len, parts)) == 9
    again = split_by_speaker(utterances[::-1], 0.34, 0.34)
    assert [{u.speaker for u in part} for part in again] == speakers
    assert [len(part) for part in split_by_speaker(utterances, 0.0, 0.34)] == [6, 0, 3]


def test_collation(corpus):
    utterances = read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 0)
    utterances[1] = type(utterances[1])(**{**vars(utterances[1]), "duration_seconds": 1.5, "text": "Hé"})
    broken = type(utterances[2])(**{**vars(utterances[2]), "path": corpus / "gone.flac"})
    dataset, tokenizer = UtteranceDataset([*utterances[:2], broken], RATE), Tokenizer()
    batch = Collate("val", tokenizer, RATE, 0.95)([dataset[i] for i in range(3)])
    assert batch.split == "val" and len(batch) == 2
    assert batch.waveform.shape == (2, 32000) and batch.waveform.dtype == torch.float32
    assert batch.lengths.tolist() == [32000, 24000] and batch.prompt_samples.tolist() == [15200, 15200]
    expected = read_audio(utterances[1].path, RATE, 2.0, 1.5)
    assert torch.equal(batch.waveform[1, :24000], torch.from_numpy(expected)) and not batch.waveform[1, 24000:].any()
    assert batch.tokens[0].tolist() == tokenizer.encode("One, two, three 0.")
    assert batch.tokens[1].tolist() == tokenizer.encode("Hé") + [tokenizer.pad_id] * 15
    assert batch.token_lengths.tolist() == [18, 3]
    assert batch.ids == [u.id for u in utterances[:2]] and batch.speakers == ["s0", "s0"]
    assert batch.text == ["One, two, three 0.", "Hé"] and batch.prompt_text == ["one two", "one two"]
    assert batch.skipped == [f"{broken.id}: {corpus / 'gone.flac'}: no such file"]


def test_a_batch_of_nothing(corpus):
    utterance = read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 0)[0]
    batch = Collate("train", Tokenizer(), RATE, 1.0)([(utterance, "a reason")])
    assert len(batch) == 0 and batch.lengths.tolist() == [] and len(batch.skipped) == 1


DURATIONS = [1.0 + (i * 7 % 23) / 10 for i in range(53)]


def test_sampler_gives_every_utterance_once_an_epoch():
    for shuffle in (True, False):
        sampler = LengthBatchSampler(DURATIONS, 4, shuffle)
        assert sorted(i for batch in sampler for i in batch) == list(range(53))
        assert len(list(sampler)) == len(sampler) == 14
    assert [i for batch in LengthBatchSampler(DURATIONS, 4, False) for i in batch] == list(range(53))


def test_sampler_shuffles_each_epoch_anew_from_the_seed():
    sampler, same, other = (LengthBatchSampler(DURATIONS, 4, True, seed) for seed in (0, 0, 1))
    first = list(sampler)
    assert first == list(same) != list(other)
    sampler.sampler.set_epoch(1)
    assert first != list(sampler) and {frozenset(b) for b in first} != {frozenset(b) for b in sampler}
    sampler.sampler.set_epoch(0)
    assert first == list(sampler)


def test_sampler_pads_little():
    def padding(sampler) -> float:
        return sum(max(DURATIONS[i] for i in b) * len(b) - sum(DURATIONS[i] for i in b) for b in sampler)

    assert padding(LengthBatchSampler(DURATIONS, 4, True)) < 0.5 * padding(LengthBatchSampler(DURATIONS, 4, False))


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_an_epoch(shuffle):
    samplers = [LengthBatchSampler(DURATIONS, 4, shuffle, 0, rank, 4) for rank in range(4)]
    shares = [list(s) for s in samplers]
    assert [len(s) for s in shares] == [len(s) for s in samplers]
    counts = Counter(i for share in shares for batch in share for i in batch)
    assert max(counts.values()) == 1
    if shuffle:
        assert {len(s) for s in shares} == {14 // 4}
    else:
        assert len(counts) == 53


def with_model(module: LibriLightDataModule) -> LibriLightDataModule:
    """As a trainer would: the tokenizer and the rate come from the model."""
    model = SimpleNamespace(llm=SimpleNamespace(tokenizer=Tokenizer()), audio=SimpleNamespace(sample_rate_hz=RATE))
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(model=model), global_rank=0, world_size=1)
    return module


def data_module(corpus: Path, **changes) -> LibriLightDataModule:
    settings = {
        "train_cuts": "cuts.jsonl.gz",
        "val_cuts": "cuts.jsonl.gz",
        "test_cuts": "cuts.jsonl.gz",
        "prompt_seconds": 1.0,
        "batch_size": 4,
    }
    return with_model(LibriLightDataModule(str(corpus), **{**settings, **changes}))


def test_data_module(corpus):
    module = data_module(corpus, lower_case=True)
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert sorted(name for b in batches for name in b.ids) == sorted(u.id for u in module.utterances["train"])
    assert {b.split for b in batches} == {"train"} and [len(b) for b in module.val_dataloader()] == [4, 4, 1]
    assert batches[0].text[0].startswith("one, two, three")


def test_splits_without_manifests_take_their_own_speakers(corpus):
    module = data_module(corpus, val_cuts=None, test_cuts=None, val_share=0.34, test_share=0.34)
    module.setup("fit")
    module.setup("test")
    speakers = [{u.speaker for u in module.utterances[s]} for s in ("train", "val", "test")]
    assert [len(s) for s in speakers] == [1, 1, 1] and len(set.union(*speakers)) == 3


def test_predict_needs_no_text(corpus):
    module = data_module(corpus, train_cuts=None, val_cuts=None, test_cuts=None)
    module.setup("predict")
    assert len(module.utterances["predict"]) == 6
    with pytest.raises(UserError, match="train_cuts"):
        module.setup("fit")


def spoil(corpus: Path, **changes) -> None:
    """Changes the second cut."""
    lines = cut_lines(corpus)
    cut = {**json.loads(lines[1]), **changes}
    (corpus / "spoilt.jsonl").write_text("\n".join([lines[0], json.dumps(cut), *lines[2:]]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"duration": 1.2}, "shorter"),
        ({"duration": 60.0}, "max_seconds"),
        ({"recording": {"sources": [{"source": "gone.flac"}]}}, "no such"),
        ({"supervisions": [{"speaker": "s0", "text": " "}]}, "empty transcript"),
    ],
)
def test_unusable_utterances_are_counted_and_named(corpus, changes, reason):
    spoil(corpus, **changes)
    module = data_module(corpus, train_cuts="spoilt.jsonl", max_skipped_share=0.2)
    with pytest.warns(UserWarning, match=f"skipped 1 of 9.*{reason}.*book_0000_1"):
        module.setup("fit")
    assert len(module.utterances["train"]) == 8
    with pytest.raises(UserError, match=f"book_0000_1: .*{reason}.*max_skipped_share"):
        data_module(corpus, train_cuts="spoilt.jsonl", max_skipped_share=0.1).setup("fit")


def test_unreadable_audio_is_counted_once_it_is_read(corpus):
    path = corpus / "small/s0/book/book_0000.flac"
    path.write_bytes(path.read_bytes()[:2000])
    module = data_module(corpus, max_skipped_share=0.4)
    module.setup("fit")
    with pytest.warns(UserWarning, match="train: skipped"):
        batches = [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]
    assert sum(len(b) for b in batches) == 6 and sum(len(b.skipped) for b in batches) == 3
    for batch in module.train_dataloader():  # the same ones again are no new ones
        module.on_after_batch_transfer(batch, 0)
    strict = data_module(corpus, max_skipped_share=0.2)
    strict.setup("fit")
    with pytest.raises(UserError, match=r"small/s0/book/book_0000_\d: .*book_0000\.flac"):
        for batch in strict.train_dataloader():
            strict.on_after_batch_transfer(batch, 0)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        data_module(tmp_path / "nowhere").setup("fit")


@pytest.mark.parametrize("change", [{"prompt_seconds": 0.05}, {"batch_size": 0}])
def test_bad_settings_are_refused(corpus, change):
    with pytest.raises(UserError, match=next(iter(change))):
        data_module(corpus, **change)


def test_the_committed_corpus_holds_its_promises(repository):
    root = repository / "data/sequences"
    splits = {
        path.name.removeprefix("libriheavy_cuts_").removesuffix(".jsonl.gz"): read_cuts(path, root, PREFIX, 1)
        for path in root.glob("*.jsonl.gz")
    }
    assert splits.keys() >= {"train", "validation", "test", "validation_unseen_voice", "test_unseen_voice"}
    assert all(u.path.is_file() and u.text and u.words for part in splits.values() for u in part)
    texts = {name: {u.text for u in part} for name, part in splits.items()}
    assert not texts["train"] & texts["validation"] and not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]
    voices = {name: {u.speaker for u in part} for name, part in splits.items()}
    assert voices["validation"] <= voices["train"] and voices["test"] <= voices["train"]
    for name in ("validation_unseen_voice", "test_unseen_voice"):
        assert not voices[name] & voices["train"]
    assert len({u.id for part in splits.values() for u in part}) == sum(map(len, splits.values()))
    for part in splits.values():  # the call is inside the first 1.5 s, the answer is not
        assert all(len(u.text_before(1.5).split()) == 2 for u in part)
    for utterance in (part[0] for part in splits.values()):
        samples = read_audio(utterance.path, RATE, utterance.start_seconds, utterance.duration_seconds)
        assert abs(samples).max() > 0.05


def test_the_cache_holds_what_fits_and_changes_nothing(corpus, monkeypatch):
    utterances = read_cuts(corpus / "cuts.jsonl.gz", corpus, "download/librilight", 0)
    plain = [UtteranceDataset(utterances, 16000)[i][1] for i in range(3)]
    cached = UtteranceDataset(utterances, 16000, cache_bytes=2 * plain[0].nbytes)
    assert all(torch.equal(cached[i][1], plain[i]) for i in range(3)) and set(cached.cache) == {0, 1}
    reads = []
    monkeypatch.setattr("datamodules.batching.read_audio", lambda path, *_: reads.append(path) or plain[2].numpy())
    assert all(torch.equal(cached[i][1], plain[i]) for i in range(3)) and len(reads) == 1
