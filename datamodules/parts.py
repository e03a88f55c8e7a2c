"""What a preparation keeps in ``OUT/parts``, so that what is damaged and what has changed is made again.

A part is a SHA-256 digest of the rest, which is an Arrow file: the utterances of its items, kept or not, and in its
metadata what it was made from and the account of its items.
"""

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
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
PART_SCHEMA = PLAIN_SCHEMA.append(pa.field("fate", pa.string()))


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        table: Utterances, and in the column ``fate`` what becomes of each.
        account: Of its items.
        checksum: Of its items.
        inputs: What the files that they are made from were like.
    """

    table: pa.Table
    account: Account
    checksum: int
    inputs: Inputs


def part_path(parts: Path, index: int) -> Path:
    return parts / f"{index:06}.part"


def checksum(items: Sequence[str]) -> int:
    return zlib.crc32("\n".join(items).encode("utf-8", "surrogateescape"))


def write_part(path: Path, items: Sequence[str], inputs: Inputs, pieces: Sequence[Piece], account: Account) -> None:
    listed = [(piece.utterance, piece.fate) for piece in pieces if piece.utterance]
    table = plain_table([utterance for utterance, _ in listed])
    table = table.append_column("fate", pa.array([fate for _, fate in listed], pa.string()))
    metadata = {"made_from": json.dumps([checksum(items), inputs]), "account": account.to_json()}
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
    return Part(table, Account.from_json(metadata[b"account"].decode()), *json.loads(metadata[b"made_from"]))


def is_current(path: Path, value: int) -> bool:
    """Whether a part is there and whole, was made from the items with this checksum, and their files are as then."""
    part = read_part(path)
    return part is not None and part.checksum == value and all(stamp(Path(f)) == s for f, s in part.inputs.items())


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
