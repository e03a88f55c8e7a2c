"""lhotse's Shar: utterances and their audio in tar files, and a manifest that points into these."""

import tarfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from datamodules.cuts import cut_of
from datamodules.manifest import MEMBER, ROWS_PER_BATCH, Manifest, Utterance
from lit_spectron.audio_files import read_audio
from lit_spectron.errors import UserError
from lit_spectron.files import make_folder


def write_shar(folder: Path, manifest: Manifest, shard_size: int) -> Path:
    """Packs a manifest's utterances and their audio into lhotse's Shar, and writes another manifest of them: the same
    rows in the same order, each with the place of its audio in a tar file.

    Args:
        folder: Folder of the shards, which is made.
        manifest: All rows of a table.
        shard_size: Utterances in a shard.

    Returns:
        The new manifest, ``FOLDER.arrow``; its paths are relative to the folder that both lie in.

    Raises:
        UserError: lhotse is not installed, ``folder`` or the new manifest is there already, or an audio file is missing
            or unreadable; then neither is left.
    """
    packed = folder.with_name(f"{folder.name}.arrow")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: exists, and is no empty folder")
    if packed.exists():
        raise UserError(f"{packed}: exists, and the manifest of the packed utterances is to be written there")
    make_folder(folder.parent)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        partial = Path(temporary) / folder.name
        partial.mkdir()
        write_shards(partial, manifest, shard_size)
        table = packed_table(manifest.table.unify_dictionaries(), sorted(partial.glob("recording.*.tar")))
        with pa.ipc.new_file(f"{partial}.arrow", table.schema) as file:
            file.write_table(table, max_chunksize=ROWS_PER_BATCH)
        partial.replace(folder)
        Path(f"{partial}.arrow").replace(packed)
    return packed


def write_shards(folder: Path, utterances: Iterable[Utterance], shard_size: int) -> None:
    """Cuts and tar files of their audio, as FLAC of 16 bits.

    Raises:
        UserError: lhotse is not installed, or an audio file is missing or unreadable.
    """
    try:
        from lhotse import MonoCut
        from lhotse.shar import AudioTarWriter, JsonlShardWriter
    except ImportError as error:
        raise UserError('--out: Shar needs lhotse; pip install -e ".[lhotse]" -c constraints.txt') from error
    with (
        AudioTarWriter(f"{folder}/recording.%06d.tar", shard_size, "flac") as audio,
        JsonlShardWriter(f"{folder}/cuts.%06d.jsonl.gz", shard_size) as cuts,
    ):
        for utterance in utterances:
            content = cut_of(utterance)
            rate = content["recording"]["sampling_rate"]
            # Read as in training: lhotse rounds times otherwise, and makes up a sample that the file does not have.
            samples = read_audio(utterance.path, rate, utterance.start_seconds, utterance.duration_seconds)
            length = {"duration": len(samples) / rate}
            source = {"type": "shar", "channels": [0], "source": ""}
            recording = {**content["recording"], **length, "num_samples": len(samples), "sources": [source]}
            cut = MonoCut.from_dict({**content, **length, "start": 0.0, "recording": recording})
            audio.write(cut.id, samples[None], rate, cut.recording)
            cuts.write(cut)


def packed_table(table: pa.Table, shards: list[Path]) -> pa.Table:
    """A manifest's rows, of `SCHEMA`, to rows of `PACKED_SCHEMA`; the shards hold their audio in the same order."""
    places = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            members = islice(tar, 0, None, 2)  # each audio file is followed by its description
            places.append(np.array([(member.offset_data, member.size) for member in members]))
    codes = pa.array(np.repeat(np.arange(len(shards), dtype=np.int32), [len(place) for place in places]))
    names = pa.array([f"{shard.parent.name}/{shard.name}" for shard in shards])
    columns = {"path": pa.DictionaryArray.from_arrays(codes, names), "start_seconds": np.zeros(len(codes))}
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.field(place), pa.array(values))
    member = pa.StructArray.from_arrays(list(map(pa.array, np.concatenate(places).T)), fields=list(MEMBER))
    return table.append_column("member", member)
