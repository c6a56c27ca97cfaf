"""Out of a store and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flamvid.errors import InputError
from flamvid.store import FeatureStore, StoreWriter
from flamvid.store.transfer import export, file_names, import_folder
from tests.store.stores import MADE, arrays, length, record, write_store, write_video
from tests.store.test_writer import entries


@pytest.mark.parametrize("format", ["npy", "safetensors", "parquet"])
def test_what_is_exported_imports_as_it_was(tmp_path: Path, format: str) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    path = write_store(tmp_path / "lib.lmdb", range(4))
    files = export(path, tmp_path / "out", format)
    assert sorted(file.name for file in files) == [f"v{n}.{format}" for n in range(4)]
    again = tmp_path / "again.lmdb"
    assert import_folder(tmp_path / "out", again) == (4, 0)
    assert import_folder(tmp_path / "out", again) == (0, 4)
    assert entries(again) == entries(path)


def test_npy_is_features_and_times(tmp_path: Path) -> None:
    path = write_store(tmp_path / "lib.lmdb", [4])
    export(path, tmp_path / "out", "npy")
    pts, features, vectors = arrays(4, length(4))
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "v4.npy"), features)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "v4.pts.npy"), pts)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "v4.vectors.npy"), vectors)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"v4.npy", "v4.pts.npy", "v4.vectors.npy", "store.json"}


def test_names_that_collide_are_told_apart(tmp_path: Path) -> None:
    paths = ["a/cat.mp4", "b/cat.mkv", "c/CAT.avi", "cat.pts.mp4", "dog.mp4", "../..", "x" * 300]
    with StoreWriter(tmp_path / "lib.lmdb", MADE) as writer:
        ids = [write_video(writer, n, path) for n, path in enumerate(paths)]
    names = file_names(dict(zip(ids, paths, strict=True)))
    assert names[ids[4]] == "dog"
    assert names[ids[0]] == f"cat-{ids[0][:8]}"
    assert len({name.casefold() for name in names.values()}) == len(paths)
    files = export(tmp_path / "lib.lmdb", tmp_path / "out", "npy")
    assert len({file.resolve() for file in files}) == len(paths)
    assert all(file.resolve().parent == (tmp_path / "out").resolve() for file in files)
    store = FeatureStore(tmp_path / "lib.lmdb")
    for video, name in names.items():
        features = np.load(tmp_path / "out" / f"{name}.npy")
        np.testing.assert_array_equal(features, store[video].features())


def test_a_hostile_folder_is_refused(tmp_path: Path) -> None:
    path = write_store(tmp_path / "lib.lmdb", [1])
    with pytest.raises(InputError, match=r"store\.json"):
        import_folder(tmp_path, tmp_path / "new.lmdb")
    export(path, tmp_path / "out", "npy")
    table = tmp_path / "out" / "store.json"
    made = json.loads(table.read_text())
    made["videos"] = {"../v1": next(iter(made["videos"].values()))}
    table.write_text(json.dumps(made))
    with pytest.raises(InputError, match="no plain name"):
        import_folder(tmp_path / "out", tmp_path / "new.lmdb")
    made["videos"] = {"v1": made["videos"]["../v1"]}
    table.write_text(json.dumps(made))
    np.save(tmp_path / "out" / "v1.npy", np.array([record], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="can't read the features of v1"):
        import_folder(tmp_path / "out", tmp_path / "new.lmdb")
