"""What a container says about its video, asked of ffmpeg."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import ffmpeg

from flamvid.errors import DecodeError, SourceError
from flamvid.types import VideoInfo
from flamvid.video.policy import FORMATS, PROTOCOLS
from flamvid.video.truncation import is_mp4

__all__ = ["allowed", "ffmpeg_exe", "probe"]

_TIMEOUT = 30.0  # seconds; headers are read in milliseconds


@cache
def ffmpeg_exe() -> str:
    """The ffmpeg to run: imageio-ffmpeg's, which every installation has, else the system's."""
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
        if found is None:
            raise SourceError(
                "no ffmpeg is here; install it with `pip install imageio-ffmpeg`"
            ) from None
        return found


def probe(path: Path, *, playlist: bool = False) -> VideoInfo:
    """Facts of the video stream that a player would show; `SourceError` where there is none.

    playlist: the file is an HLS playlist that `check_references` let pass.
    """
    ffprobe = shutil.which("ffprobe")
    if ffprobe is None:
        return _parse_banner(path, _banner(path, playlist))
    try:
        said = ffmpeg.probe(f"file:{path}", cmd=ffprobe, timeout=_TIMEOUT, **allowed(playlist))
    except ffmpeg.Error as error:
        raise _unreadable(path, error.stderr.decode(errors="replace")) from error
    except subprocess.TimeoutExpired as error:
        raise DecodeError(f"{path}: ffprobe gave no answer in {_TIMEOUT:.0f} s") from error
    return _parse_ffprobe(path, said)


def allowed(playlist: bool) -> dict[str, str]:
    """What ffmpeg may open on behalf of a local file."""
    return {
        "protocol_whitelist": f"{PROTOCOLS},crypto" if playlist else PROTOCOLS,
        "format_whitelist": f"hls,{FORMATS}" if playlist else FORMATS,
    }


def _parse_ffprobe(path: Path, said: dict[str, Any]) -> VideoInfo:
    if said["format"]["format_name"] == "tty":
        raise _unreadable(path, "")
    streams = [
        s
        for s in said["streams"]
        if s["codec_type"] == "video" and not s.get("disposition", {}).get("attached_pic")
    ]
    if not streams:
        raise _no_video(path)
    stream = max(streams, key=lambda s: s.get("width", 0) * s.get("height", 0))
    sides: list[dict[str, Any]] = stream.get("side_data_list", [])
    turned = next((float(s["rotation"]) for s in sides if "rotation" in s), 0.0)
    return _info(
        path,
        container=said["format"]["format_name"],
        codec=stream.get("codec_name", "unknown"),
        size=(stream.get("width", 0), stream.get("height", 0)),
        fps=_fraction(stream.get("avg_frame_rate", "0/0")),
        duration=float(said["format"].get("duration", stream.get("duration", 0.0))),
        frames=int(stream.get("nb_frames", 0)),
        turned=turned,
        stream=int(stream["index"]),
        video_streams=len(streams),
    )


def _banner(path: Path, playlist: bool) -> str:
    """What `ffmpeg -i` prints; without an output it always exits with an error."""
    command = ffmpeg.input(f"file:{path}", **allowed(playlist))
    args = [ffmpeg_exe(), "-hide_banner", *ffmpeg.get_args(command.output("-", format="null"))[:-3]]
    try:
        run = subprocess.run(
            args, capture_output=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DecodeError(f"{path}: ffmpeg gave no answer in {_TIMEOUT:.0f} s") from error
    return run.stderr.decode(errors="replace")


def _parse_banner(path: Path, said: str) -> VideoInfo:
    container = re.search(r"^Input #0, (.+), from ", said, re.M)
    if container is None or container[1] == "tty":  # ffmpeg takes any text for terminal art
        raise _unreadable(path, said)
    streams: list[dict[str, Any]] = []
    for block in re.split(r"^\s*(?=Stream #)", said, flags=re.M)[1:]:
        line = block.splitlines()[0]
        index = re.match(r"Stream #0:(\d+)", line)
        size = re.search(r", (\d+)x(\d+)", line)
        codec = re.search(r"Video: (\w+)", line)
        if index is None or codec is None or size is None or "(attached pic)" in line:
            continue
        fps = re.search(r"([\d.]+)(k?) fps", line) or re.search(r"([\d.]+)(k?) tbr", line)
        turned = re.search(r"rotation of (-?[\d.]+) degrees", block)
        streams.append(
            {
                "stream": int(index[1]),
                "codec": codec[1],
                "size": (int(size[1]), int(size[2])),
                "fps": float(fps[1]) * (1000 if fps[2] else 1) if fps else 0.0,
                "turned": float(turned[1]) if turned else 0.0,
            }
        )
    if not streams:
        raise _no_video(path)
    best = max(streams, key=lambda s: s["size"][0] * s["size"][1])
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", said)
    seconds = int(length[1]) * 3600 + int(length[2]) * 60 + float(length[3]) if length else 0.0
    return _info(
        path,
        container=container[1],
        duration=seconds,
        frames=0,
        video_streams=len(streams),
        **best,
    )


def _info(
    path: Path,
    *,
    container: str,
    codec: str,
    size: tuple[int, int],
    fps: float,
    duration: float,
    frames: int,
    turned: float,
    stream: int,
    video_streams: int,
) -> VideoInfo:
    rotation = round(-turned) % 360  # ffmpeg counts against the clock
    width, height = size if rotation % 180 == 0 else size[::-1]
    return VideoInfo(
        path=str(path),
        container=container,
        codec=codec,
        width=width,
        height=height,
        fps=fps,
        duration=duration,
        frames=frames,
        rotation=rotation,
        stream=stream,
        video_streams=video_streams,
    )


def _fraction(text: str) -> float:
    above, _, below = text.partition("/")
    return float(above) / float(below or 1) if float(below or 1) else 0.0


def _unreadable(path: Path, said: str) -> SourceError:
    # ffmpeg takes anything named .mp4 for one: what the file begins with tells better.
    if "moov atom not found" in said and is_mp4(_head(path)):
        return DecodeError(f"{path} has no index (moov atom), so it is truncated; copy it again")
    return SourceError(f"{path} is no video that ffmpeg can read; check what kind of file it is")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _no_video(path: Path) -> SourceError:
    return SourceError(f"{path} has no video stream; give a file with a picture")
