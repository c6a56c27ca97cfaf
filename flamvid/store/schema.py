"""What a store holds, byte by byte; docs/store-format.md says the same in prose.

Legend: T frames, N patches, F feature width, E width of a search vector.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flamvid.errors import DamagedStore, InputError, StoreError
from flamvid.types import Caption

__all__ = [
    "DATABASES",
    "FORMAT",
    "HEADER_BYTES",
    "Provenance",
    "VideoRecord",
    "as_written",
    "check_value",
    "chunk_key",
    "dump",
    "id_bytes",
    "load",
    "newer",
    "pack",
    "provenance_from_json",
    "quantise",
    "record_from_json",
    "record_to_json",
    "restore",
    "unpack",
]

FORMAT = 1
DATABASES = ("meta", "videos", "pts", "features", "vectors", "failures", "hash", "state")

HEADER_BYTES = 48
_MAGIC = b"FLVC"
# magic, version, dtype, ndim, crc32, scales, shape, payload bytes, zeros
_HEADER = struct.Struct("<4sHBBII4IQ8s")
_CRC_AT = 8

_JSON, _INT8 = 0, 4
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f2"),
    2: np.dtype("<f4"),
    3: np.dtype("<f8"),
    _INT8: np.dtype("i1"),
    5: np.dtype("u1"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}

_CHUNK_BYTES = 16 << 20  # large enough that few ranges cross an edge, small enough to resume often
_CHUNK_FRAMES = 1024
_LARGEST_CHUNK = 1 << 30
_KINDS: dict[Any, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What made the features of a store; two that differ are never mixed in one.

    patches, width: N and F of the features [T,N,F]. dtype: how they are stored, "float16",
    "float32" or "int8" (with a scale per feature and chunk). embedder, embedding: what made the
    search vectors [T,E], and E; "" and 0 where there are none. chunk_frames: frames that are
    written and read together; 0 becomes what suits their size.
    """

    encoder: str
    weights_sha256: str
    preprocessing: str
    sampling: str
    patches: int
    width: int
    dtype: str = "float16"
    embedder: str = ""
    embedding: int = 0
    chunk_frames: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32", "int8"):
            raise InputError(f"the dtype is {self.dtype!r}; must be float16, float32 or int8")
        for name in ("patches", "width"):
            if not 1 <= getattr(self, name) < 2**31:
                raise InputError(f"{name} is {getattr(self, name)}; must be at least 1")
        if self.embedding < 0 or bool(self.embedder) != bool(self.embedding):
            raise InputError(
                f"embedder is {self.embedder!r} and embedding {self.embedding}; "
                "give a name and its width, or neither"
            )
        frame = self.patches * self.width * np.dtype(self.dtype).itemsize
        if not 0 <= self.chunk_frames * frame <= _LARGEST_CHUNK:
            raise InputError(
                f"chunk_frames is {self.chunk_frames}, of {frame:,} bytes each; a chunk must have "
                f"at most {_LARGEST_CHUNK:,}"
            )
        if not self.chunk_frames:
            frames = max(1, min(_CHUNK_FRAMES, _CHUNK_BYTES // frame))
            object.__setattr__(self, "chunk_frames", frames)

    def check(self, other: Provenance, path: str) -> None:
        """StoreError if features by `other` can't join those of the store at `path`."""
        if differs := self.difference(other):
            raise StoreError(
                f"{path} holds features whose {differs}; "
                "one store holds one kind: use the same settings, or give another --store"
            )

    def difference(self, other: Provenance) -> str:
        """Why features by `other` can't join these, "" if they can: a name, what it is, and not."""
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if ours != theirs and field.name != "chunk_frames":
                return f"{field.name} is {ours!r}, not {theirs!r}"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRecord:
    """One video: where it was, what it is, and what was said about it.

    content_hash: sha256 of the file, in hex; its first 32 digits are the video's id, so that a
    copy under another name is the same video. size in bytes; mtime in seconds since 1970; duration
    in seconds; frames as the container counts them; stored: frames that have features (the writer
    fills it in).
    """

    path: str
    content_hash: str
    size: int = 0
    mtime: float = 0.0
    duration: float = 0.0
    fps: float = 0.0
    codec: str = ""
    width: int = 0
    height: int = 0
    frames: int = 0
    stored: int = 0
    captions: tuple[Caption, ...] = ()

    def __post_init__(self) -> None:
        id_bytes(self.content_hash[:32])
        for name in ("mtime", "duration", "fps"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} of {self.path} is {getattr(self, name)}; must be finite")

    @property
    def id(self) -> str:
        """The video's id: 32 hexadecimal digits."""
        return self.content_hash[:32]


def id_bytes(video_id: str) -> bytes:
    """The 16 bytes of a video's id."""
    try:
        if len(video_id) == 32:
            return bytes.fromhex(video_id)
    except ValueError:
        pass
    raise InputError(f"{video_id!r} is no video id; must be 32 hexadecimal digits")


def chunk_key(video: bytes, chunk: int) -> bytes:
    """Chunks of a video sort by time."""
    return video + chunk.to_bytes(4, "big")


def pack(
    db: str, key: bytes, array: NDArray[Any], scales: NDArray[np.float32] | None = None
) -> bytes:
    """Header and bytes of an array, as the value of `key` in `db`."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    payload = array.tobytes() + (scales.astype("<f4").tobytes() if scales is not None else b"")
    count = scales.size if scales is not None else 0
    return _seal(db, key, _CODES[array.dtype], array.shape, count, payload)


def dump(db: str, key: bytes, value: Any) -> bytes:
    """Header and JSON."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, sort_keys=True).encode()
    return _seal(db, key, _JSON, (len(text),), 0, text)


def _seal(
    db: str, key: bytes, code: int, shape: tuple[int, ...], scales: int, payload: bytes
) -> bytes:
    sides = (*shape, *[0] * (4 - len(shape)))
    head = bytearray(
        _HEADER.pack(_MAGIC, FORMAT, code, len(shape), 0, scales, *sides, len(payload), bytes(8))
    )
    struct.pack_into("<I", head, _CRC_AT, _crc(db, key, head, payload))
    return bytes(head) + payload


def _crc(db: str, key: bytes, head: bytes | bytearray, payload: Any) -> int:
    """Of what a value is, and of where it belongs."""
    return zlib.crc32(payload, zlib.crc32(key, zlib.crc32(db.encode(), zlib.crc32(head))))


def unpack(
    db: str, key: bytes, value: memoryview, *, check: bool = True
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """The array in a value, and its scales; views of `value`, not copies.

    Raises DamagedStore where the header breaks a rule or, with `check`, the checksum is wrong.
    """
    code, shape, scales = _open(db, key, value, check)
    if code not in _DTYPES:
        raise DamagedStore(f"{_where(db, key)} has dtype {code}, which must be an array's")
    dtype = _DTYPES[code]
    count = math.prod(shape)
    if count * dtype.itemsize + 4 * scales != len(value) - HEADER_BYTES:
        raise DamagedStore(f"{_where(db, key)} has {len(value)} bytes; its shape says otherwise")
    array = np.frombuffer(value, dtype, count, HEADER_BYTES).reshape(shape)
    if not scales:
        return array, None
    return array, np.frombuffer(value, "<f4", scales, HEADER_BYTES + array.nbytes)


def load(db: str, key: bytes, value: memoryview) -> Any:
    """The JSON in a value, checked."""
    code, _, _ = _open(db, key, value, True)
    if code != _JSON:
        raise DamagedStore(f"{_where(db, key)} has dtype {code}; must be JSON")
    try:
        return json.loads(bytes(value[HEADER_BYTES:]))
    except (ValueError, RecursionError) as error:
        raise DamagedStore(f"{_where(db, key)} is no JSON ({error})") from error


def check_value(db: str, key: bytes, value: memoryview) -> None:
    """DamagedStore unless the header holds and the checksum is right."""
    _open(db, key, value, True)


def _open(db: str, key: bytes, value: memoryview, check: bool) -> tuple[int, tuple[int, ...], int]:
    if len(value) < HEADER_BYTES:
        raise DamagedStore(f"{_where(db, key)} has {len(value)} bytes, less than a header")
    head = bytearray(value[:HEADER_BYTES])
    magic, version, code, ndim, crc, scales, a, b, c, d, size, _ = _HEADER.unpack(head)
    if magic != _MAGIC or ndim > 4 or size != len(value) - HEADER_BYTES:
        raise DamagedStore(f"{_where(db, key)} has a damaged header")
    if version > FORMAT:
        raise newer(f"a value of {db}", version)
    if check:
        struct.pack_into("<I", head, _CRC_AT, 0)
        if _crc(db, key, head, value[HEADER_BYTES:]) != crc:
            raise DamagedStore(f"{_where(db, key)} has a wrong checksum")
    return code, (a, b, c, d)[:ndim], scales


def newer(what: str, version: int) -> StoreError:
    """What to say about a format that is not known yet."""
    return StoreError(
        f"{what} is of store format {version}, but this flamvid reads up to {FORMAT}; "
        "upgrade flamvid"
    )


def _where(db: str, key: bytes) -> str:
    name = key.hex() if db not in ("meta", "state") else key.decode("ascii", "replace")
    if len(key) == 20:
        name = f"{key[:16].hex()} chunk {int.from_bytes(key[16:], 'big')}"
    return f"{db} {name}"


def quantise(features_TNF: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8, one scale per feature: a few features of an encoder are far larger than the rest."""
    wide = features_TNF.astype(np.float32, copy=False)
    scales = np.maximum(np.abs(wide).max(axis=(0, 1)) / 127, np.finfo(np.float32).tiny)
    return np.rint(wide / scales).astype(np.int8), scales.astype(np.float32)


def restore(array: NDArray[Any], scales: NDArray[np.float32] | None) -> NDArray[Any]:
    """Features as they are computed with: int8 becomes float32."""
    return array if scales is None else array * scales


@contextmanager
def as_written(what: str) -> Iterator[None]:
    """DamagedStore where JSON is not of the form that we write: its checksum may be right."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DamagedStore(f"{what} is not as flamvid writes it ({error})") from error


def provenance_from_json(table: dict[str, Any]) -> Provenance:
    """As it is kept in `meta`."""
    with as_written("the provenance"):
        return Provenance(**table)


def record_to_json(record: VideoRecord) -> dict[str, Any]:
    """As it is kept in `videos`."""
    return asdict(record)


def record_from_json(table: dict[str, Any]) -> VideoRecord:
    """Unknown names come from a later flamvid of the same format, and are left out."""
    with as_written("the record of a video"):
        known = {field.name: _KINDS.get(field.type, object) for field in fields(VideoRecord)}
        values = {name: value for name, value in table.items() if name in known}
        for name, value in values.items():
            if not isinstance(value, known[name]):
                raise TypeError(f"{name} is {value!r}")
        values["captions"] = tuple(Caption(**caption) for caption in values.get("captions", ()))
        return VideoRecord(**values)
