"""Utterances in columns: an Arrow file that is mapped into memory, so that millions of them cost what is looked at.

A manifest is an Arrow IPC file (``.arrow``, uncompressed) with the columns of `SCHEMA`; docs/DATA.md describes them.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lit_spectron.audio_files import ByteRange
from lit_spectron.errors import UserError

# Few different values stand in many rows: each is stored once.
NAMES = pa.dictionary(pa.int32(), pa.string())
WORDS = pa.list_(
    pa.struct([("text", pa.string()), ("start_seconds", pa.float64()), ("duration_seconds", pa.float64())])
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", NAMES),
        ("start_seconds", pa.float64()),
        ("duration_seconds", pa.float64()),
        ("speaker", NAMES),
        ("text", pa.string()),
        ("words", WORDS),
    ]
)
PLAIN_SCHEMA = pa.schema([(field.name, pa.string() if field.type == NAMES else field.type) for field in SCHEMA])
# Of audio that is packed into other files, the bytes where it lies.
MEMBER = pa.struct([("offset_bytes", pa.int64()), ("size_bytes", pa.int64())])
PACKED_SCHEMA = SCHEMA.append(pa.field("member", MEMBER))
ROWS_PER_BATCH = 65536
LONGEST_SECONDS = 1e8


@dataclass(frozen=True)
class Word:
    """One spoken word; ``start_seconds`` counts from the beginning of its utterance."""

    text: str
    start_seconds: float
    duration_seconds: float


@dataclass(frozen=True)
class Utterance:
    """A stretch of an audio file and what is said in it.

    Attributes:
        id: Unique name.
        path: Audio file.
        start_seconds: Offset into the file.
        duration_seconds: Length.
        speaker: Speaker id.
        text: Transcript; empty where there is none.
        words: Word times; None where the corpus has none.
        member: Where in ``path`` the audio file is; None if it is all of it.
    """

    id: str
    path: Path
    start_seconds: float
    duration_seconds: float
    speaker: str
    text: str
    words: tuple[Word, ...] | None = None
    member: ByteRange | None = None

    def text_before(self, seconds: float) -> str | None:
        """The words that end within the first ``seconds``; None without word times."""
        if self.words is None:
            return None
        return " ".join(w.text for w in self.words if w.start_seconds + w.duration_seconds <= seconds + 1e-3)


class Manifest(Sequence[Utterance]):
    """A sequence of utterances over an Arrow table.

    Args:
        table: With the columns of `SCHEMA` or `PACKED_SCHEMA`.
        root: Folder that the table's paths are relative to.
        rows: Which rows of the table, and in which order; None for all.
        prepared: Whether `prepare` has seen the audio files.
    """

    def __init__(self, table: pa.Table, root: Path = Path(), rows: np.ndarray | None = None, prepared: bool = False):
        self.table = table
        self.root = root
        self.rows = rows
        self.prepared = prepared

    @classmethod
    def from_utterances(cls, utterances: Iterable[Utterance], root: Path = Path()) -> "Manifest":
        """In memory; the utterances' paths are relative to ``root``."""
        rest = iter(utterances)
        tables = [plain_table(part) for part in iter(lambda: list(islice(rest, ROWS_PER_BATCH)), [])]
        names = unique_names(tables)
        return cls(pa.concat_tables([SCHEMA.empty_table(), *(encode_names(table, names) for table in tables)]), root)

    @classmethod
    def open(cls, path: Path, root: Path) -> "Manifest":
        """Maps a manifest into memory.

        Raises:
            UserError: It is missing, damaged, no manifest, or holds nothing.
        """
        if not path.is_file():
            raise UserError(f"{path}: no such manifest")
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            columns = " ".join(", ".join(table.schema.names).split())
            if table.schema not in (SCHEMA, PACKED_SCHEMA):
                raise UserError(f"{path}: not a manifest: its columns are {columns}")
            refuse_damage(path)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a manifest, or damaged: {' '.join(str(error).split())}") from error
        if empty := [name for name in SCHEMA.names if name != "words" and table[name].null_count]:
            raise UserError(f"{path}: not a manifest: it lacks values of {', '.join(empty)}")
        if not table.num_rows:
            raise UserError(f"{path}: holds no utterances; if it is a split, report.md beside it says how to fill it")
        return cls(table, root, prepared=True)

    def __len__(self) -> int:
        return self.table.num_rows if self.rows is None else len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        row = range(len(self))[index] if self.rows is None else int(self.rows[index])
        value = {name: self.table[name][row].as_py() for name in self.table.column_names}
        words = None if value["words"] is None else tuple(Word(**word) for word in value["words"])
        member = ByteRange(**value["member"]) if value.get("member") else None
        return Utterance(**{**value, "path": self.root / value["path"], "words": words, "member": member})

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))

    def select(self, places: np.ndarray) -> "Manifest":
        """The utterances at some places, given as a mask or as indices."""
        places = np.flatnonzero(places) if places.dtype == bool else places
        rows = places.astype(np.int32) if self.rows is None else self.rows[places]
        return Manifest(self.table, self.root, rows, self.prepared)

    def numbers(self, name: str) -> np.ndarray:
        """(N,) ``start_seconds`` or ``duration_seconds``."""
        return self._selected(self.table[name].to_numpy())

    def text_bytes(self) -> np.ndarray:
        """(N,) lengths of the transcripts in UTF-8."""
        return self._selected(pc.binary_length(self.table["text"]).to_numpy())

    def places(self, ids: Sequence[str]) -> np.ndarray:
        """(N,) where the utterances of these ids stand, -1 for those that are not here."""
        column = self.table["id"] if self.rows is None else self.table["id"].take(self.rows)
        return pc.index_in(pa.array(ids, pa.string()), value_set=column).fill_null(-1).to_numpy()

    def names(self, name: str) -> tuple[np.ndarray, list[str]]:
        """Of ``path`` or ``speaker``: (N,) codes, and the list of names that they point into."""
        column = self.table[name].unify_dictionaries()
        codes = [chunk.indices.to_numpy() for chunk in column.chunks]
        values = column.chunk(0).dictionary.to_pylist() if codes else []
        return self._selected(np.concatenate([np.zeros(0, np.int32), *codes])), values

    def speakers(self) -> set[str]:
        codes, values = self.names("speaker")
        return {values[code] for code in np.flatnonzero(np.bincount(codes, minlength=len(values)))}

    def _selected(self, values: np.ndarray) -> np.ndarray:
        return values if self.rows is None else values[self.rows]


def plain_table(utterances: Sequence[Utterance]) -> pa.Table:
    """Utterances to the columns of `SCHEMA`, names as plain strings."""
    columns: dict[str, list] = {name: [getattr(u, name) for u in utterances] for name in SCHEMA.names}
    columns["path"] = [str(path) for path in columns["path"]]
    columns["words"] = [None if words is None else [vars(word) for word in words] for words in columns["words"]]
    return pa.table(columns, schema=PLAIN_SCHEMA)


def unique_names(tables: Iterable[pa.Table]) -> dict[str, pa.Array]:
    """Of tables with plain names, each path and each speaker once, in order of appearance."""
    found: dict[str, list[pa.Array]] = {
        field.name: [pa.array([], pa.string())] for field in SCHEMA if field.type == NAMES
    }
    for table in tables:
        for name, arrays in found.items():
            arrays.append(pc.unique(table[name]))
    return {name: pc.unique(pa.chunked_array(arrays)) for name, arrays in found.items()}


def encode_names(table: pa.Table, names: dict[str, pa.Array]) -> pa.Table:
    """A table with plain names to one of `SCHEMA`; tables that share ``names`` can share a file."""
    for name, values in names.items():
        codes = [pc.index_in(chunk, value_set=values) for chunk in table[name].chunks]
        encoded = pa.chunked_array([pa.DictionaryArray.from_arrays(part, values) for part in codes], type=NAMES)
        table = table.set_column(table.schema.get_field_index(name), name, encoded)
    return table.replace_schema_metadata()


def refuse_damage(path: Path) -> None:
    """Looks through a manifest, a batch of rows at a time, so that it need not stay in memory.

    Raises:
        pa.ArrowException, OSError, UnicodeDecodeError: It is damaged so that reading it might crash.
        UserError: An utterance is at an impossible time.
    """
    with pa.OSFile(str(path)) as file:
        reader, rows = pa.ipc.open_file(file), 0
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            batch.validate(full=True)
            start, duration = (batch[name].to_numpy(False) for name in ("start_seconds", "duration_seconds"))
            possible = (start >= 0) & (start < LONGEST_SECONDS) & (duration > 0) & (duration < LONGEST_SECONDS)
            if packed := batch.schema == PACKED_SCHEMA:
                offset, size = (part.to_numpy(False) for part in batch["member"].flatten())
                possible &= (offset >= 0) & (size > 0)
            if not possible.all():
                row = int(possible.argmin())
                what = f"{batch['id'][row]} starts at {start[row]} s and lasts {duration[row]} s"
                what += f", in {size[row]} bytes at byte {offset[row]}" if packed else ""
                raise UserError(f"{path}: damaged: utterance {rows + row}, {what}")
            rows += batch.num_rows


def split_speakers(speakers: Iterable[str], validation_share: float, test_share: float) -> tuple[set[str], set[str]]:
    """Which speakers go to validation and to test: those whose names' checksums are the lowest."""
    ordered = sorted(set(speakers), key=lambda name: (zlib.crc32(name.encode()), name))
    first, second = round(len(ordered) * validation_share), round(len(ordered) * test_share)
    return set(ordered[:first]), set(ordered[first : first + second])


def split_by_speaker(
    corpora: Sequence[Manifest], validation_share: float, test_share: float
) -> list[tuple[Manifest, Manifest, Manifest]]:
    """Train, validation and test of each corpus; no speaker is in two of them, whichever corpora it is in."""
    speakers = set().union(*(corpus.speakers() for corpus in corpora))
    validation, test = split_speakers(speakers, validation_share, test_share)
    parts = []
    for corpus in corpora:
        codes, values = corpus.names("speaker")
        places = [1 if name in validation else 2 if name in test else 0 for name in values]
        place = np.array(places, dtype=np.int8)[codes]
        parts.append((corpus.select(place == 0), corpus.select(place == 1), corpus.select(place == 2)))
    return parts


def concatenate(manifests: Sequence[Manifest]) -> Manifest:
    """One after the other; they have one root."""
    table = pa.concat_tables([m.table for m in manifests], promote_options="default")  # some may be packed
    starts = np.cumsum([0, *(m.table.num_rows for m in manifests)])
    rows = [s + (np.arange(len(m)) if m.rows is None else m.rows) for s, m in zip(starts, manifests, strict=False)]
    roots = {m.root for m in manifests}
    if len(roots) > 1:
        raise ValueError(f"manifests of different roots: {roots}")
    return Manifest(table, roots.pop(), np.concatenate(rows).astype(np.int32), all(m.prepared for m in manifests))
