"""The recipes of corpora: all can be read, and hold the paper's numbers where it has any."""

from __future__ import annotations

from pathlib import Path

import pytest

from flamvid.data.corpus import read_corpora
from flamvid.errors import ConfigError

DATASETS = Path(__file__).parents[2] / "datasets"
CORPORA = (
    *("mmc4", "obelics", "coyo", "laion", "cc12m", "webvid", "msr-vtt", "vatex", "msvd"),
    *("activitynet-captions", "youcook2", "coco", "flickr8k"),
)


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_has_a_recipe_and_says_what_it_is(name: str) -> None:
    corpora = read_corpora(DATASETS / name / "recipe.toml")
    assert [c.name for c in corpora["train"]] == [name]
    assert [c.name for c in corpora["validation"]] == [name]
    text = (DATASETS / name / "README.md").read_text(encoding="utf-8")
    for topic in ("Format", "Licence", "Splits", "To obtain"):
        assert f"**{topic}.**" in text
    assert f"]({name})" in (DATASETS / "README.md").read_text(encoding="utf-8")


def test_two_corpora_of_one_name_are_refused(tmp_path: Path) -> None:
    """Losses, ledgers and packed shards are by a corpus's name."""
    table = '[[{}]]\nname = "a"\nkind = "text"\nsources = ["a.txt"]\n'
    path = tmp_path / "r.toml"
    path.write_text(table.format("corpus") + table.format("validation"))
    assert len(read_corpora(path)) == 2
    path.write_text(table.format("corpus") * 2)
    with pytest.raises(ConfigError, match="corpus 'a' is there twice"):
        read_corpora(path)


def test_the_paper_s_mixture() -> None:
    parts = {p.stem: read_corpora(p)["train"] for p in (DATASETS / "mixtures").glob("*.toml")}
    values = {c.name: (c.weight, c.batch) for c in parts["all"]}
    assert values == {
        "m3w": (1.0, 256),
        "align": (0.2, 512),
        "ltip": (0.2, 512),
        "vtp": (0.03, 64),
    }
    left_out = {
        "without-video": {"vtp"},
        "without-images": {"align", "ltip"},
        "without-pages": {"m3w"},
        "round-robin": set(),
        "laion": {"align", "ltip"},
    }
    assert set(parts) == {"all", "of-the-model", *left_out}
    for name, gone in left_out.items():
        kept = {c.name: (c.weight, c.batch) for c in parts[name] if c.name != "laion"}
        assert kept == {n: v for n, v in values.items() if n not in gone}
