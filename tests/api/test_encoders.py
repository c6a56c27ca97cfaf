"""The whole path with other encoders: build, describe, caption, keep, train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, SiglipImageProcessor
from typer.testing import CliRunner

from flamvid import video
from flamvid.api import Captioner, load
from flamvid.cli.main import app
from flamvid.data.features import load_features
from flamvid.errors import InputError, WeightsError
from flamvid.models.flamingo import Flamingo
from flamvid.models.video_encoder import VideoEncoder
from flamvid.train.journal import read_journal
from flamvid.train.recipe import read_recipe
from flamvid.train.session import run
from flamvid.video.sample import Clips
from flamvid.weights.convert import convert
from tests.tiny import make_model, picture, write_colours

X3D = 'encoder = "pytorchvideo:x3d_xs"\nweights = "{folder}/X3D_XS.pyth"\nsize = 64'
SIGLIP = 'encoder = "siglip:{folder}/siglip"\nsize = 0'
LM = """
[lm_config]
model_type = "llama"
hidden_size = 32
num_hidden_layers = 3
vocab_size = 300
"""


def write_siglip(folder: Path) -> None:
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    tower = AutoModel.from_config(AutoConfig.for_model("siglip_vision_model", **settings))
    tower.save_pretrained(folder / "siglip")
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "siglip")


def write_x3d(folder: Path) -> None:
    torch.manual_seed(0)
    encoder = VideoEncoder("x3d_xs")
    for name, value in encoder.model.state_dict().items():
        if name.endswith("norm_c.weight"):  # begins at 0, and nothing would pass through
            value.fill_(1.0)
    head = {"blocks.5.proj.weight": torch.zeros(400, 2048)}
    torch.save({"model_state": {**encoder.model.state_dict(), **head}}, folder / "X3D_XS.pyth")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """TOMLs of tiny models, by kind of encoder."""
    clips, stills = tmp_path_factory.mktemp("x3d"), tmp_path_factory.mktemp("siglip")
    write_x3d(clips)
    write_siglip(stills)
    return {"x3d": make_model(clips, X3D, 192), "siglip": make_model(stills, SIGLIP, 32)}


@pytest.fixture(scope="module")
def captioners(models: dict[str, Path]) -> dict[str, Captioner]:
    return {name: load(str(toml), device="cpu") for name, toml in models.items()}


@pytest.mark.parametrize("name", ["x3d", "siglip"])
def test_a_clip_is_captioned(name: str, captioners: dict[str, Captioner], clip: Path) -> None:
    captioner = captioners[name]
    [made] = captioner.caption(clip)
    assert captioner.caption(clip) == [made]
    parts = captioner.caption(clip, every=2)
    assert [(part.start, part.end) for part in parts] == [(0, 2), (2, 4), (4, 6)]
    assert len({part.logprob for part in parts}) == 3  # each of another colour


@torch.inference_mode()
def test_a_video_encoder_sees_clips_of_its_own_rate(
    captioners: dict[str, Captioner], clip: Path, tmp_path: Path
) -> None:
    captioner = captioners["x3d"]
    model = captioner.model
    with video.open(clip, size=(64, 64)) as source:
        at = Clips(2, 4, 2.5).indices(source.pts, source.durations).tolist()
        features = captioner.encode(source.read(at))
        assert torch.equal(features[4:], captioner.encode(source.read(at[4:])))
    assert features.shape == (8, 4, 192)
    latents = model.flamingo.resampler(features[None])
    seen = captioner.see(clip, frames=8)
    torch.testing.assert_close(seen.latents, latents)
    assert not torch.equal(seen.latents, captioner.see(clip, frames=4).latents)
    with pytest.raises(InputError, match="fps is 2"):
        captioner.see(clip, fps=2)
    # A still is a clip in which nothing moves.
    Image.fromarray(picture((200, 0, 0), 48)).save(tmp_path / "red.png")
    assert captioner.see(tmp_path / "red.png").latents.shape == seen.latents.shape


@pytest.mark.parametrize("name", ["x3d", "siglip"])
def test_it_is_described_without_its_weights(
    name: str, models: dict[str, Path], captioners: dict[str, Captioner], tmp_path: Path
) -> None:
    toml = tmp_path / "model.toml"
    toml.write_text(models[name].read_text() + LM)
    shown = CliRunner().invoke(app, ["models", "show", str(toml)])
    assert shown.exit_code == 0, shown.output
    count = sum(p.numel() for p in captioners[name].model.flamingo.vision.parameters())
    assert f"{count:,}" in shown.output
    assert ("4 frames, 2.5 a second" in shown.output) == (name == "x3d")


@pytest.mark.parametrize("name", ["x3d", "siglip"])
def test_a_converted_model_says_the_same(
    name: str, models: dict[str, Path], captioners: dict[str, Captioner], clip: Path, tmp_path: Path
) -> None:
    folder = convert(str(models[name]), tmp_path / "saved")
    again = load(folder, device="cpu")
    assert again.model.config.vision.size == captioners[name].model.config.vision.size
    [made], [before] = again.caption(clip), captioners[name].caption(clip)
    assert (made.text, made.logprob) == (before.text, pytest.approx(before.logprob, abs=1e-4))
    features = Flamingo.from_pretrained(folder).encode(torch.zeros(4, 3, 32, 32))
    wanted = captioners[name].model.flamingo.encode(torch.zeros(4, 3, 32, 32))
    torch.testing.assert_close(features, wanted)


@pytest.mark.parametrize("name", ["x3d", "siglip"])
def test_it_is_trained(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    for seed, (shard, count, frames) in enumerate([("clips", 6, 3), ("validation", 3, 6)]):
        write_colours(tmp_path / f"{shard}.tar", count, frames, seed)
    recipe = tmp_path / "walls.toml"
    recipe.write_text(f"""
model = "{models[name]}"
precision = "float32"
[data]
clips = ["clips.tar"]
validation = ["validation.tar"]
root = "{tmp_path}"
[words]
steps = 2
batch = 3
words = 4
[captions]
steps = 2
batch = 3
warmup = 1
""")
    out = tmp_path / "out" / "run"
    assert run(read_recipe(recipe), out, resume=True).result == out / "model.toml"
    assert [e["step"] for e in read_journal(out) if "validation" in e] == [2]
    [clips] = (tmp_path / "out" / "features").glob("*-clips-*")
    [held] = (tmp_path / "out" / "features").glob("*-validation-*")
    # Three frames fill one clip of x3d_xs, six fill two; each has four moments.
    steps = (4, 8) if name == "x3d" else (3, 6)
    assert load_features(clips).batch([0, 1])[1].tolist() == [steps[0]] * 2
    assert load_features(held).batch([0])[1].tolist() == [steps[1]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("X3D_XS.pyth", "none.pyth"), "no weights are called"),
        (('weights = "', 'weights = "https://example.org/'), "comes without its checksum"),
        (("weights", "#"), r"download https://dl\.fbaipublicfiles\.com/.*/X3D_XS\.pyth"),
    ],
)
def test_weights_that_are_not_there(
    change: tuple[str, str], told: str, models: dict[str, Path], tmp_path: Path
) -> None:
    toml = tmp_path / "model.toml"
    toml.write_text(models["x3d"].read_text().replace(*change))
    with pytest.raises(Exception, match=told) as raised:
        load(str(toml), device="cpu")
    assert "\n" not in str(raised.value)


def test_a_pickle_bomb_is_not_executed(
    models: dict[str, Path], tmp_path: Path, bomb: Callable[[Path], Path]
) -> None:
    bomb(tmp_path / "X3D_XS.pyth")
    toml = tmp_path / "model.toml"
    toml.write_text(
        models["x3d"].read_text().replace(str(models["x3d"].parent / "X3D"), str(tmp_path / "X3D"))
    )
    with pytest.raises(WeightsError, match="nothing of it was executed"):
        load(str(toml), device="cpu")
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def bomb() -> Callable[[Path], Path]:
    """Writes a file that makes another one when it is unpickled."""

    class Bomb:
        def __init__(self, mark: Path) -> None:
            self.mark = mark

        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (self.mark,)

    def write(path: Path) -> Path:
        torch.save({"model_state": Bomb(path.parent / "executed")}, path)
        return path

    return write
