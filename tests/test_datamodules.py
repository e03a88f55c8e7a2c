import gzip
import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules import LibriLightDataModule
from datamodules.cuts import read_cuts
from datamodules.librilight import tokens_per_byte
from datamodules.loading import Collate, Item, PromptSplit, ResumableLoader, UtteranceDataset
from datamodules.manifest import Manifest, Utterance, concatenate, split_by_speaker
from datamodules.sampling import BatchLimits, PlannedBatchSampler
from datamodules.sources import read_folders
from lit_spectron.audio_files import read_audio
from lit_spectron.cli import main
from lit_spectron.errors import UserError
from lit_spectron.llms.tokenizer import Tokenizer
from lit_spectron.types import SpeechBatch

RATE, PREFIX = 16000, "download/librilight"


def fixed(seconds: float) -> PromptSplit:
    return PromptSplit("fixed", seconds, seconds, 0.1, 0)


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


def test_a_byte_order_mark_is_no_damage(corpus):
    (corpus / "marked.jsonl").write_text("\n".join(cut_lines(corpus)), encoding="utf-8-sig")
    assert len(read_cuts(corpus / "marked.jsonl", corpus, PREFIX, 0)) == 9


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


def test_a_manifest_is_what_it_was_made_from(corpus):
    utterances = read_cuts(corpus / "cuts.jsonl.gz", Path(), PREFIX, 0)
    utterances[3] = replace(utterances[3], words=None, text="größe")
    manifest = Manifest.from_utterances(utterances, corpus)
    whole = [replace(u, path=corpus / u.path) for u in utterances]
    assert list(manifest) == whole and manifest[-1] == whole[-1] and list(manifest[2:4]) == whole[2:4]
    assert manifest.numbers("duration_seconds").tolist() == [2.0] * 9
    assert manifest.text_bytes().tolist() == [len(u.text.encode()) for u in utterances]
    part = manifest.select(np.array([7, 2])).select(np.array([False, True]))
    assert list(part) == [whole[2]] and part.numbers("start_seconds").tolist() == [4.0] and part.speakers() == {"s0"}
    both = concatenate([manifest.select(np.arange(9) > 6), part])
    assert list(both) == [*whole[7:], whole[2]] and both.speakers() == {"s0", "s2"}
    with pytest.raises(IndexError):
        manifest[9]


def test_damaged_tables_are_named(corpus):
    for name, content in (("no.arrow", None), ("text.arrow", b"no table"), ("empty.arrow", b"")):
        if content is not None:
            (corpus / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            Manifest.open(corpus / name, corpus)


def test_splitting_by_speaker(corpus):
    utterances = read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 0)
    (parts,) = split_by_speaker([Manifest.from_utterances(utterances)], 0.34, 0.34)
    speakers = [{u.speaker for u in part} for part in parts]
    assert [len(s) for s in speakers] == [1, 1, 1] and set.union(*speakers) == {"s0", "s1", "s2"}
    assert sum(map(len, parts)) == 9
    (again,) = split_by_speaker([Manifest.from_utterances(utterances[::-1])], 0.34, 0.34)
    assert [{u.speaker for u in part} for part in again] == speakers
    (parts,) = split_by_speaker([Manifest.from_utterances(utterances)], 0.0, 0.34)
    assert [len(part) for part in parts] == [6, 0, 3]


def test_a_speaker_of_two_corpora_is_in_one_split():
    def corpus_of(*speakers: str) -> Manifest:
        return Manifest.from_utterances([Utterance(s, Path("x"), 0.0, 1.0, s, "") for s in speakers])

    names = [f"reader{i}" for i in range(40)]
    first, second = split_by_speaker([corpus_of(*names[:25]), corpus_of(*names[15:])], 0.2, 0.2)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not (first[a].speakers() | second[a].speakers()) & (first[b].speakers() | second[b].speakers())


def test_collation(corpus):
    utterances = read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 0)
    utterances[1] = type(utterances[1])(**{**vars(utterances[1]), "duration_seconds": 1.5, "text": "Hé"})
    broken = type(utterances[2])(**{**vars(utterances[2]), "path": corpus / "gone.flac"})
    manifest, tokenizer = Manifest.from_utterances([*utterances[:2], broken]), Tokenizer()
    dataset = UtteranceDataset(manifest, RATE, fixed(0.95))
    batch = Collate("val", tokenizer, RATE)([dataset[i, 0] for i in range(3)])
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
    assert batch.skipped == [(broken.id, f"{corpus / 'gone.flac'}: no such file")]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_decoded_in_place_equals_a_padded_one(corpus, workers):
    """Also without its longest, which can't be read, from the cache, and without any."""
    utterances = read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 0)[:4]
    utterances[0] = replace(utterances[0], path=corpus / "gone.flac", duration_seconds=3.0)
    utterances[2] = replace(utterances[2], duration_seconds=1.5)
    dataset = UtteranceDataset(Manifest.from_utterances(utterances), RATE, fixed(1.0), cache_bytes=4 * 2 * RATE)
    collate = Collate("train", Tokenizer(), RATE)
    expected = collate([dataset[i, 0] for i in range(4)])
    assert len(dataset.cache) == 1 and len(expected.skipped) == 1
    loader = ResumableLoader(dataset, PlannedBatchSampler(np.ones(4), BatchLimits(4), False), collate, workers)
    for batch in [*loader, *loader]:
        assert torch.equal(batch.waveform, expected.waveform) and batch.waveform.is_contiguous()
        assert type(batch) is SpeechBatch
        for field in fields(SpeechBatch):
            value, wanted = getattr(batch, field.name), getattr(expected, field.name)
            if not isinstance(wanted, torch.Tensor):
                assert value == wanted, field.name
                continue
            assert torch.equal(value, wanted) and value.dtype == wanted.dtype, field.name
            assert value.is_shared() == (workers > 0 and field.name == "waveform"), field.name
    idle = PlannedBatchSampler(np.ones(1), BatchLimits(4), False, rank=1, world_size=2)
    assert [len(batch) for batch in ResumableLoader(dataset, idle, collate, workers)] == [0]


def test_a_batch_of_nothing(corpus):
    utterance = read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 0)[0]
    batch = Collate("train", Tokenizer(), RATE)([Item(utterance, None, problem="a reason")])
    assert len(batch) == 0 and batch.lengths.tolist() == [] and len(batch.skipped) == 1


def with_model(module: LibriLightDataModule) -> LibriLightDataModule:
    """As a trainer would: the tokenizer and the rate come from the model."""
    audio, llm = SimpleNamespace(sample_rate_hz=RATE), SimpleNamespace(tokenizer=Tokenizer())
    model = SimpleNamespace(llm=llm, audio=audio, positions_per_second=(10.0, 20.0))
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(model=model), global_rank=0, world_size=1)
    return module


def data_module(corpus: Path, **changes) -> LibriLightDataModule:
    settings = {
        "train_cuts": "cuts.jsonl.gz",
        "val_cuts": "copy.jsonl.gz",
        "test_cuts": "copy.jsonl.gz",
        "prompt_seconds": 1.0,
        "batch_size": 4,
    }
    return with_model(LibriLightDataModule(str(corpus), **{**settings, **changes}))


def test_data_module(corpus):
    module = data_module(corpus, lower_case=True)
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert sorted(name for b in batches for name in b.ids) == sorted(u.id for u in module.manifests["train"])
    assert {b.split for b in batches} == {"train"} and [len(b) for b in module.val_dataloader()] == [4, 4, 1]
    assert batches[0].text[0].startswith("one, two, three")


def test_splits_without_manifests_take_their_own_speakers(corpus):
    module = data_module(corpus, val_cuts=None, test_cuts=None, val_share=0.34, test_share=0.34)
    module.setup("fit")
    module.setup("test")
    speakers = [{u.speaker for u in module.manifests[s]} for s in ("train", "val", "test")]
    assert [len(s) for s in speakers] == [1, 1, 1] and len(set.union(*speakers)) == 3


def test_a_list_of_ids_chooses_and_orders_what_is_tested(corpus):
    ids = [f"small/s{n}/book/book_0000_{i}" for n, i in ((2, 1), (0, 0), (1, 2))]
    (corpus / "ids.txt").write_text("\n\n".join(ids) + "\r\n")
    module = data_module(corpus, test_ids=str(corpus / "ids.txt"))
    module.setup("test")
    module.setup("fit")
    assert [name for batch in module.test_dataloader() for name in batch.ids] == ids
    assert len(module.manifests["val"]) == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "ids.txt: can't be read"),
        (b"\xff", "ids.txt: can't be read"),
        (b"\n", "the file is empty"),
        (b"small/s0/book/book_0000_0\nabsent\nother", "no absent and 1 more"),
        (b"small/s0/book/book_0000_0\n" * 2, "holds small/s0/book/book_0000_0 more than once"),
    ],
)
def test_bad_lists_of_ids_are_named(corpus, content, message):
    if content is not None:
        (corpus / "ids.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"data\.test_ids: .*{message}"):
        data_module(corpus, test_ids=str(corpus / "ids.txt")).setup("test")


def test_another_speakers_continuation(corpus):
    """The next one in the manifest, and from its beginning again; one that can't be read is passed over."""
    module = data_module(corpus)
    module.setup("test")
    dataset = UtteranceDataset(module.manifests["test"], RATE, module.prompt)
    ids = [utterance.id for utterance in module.manifests["test"]]
    for place, expected in ((0, 3), (2, 3), (5, 6), (7, 0)):
        found = module.continuation_by_another("test", ids[place], RATE)
        assert np.array_equal(found, dataset[(expected, 0)].waveform[RATE:].numpy()) and len(found) == RATE
    (corpus / "small/s1/book/book_0000.wav").write_bytes(b"no sound")
    found = module.continuation_by_another("test", ids[0], RATE)
    assert np.array_equal(found, dataset[(6, 0)].waveform[RATE:].numpy())
    (corpus / "ids.txt").write_text("\n".join(ids[:3]))
    alone = data_module(corpus, test_ids=str(corpus / "ids.txt"))
    alone.setup("test")
    with pytest.raises(UserError, match="no utterance by another speaker than that of small/s0"):
        alone.continuation_by_another("test", ids[0], RATE)


def test_predict_needs_no_text(corpus):
    module = data_module(corpus, train_cuts=None, val_cuts=None, test_cuts=None)
    module.setup("predict")
    assert len(module.manifests["predict"]) == 6
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
    assert len(module.manifests["train"]) == 8
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


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_seconds": 0.05},
        {"batch_size": 0},
        {"batch_size": None},
        {"batch_seconds": 10.0},
        {"batch_tokens": -1},
        {"max_prompt_seconds": 2.0},
        {"max_prompt_seconds": 0.5, "prompt_split": "pause"},
        {"train_shares": [1.0, 2.0]},
    ],
)
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
    manifest = Manifest.from_utterances(read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 0))
    plain = [UtteranceDataset(manifest, RATE, fixed(1.0))[i, 0].waveform for i in range(3)]
    cached = UtteranceDataset(manifest, RATE, fixed(1.0), cache_bytes=2 * plain[0].nbytes)
    assert all(torch.equal(cached[i, 0].waveform, plain[i]) for i in range(3)) and set(cached.cache) == {0, 1}
    reads = []
    monkeypatch.setattr("datamodules.loading.read_audio", lambda path, *_: reads.append(path) or plain[2].numpy())
    assert all(torch.equal(cached[i, 0].waveform, plain[i]) for i in range(3)) and len(reads) == 1


def test_where_prompts_end(corpus):
    (utterance, *_) = read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 0)
    utterance = replace(utterance, duration_seconds=6.0)
    waveform = np.ones(6 * RATE, dtype=np.float32)
    waveform[round(2.9 * RATE) : round(3.1 * RATE)] = 0.01
    waveform[round(4.9 * RATE) : round(5.1 * RATE)] = 0.0
    seconds = {
        kind: [PromptSplit(kind, 2.0, 5.0, 1.5, 0).seconds(utterance, waveform, RATE, epoch) for epoch in range(50)]
        for kind in ("fixed", "random", "pause")
    }
    assert set(seconds["fixed"]) == {2.0}
    (pause,) = set(seconds["pause"])
    assert pause == pytest.approx(3.0, abs=0.1)  # the quieter place leaves too short a continuation
    random = seconds["random"]
    assert len(set(random)) == 50 and 2.0 <= min(random) < 2.3 and 4.2 < max(random) <= 4.5
    again = PromptSplit("random", 2.0, 5.0, 1.5, 0)
    assert [again.seconds(utterance, waveform, RATE, epoch) for epoch in range(50)] == random
    other = PromptSplit("random", 2.0, 5.0, 1.5, 1)
    assert other.seconds(utterance, waveform, RATE, 0) != random[0]
    short = replace(utterance, duration_seconds=3.5)
    assert {again.seconds(short, waveform, RATE, epoch) for epoch in range(5)} == {2.0}


def test_batches_under_a_budget(corpus):
    module = data_module(corpus, batch_size=None, batch_seconds=30.0, max_seconds=5.0)
    module.setup("fit")
    assert [len(batch) for batch in module.train_dataloader()] == [9]
    module = data_module(corpus, batch_size=None, batch_tokens=200)
    module.setup("fit")
    text, speech = 18 + 2, 1.0 * 10 + 1.0 * 20
    assert sorted(len(b) for b in module.train_dataloader()) == [1, *[200 // round(text + speech)] * 2]
    with pytest.raises(UserError, match=r"batch_tokens: 40 .*_\d takes 50"):
        module = data_module(corpus, batch_size=None, batch_tokens=40)
        module.setup("fit")
        module.train_dataloader()


def test_tokens_a_byte():
    utterances = [Utterance(f"{i}", Path("x"), 0, 1, "s", "word " * (i + 1)) for i in range(50)]
    assert tokens_per_byte(Manifest.from_utterances(utterances), str.split) == pytest.approx(0.2)


def test_a_mixture_of_corpora(corpus):
    (corpus / "two.jsonl").write_text("\n".join(line.replace("book_0000_", "two_") for line in cut_lines(corpus)[:3]))
    module = data_module(corpus, train_cuts=["cuts.jsonl.gz", "two.jsonl"], train_shares=[1.0, 1.0], batch_size=1)
    module.setup("fit")
    ids = [name for batch in module.train_dataloader() for name in batch.ids]
    assert len(ids) == 6 and sum("two_" in name for name in ids) == 3
    both = data_module(corpus, train_cuts=["cuts.jsonl.gz", "two.jsonl"])
    both.setup("fit")
    assert sum(len(batch) for batch in both.train_dataloader()) == 12


def test_a_prepared_manifest_is_read_as_the_cuts_are(corpus):
    prepare_options = ["--layout", "cuts", "--cuts", "cuts.jsonl.gz", "--min_seconds", "1", "--val_share", "0.34"]
    main(["prepare", "librilight", "--root", str(corpus), "--out", str(corpus / "made"), *prepare_options])
    module = data_module(corpus, train_cuts="made/train.arrow", val_cuts="made/val.arrow", test_cuts=None)
    module.setup("fit")
    assert {len(module.manifests[s]) for s in ("train", "val")} == {6, 3}
    cuts = {u.id: u for u in read_cuts(corpus / "cuts.jsonl.gz", corpus, PREFIX, 0)}
    assert all(cuts[u.id] == u for split in ("train", "val") for u in module.manifests[split])
    with pytest.raises(UserError, match=r"data\.root: none of .*train\.arrow"):
        data_module(corpus / "made", train_cuts="train.arrow", val_cuts="val.arrow").setup("fit")
    (corpus / "small/s0/book/book_0000.flac").unlink()
    lost = data_module(corpus, train_cuts="made/train.arrow", val_cuts="made/val.arrow", max_skipped_share=0.1)
    lost.setup("fit")
    with pytest.raises(UserError, match=r"book_0000_\d: .*no such file"):
        for loader in (lost.train_dataloader(), lost.val_dataloader()):
            for batch in loader:
                lost.on_after_batch_transfer(batch, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_cuts": "cuts.jsonl.gz"}, r"data\.val_cuts: cuts\.jsonl\.gz is in data\.train_cuts already"),
        ({"test_cuts": "small/../cuts.jsonl.gz"}, r"data\.test_cuts: small/\.\./cuts\.jsonl\.gz is"),
        ({"train_cuts": ["cuts.jsonl.gz", "link.jsonl.gz"]}, r"data\.train_cuts: link\.jsonl\.gz is"),
    ],
)
def test_no_manifest_is_taken_twice(corpus, change, message):
    (corpus / "link.jsonl.gz").symlink_to("cuts.jsonl.gz")
    with pytest.raises(UserError, match=message):
        data_module(corpus, **change)
    data_module(corpus, val_cuts="copy.jsonl.gz", test_cuts="copy.jsonl.gz")


def test_a_corpus_of_which_nothing_can_be_used_is_named(corpus):
    cuts = [json.loads(line) for line in cut_lines(corpus)]
    silent = [{**cut, "id": f"{cut['id']}_", "supervisions": [{"speaker": "s", "text": None}]} for cut in cuts]
    (corpus / "silent.jsonl").write_text("\n".join(map(json.dumps, silent)))
    module = data_module(corpus, train_cuts=["cuts.jsonl.gz", "silent.jsonl"])
    with pytest.raises(UserError, match=r"silent\.jsonl: train can use none of 9 utterances: empty transcript"):
        module.setup("fit")


def test_reasons_are_counted_by_kind(corpus):
    """What differs from file to file is told of the first."""
    module = data_module(corpus, max_skipped_share=1.0)
    module.setup("fit")
    reasons = [
        "b.flac: ends at 5.900 s, before 6.000 s",
        "c.flac: ends at 4.100 s, before 6.000 s",
        "d.flac: unreadable audio: Error opening 'd.flac': Format not recognised.",
        "e.flac: unreadable audio: Error opening 'e.flac': Format not recognised.",
    ]
    batch = SimpleNamespace(split="train", skipped=[(str(i), reason) for i, reason in enumerate(reasons)])
    kinds = r"2 x ends at … s, before … s, 2 x unreadable audio"
    with pytest.warns(UserWarning, match=rf"4 of 9 utterances \({kinds}\); the first new one is 3: e\.flac"):
        module.on_after_batch_transfer(batch, 0)
