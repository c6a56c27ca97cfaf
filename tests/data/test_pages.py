"""Pages of texts and pictures: mmc4 and OBELICS as they were released, in shards and in tables."""

from __future__ import annotations

import base64
import gzip
import json
import zipfile
from pathlib import Path

import pytest

from flamvid.data.sources import open_corpus
from flamvid.errors import SourceError
from tests.data.conftest import BLUE, GREEN, RED, corpus, documents, shown
from tests.tiny import write_tar

MMC4 = {
    "text_list": ["The first.", "The second.", "The third."],
    "url": "http://x",
    "image_info": [
        {"image_name": "Blue.webp", "raw_url": "http://x/b", "matched_text_index": 2},
        {"image_name": "red.webp", "raw_url": "http://x/r", "matched_text_index": 0},
        {"image_name": "gone.webp", "raw_url": "http://x/n", "matched_text_index": 1},
        {"image_name": "green.webp", "raw_url": "http://x/g", "matched_text_index": 2},
    ],
    "similarity_matrix": [],
}
IN_ORDER = ["R", " The first. The second.", "B", "G", " The third."]
NAMED = {"Blue.webp": BLUE, "red.webp": RED, "green.webp": GREEN}


def test_mmc4_as_released_with_its_images_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, data in NAMED.items():
        (tmp_path / "images" / name).write_bytes(data)
    line = json.dumps(MMC4).encode()
    with zipfile.ZipFile(tmp_path / "docs_shard_0_v2.jsonl.zip", "w") as packed:
        packed.writestr("docs_shard_0_v2.jsonl", line + b"\n" + line)
    (tmp_path / "more.jsonl.gz").write_bytes(gzip.compress(line))
    config = corpus("interleaved", "docs*.zip", "more.jsonl.gz", media_root="images")
    found = documents(open_corpus(config, tmp_path))
    assert [shown(document) for document in found] == [IN_ORDER] * 3


@pytest.mark.parametrize("way", ["name", "number", "base64"])
def test_mmc4_in_a_shard(tmp_path: Path, way: str) -> None:
    table = json.loads(json.dumps(MMC4))
    members = []
    for n, image in enumerate(table["image_info"]):
        data = NAMED.get(image["image_name"])
        if data and way == "base64":
            image["image_base64"] = base64.b64encode(data).decode()
        elif data:
            members.append((f"p.{image['image_name'] if way == 'name' else f'{n}.webp'}", data))
    write_tar(tmp_path / "p.tar", [*members, ("p.json", json.dumps(table).encode())])
    [document] = documents(open_corpus(corpus("interleaved", "p.tar"), tmp_path))
    assert shown(document) == IN_ORDER


def test_mmc4_whose_images_are_called_by_other_numbers(tmp_path: Path) -> None:
    names = {"2.webp": BLUE, "0.webp": RED, "1.webp": GREEN}
    images = [
        {"image_name": name, "raw_url": "http://x", "matched_text_index": int(name[0])}
        for name in names
    ]
    table = {"text_list": [" red.", " green.", " blue."], "url": "http://x", "image_info": images}
    members = [(f"p.{name}", names[name]) for name in sorted(names)]
    write_tar(tmp_path / "p.tar", [*members, ("p.json", json.dumps(table).encode())])
    [document] = documents(open_corpus(corpus("interleaved", "p.tar"), tmp_path))
    assert [text.strip() for text in shown(document)] == ["R", "red.", "G", "green.", "B", "blue."]


OBELICS = {
    "texts": [None, "One.", "Two.", None, None, "Three."],
    "images": ["http://x/r.jpg", None, None, "http://x/g.jpg", "http://x/b.jpg", None],
    "metadata": "[]",
}


def test_obelics_in_a_shard(tmp_path: Path) -> None:
    images = [("p.0.webp", RED), ("p.1.webp", GREEN), ("p.2.webp", BLUE)]
    write_tar(tmp_path / "p.tar", [*images, ("p.json", json.dumps(OBELICS).encode())])
    [document] = documents(open_corpus(corpus("interleaved", "p.tar"), tmp_path))
    assert shown(document) == ["R", " One.\n\nTwo.", "G", "B", " Three."]


def test_an_address_that_is_called_as_another_image_s_number(tmp_path: Path) -> None:
    """In the order of the page: the number is ours, the address's name is a site's own."""
    addresses = ["http://x/1.webp?w=9", "http://y/2.webp", "http://z/0.webp"]
    table = {"texts": [None, "a", None, None], "images": [addresses[0], None, *addresses[1:]]}
    images = [("p.0.webp", RED), ("p.1.webp", GREEN), ("p.2.webp", BLUE)]
    named = [("q.one.webp", RED), ("q.two.webp", GREEN), ("q.three.webp", BLUE)]
    other = json.dumps(table)
    for number, name in (("1", "one"), ("2", "two"), ("0", "three")):
        other = other.replace(f"{number}.webp", f"{name}.webp")
    members = [*images, ("p.json", json.dumps(table).encode()), *named, ("q.json", other.encode())]
    write_tar(tmp_path / "p.tar", members)
    found = documents(open_corpus(corpus("interleaved", "p.tar"), tmp_path))
    assert [shown(document) for document in found] == [["R", " a", "G", "B"]] * 2


def test_obelics_as_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = OBELICS | {"images": ["r.webp", None, None, "gone.webp", "b.webp", None]}
    parquet.write_table(pyarrow.Table.from_pylist([table] * 3), tmp_path / "train-0.parquet")
    (tmp_path / "r.webp").write_bytes(RED)
    (tmp_path / "b.webp").write_bytes(BLUE)
    found = documents(open_corpus(corpus("interleaved", "*.parquet"), tmp_path))
    assert [shown(document) for document in found] == [["R", " One.\n\nTwo.", "B", " Three."]] * 3


def test_pages_of_parquet_are_counted_without_reading_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OBELICS has 377 GB of them."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = OBELICS | {"images": [None] * 6}
    parquet.write_table(pyarrow.Table.from_pylist([table] * 3), tmp_path / "train-0.parquet")
    read: list[list[str]] = []
    real = parquet.ParquetFile.read

    def noting(self: object, columns: list[str], **more: object) -> object:
        read.append(columns)
        return real(self, columns, **more)

    monkeypatch.setattr(parquet.ParquetFile, "read", noting)
    samples = open_corpus(corpus("interleaved", "*.parquet"), tmp_path)
    assert (samples.counts, read) == ((3,), [])
    assert [shown(d) for d in documents(samples)] == [["One.\n\nTwo.\n\nThree."]] * 3
    assert [sorted(columns) for columns in read] == [["images", "texts"]]


@pytest.mark.parametrize(
    "name", ["../secret.webp", "/etc/hostname", "file:///etc/hostname", "a\0b"]
)
def test_a_page_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "secret.webp").write_bytes(RED)
    table = {"texts": ["a", None], "images": [None, name]}
    (tmp_path / "pages" / "p.jsonl").write_text(json.dumps(table))
    samples = open_corpus(corpus("interleaved", "pages/p.jsonl"), tmp_path)
    with pytest.raises(SourceError, match="leads out of"):
        samples.document(0, 0)
