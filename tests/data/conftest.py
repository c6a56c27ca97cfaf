"""What the tests of training data share."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from flamvid.data.corpus import CorpusConfig
from flamvid.data.samples import Document, Look, Media
from flamvid.data.sources import Samples
from flamvid.text.prompt import PromptFormat
from tests.tiny import encode, make_tokenizer, picture

RED, GREEN, BLUE = (encode(picture(rgb)) for rgb in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
LOOK = Look(frames=8, fps=1.0)


@pytest.fixture(scope="session")
def prompts() -> PromptFormat:
    """The layout of a paper's model over the tiny tokenizer."""
    tokenizer = make_tokenizer()
    bos, media, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<bos>", "<media>", "<end>"))
    return PromptFormat(tokenizer, bos, media, end)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 seconds at 5 fps, whose brightness is 20 times the second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i"]
    command += ["color=black:s=64x48:r=5:d=12,format=gray,geq=lum='floor(T)*20'"]
    subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], check=True)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path / ".cache"))


def corpus(kind: str, *sources: str, **settings: Any) -> CorpusConfig:
    """A corpus of small pictures that are not augmented."""
    plain = {"size": 16, "flip": 0.0, "jitter": 0.0}
    return CorpusConfig(name=kind, kind=kind, sources=sources, **plain | settings)


def documents(samples: Samples) -> list[Document]:
    return [samples.document(s, at) for s, n in enumerate(samples.counts) for at in range(n)]


def shown(document: Document) -> list[Any]:
    """Texts as they are, media as the colour of their first frame."""
    out: list[Any] = []
    for part in document.parts:
        if not isinstance(part, str):
            media = part if isinstance(part, Media) else part(LOOK)
            assert media.frames is not None
            part = "RGB"[int(media.frames[0, :, 0, 0].argmax())]
        out.append(part)
    return out


def seconds(media: Media) -> list[int]:
    assert media.frames is not None
    return [round(float(v) / 20) for v in media.frames.float().mean((1, 2, 3))]
