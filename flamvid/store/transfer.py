"""Videos of a store to files that others read, and back: npy, Parquet, safetensors.

A folder holds a file per video, by the video's name, and `store.json`: what made the features, and
what each video is.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from flamvid.errors import DamagedStore, InputError, StoreError
from flamvid.store.reader import FeatureStore, StoredVideo
from flamvid.store.schema import (
    Provenance,
    VideoRecord,
    provenance_from_json,
    record_from_json,
    record_to_json,
)
from flamvid.store.writer import StoreWriter

__all__ = ["FORMATS", "export", "file_names", "import_folder"]

FORMATS = ("npy", "parquet", "safetensors")
_TABLE = "store.json"
_LONGEST = 200  # bytes of a name: file systems allow 255, endings included


def export(path: Path, folder: Path, format: str, ids: Sequence[str] | None = None) -> list[Path]:
    """Write videos, all if none is named, into a folder; the files that hold features.

    npy: `NAME.npy` float [T,N,F], `NAME.pts.npy` float64 [T] in seconds and, where the store has
    them, `NAME.vectors.npy` [T,E]. Features kept as int8 are written as float32. Every file appears
    whole. Videos of one name get the beginning of their id behind it.
    """
    if format not in FORMATS:
        raise InputError(f"the format is {format!r}; must be one of {', '.join(FORMATS)}")
    snapshot = FeatureStore(path, check=True).snapshot()
    videos = list(snapshot) if ids is None else list(ids)
    names = file_names({video: snapshot[video].record.path for video in videos})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written, table = [], {}
        for video, name in names.items():
            stored = snapshot[video]
            written.append(_WRITERS[format](folder, name, stored))
            table[name] = record_to_json(stored.record)
        made = {"provenance": asdict(snapshot.provenance), "videos": table}
        with _whole(folder / _TABLE) as file:
            file.write(json.dumps(made, indent=1).encode())
    except OSError as error:
        raise StoreError(f"can't write to {folder} ({error.strerror})") from error
    return written


def file_names(paths: dict[str, str]) -> dict[str, str]:
    """A name for the files of each video, from its path: no two are the same in any case."""
    stems = {video: _stem(path) for video, path in paths.items()}
    counts = Counter(stem.casefold() for stem in stems.values())
    return {
        video: stem if counts[stem.casefold()] == 1 and not _odd(stem) else f"{stem}-{video[:8]}"
        for video, stem in stems.items()
    }


def _stem(path: str) -> str:
    stem = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    stem = stem.rpartition(".")[0].lstrip(".") or stem.lstrip(".")
    stem = "".join(c if c.isprintable() and c not in '<>:"|?*' else "_" for c in stem)
    while len(stem.encode()) > _LONGEST:
        stem = stem[:-1]
    return stem or "video"


def _odd(stem: str) -> bool:
    """Whether a name could be taken for another video's second file, or for a number of names."""
    return (
        stem.endswith((".pts", ".vectors")) or stem == "store" or len(stem.encode()) > _LONGEST - 4
    )


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when it is complete."""
    part = path.with_name(f".{os.getpid()}.{os.urandom(4).hex()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_npy(folder: Path, name: str, video: StoredVideo) -> Path:
    _save(folder / f"{name}.pts.npy", video.pts())
    if (vectors := video.vectors()) is not None:
        _save(folder / f"{name}.vectors.npy", vectors)
    path = folder / f"{name}.npy"
    with _whole(path) as file:
        for number, (_, features_TNF) in enumerate(video.chunks()):
            if not number:  # only then the dtype is known
                shape = (video.record.stored, *features_TNF.shape[1:])
                head = {"descr": features_TNF.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, head)
            file.write(features_TNF.tobytes())
    return path


def _save(path: Path, array: NDArray[Any]) -> None:
    with _whole(path) as file:
        np.save(file, array)


def _arrays(video: StoredVideo) -> dict[str, NDArray[Any]]:
    arrays = {"features": video.features(), "pts": video.pts()}
    if (vectors := video.vectors()) is not None:
        arrays["vectors"] = vectors
    return arrays


def _write_safetensors(folder: Path, name: str, video: StoredVideo) -> Path:
    from safetensors.numpy import save

    path = folder / f"{name}.safetensors"
    arrays = {key: np.ascontiguousarray(array) for key, array in _arrays(video).items()}
    with _whole(path) as file:
        file.write(save(arrays, {"path": video.record.path}))
    return path


def _write_parquet(folder: Path, name: str, video: StoredVideo) -> Path:
    """A row per frame: pts, features as a flat list, whose shape is in the schema's metadata."""
    pa, parquet = _pyarrow()
    path = folder / f"{name}.parquet"
    arrays = _arrays(video)
    shape = json.dumps(arrays["features"].shape[1:])
    columns = {"pts": pa.array(arrays.pop("pts"))}
    for key, array in arrays.items():
        flat = array.reshape(len(array), -1)
        columns[key] = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    table = pa.table(columns).replace_schema_metadata({"shape": shape, "path": video.record.path})
    with _whole(path) as file:
        parquet.write_table(table, file)
    return path


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            "Parquet needs pyarrow, which is not here; pip install 'flamvid[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet


_WRITERS: dict[str, Callable[[Path, str, StoredVideo], Path]] = {
    "npy": _write_npy,
    "parquet": _write_parquet,
    "safetensors": _write_safetensors,
}


def import_folder(folder: Path, path: Path) -> tuple[int, int]:
    """Add to a store what `export` wrote, or what others wrote with a `store.json` of that form.

    The store is made if there is none. Returns how many videos were added, and how many were there.
    Nothing but arrays is read from the files: no pickle.
    """
    table = folder / _TABLE
    try:
        made = json.loads(table.read_bytes())
        provenance: Provenance = provenance_from_json(made["provenance"])
        records = {name: record_from_json(row) for name, row in made["videos"].items()}
    except OSError as error:
        raise InputError(
            f"can't read {table} ({error.strerror}); it says what made the features, as "
            "`flamvid store export` writes it"
        ) from error
    except (DamagedStore, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{table} is not as `flamvid store export` writes it ({error})") from error
    added = present = 0
    with StoreWriter(path, provenance) as writer:
        for name, record in records.items():
            if Path(name).name != name:
                raise InputError(f"{table} names {name!r}, which is no plain name of a file")
            if record.content_hash in writer:
                present += 1
                continue
            _import_video(writer, folder, name, record)
            added += 1
    return added, present


def _import_video(writer: StoreWriter, folder: Path, name: str, record: VideoRecord) -> None:
    try:
        arrays = _read(folder, name)
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"can't read the features of {name} in {folder} ({error})") from error
    step = writer.provenance.chunk_frames
    with writer.video(replace(record, stored=0)) as video:
        video.captions(record.captions)
        for first in range(video.resume_at, len(arrays["pts"]), step):
            part = {key: array[first : first + step] for key, array in arrays.items()}
            video.add(part["pts"], part["features"], part.get("vectors"))


def _read(folder: Path, name: str) -> dict[str, NDArray[Any]]:
    """The arrays of one video, whatever the format."""
    if (file := folder / f"{name}.safetensors").is_file():
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    if (file := folder / f"{name}.parquet").is_file():
        return _read_parquet(file)
    arrays = {
        "features": np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False),
        "pts": np.load(folder / f"{name}.pts.npy", allow_pickle=False),
    }
    if (file := folder / f"{name}.vectors.npy").is_file():
        arrays["vectors"] = np.load(file, allow_pickle=False)
    return arrays


def _read_parquet(file: Path) -> dict[str, NDArray[Any]]:
    pa, parquet = _pyarrow()
    try:
        table = parquet.read_table(file)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    arrays = {"pts": table["pts"].to_numpy()}
    for key in ("features", "vectors"):
        if key in table.column_names:
            flat = table[key].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            arrays[key] = flat.reshape(table.num_rows, -1)
    shape = json.loads(table.schema.metadata[b"shape"])
    arrays["features"] = arrays["features"].reshape(table.num_rows, *shape)
    return arrays
