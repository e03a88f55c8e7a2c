"""What a preparation keeps in ``OUT/parts``, so that what is damaged and what has changed is made again.

A part is named by its items, and is a SHA-256 digest of the rest, which is an Arrow file: the utterances of its items,
kept or not, and in its metadata the files it was made from and the account of its items.
"""

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from datamodules.manifest import PLAIN_SCHEMA, plain_table
from datamodules.preparation_report import Account
from datamodules.sources import Inputs, Piece, stamp
from lit_spectron.errors import UserError
from lit_spectron.files import appearing_whole

DIGEST_BYTES = hashlib.sha256().digest_size
NAME_BYTES = 16
LONGEST_PART = 4  # times the mean
PART_SCHEMA = PLAIN_SCHEMA.append(pa.field("fate", pa.string()))


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        table: Utterances, and in the column ``fate`` what becomes of each.
        account: Of its items.
        inputs: What the files that they are made from were like.
    """

    table: pa.Table
    account: Account
    inputs: Inputs


def divided(items: Iterable[str], mean: int) -> Iterator[list[str]]:
    """Items, in their order, in parts of ``mean`` on average.

    A part ends where the checksum of an item says so (or where it is too long), so that a new item changes the part
    that it comes into, now and then the next, and no others.
    """
    part: list[str] = []
    for item in items:
        part.append(item)
        if zlib.crc32(_encoded(item)) % mean == 0 or len(part) == LONGEST_PART * mean:
            yield part
            part = []
    if part:
        yield part


def part_path(parts: Path, items: Sequence[str]) -> Path:
    """Where the part of some items is kept, whatever comes before it."""
    name = hashlib.blake2b(_encoded("\0".join(items)), digest_size=NAME_BYTES).hexdigest()
    return parts / f"{name}.part"


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def write_part(path: Path, inputs: Inputs, pieces: Sequence[Piece], account: Account) -> None:
    listed = [(piece.utterance, piece.fate) for piece in pieces if piece.utterance]
    table = plain_table([utterance for utterance, _ in listed])
    table = table.append_column("fate", pa.array([fate for _, fate in listed], pa.string()))
    metadata = {"inputs": json.dumps(inputs), "account": account.to_json()}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, PART_SCHEMA.with_metadata(metadata)) as file:
        file.write_table(table)
    content = sink.getvalue().to_pybytes()
    with appearing_whole(path, str(os.getpid())) as partial:
        partial.write_bytes(hashlib.sha256(content).digest() + content)


def read_part(path: Path) -> Part | None:
    """A part; None if there is none, or a damaged one."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content[DIGEST_BYTES:]).digest() != content[:DIGEST_BYTES]:
        return None
    table = pa.ipc.open_file(pa.py_buffer(content).slice(DIGEST_BYTES)).read_all()
    metadata = table.schema.metadata
    return Part(table, Account.from_json(metadata[b"account"].decode()), json.loads(metadata[b"inputs"]))


def is_current(path: Path) -> bool:
    """Whether a part is there and whole, and the files that it was made from are as they were then."""
    part = read_part(path)
    return part is not None and all(stamp(Path(file)) == before for file, before in part.inputs.items())


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock that ends with the process, however it ends.

    Raises:
        UserError: Another process holds it, or the file can't be written or locked.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(f"{path}: another process is at work on this shard") from error
        except OSError as error:  # some file systems of clusters know no locks
            raise UserError(f"{path}: can't be locked: {(error.strerror or '').lower()}") from error
        yield
