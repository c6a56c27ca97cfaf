"""A run's journal, and the picture of it."""

from __future__ import annotations

import errno
import json
import math
import sys
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image

from flamvid.data.collate import Batch
from flamvid.errors import InputError
from flamvid.train.journal import LOG, Journal, flat, read_journal
from flamvid.train.optimizer import OptimConfig
from flamvid.train.parallel import Parallel
from flamvid.train.plan import RunConfig
from flamvid.train.snapshot import Snapshots
from flamvid.train.stop import Stop
from flamvid.train.trainer import Trainer
from flamvid.train.update import Updater
from flamvid.train.world import World
from tests.train.toy import Linear, Stream


def write(folder: Path, first: int, steps: int) -> None:
    journal = Journal(folder, first)
    for step in range(first + 1, steps + 1):
        gates = [[0.01 * step, 0.02 * step], [0.03 * step, 0.04 * step]]
        journal.write({"step": step, "loss": {"pages": 3 / step, "clips": 2.0}, "gates": gates})
    journal.write({"step": steps, "validation": {"held out": 1.5}})
    journal.close()


def test_a_resumed_run_goes_on_where_its_snapshot_was(tmp_path: Path) -> None:
    write(tmp_path, 0, 6)
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 7, "lo')  # it was killed
    write(tmp_path, 4, 8)
    assert [e["step"] for e in read_journal(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8, 8]


def test_numbers_by_their_path() -> None:
    entry = {"step": 3, "loss": {"pages": 2}, "gates": [[0.1, 0.2]], "norm": None}
    assert flat(entry) == {"loss/pages": 2.0, "gates/0/0": 0.1, "gates/0/1": 0.2}


def test_a_picture_of_losses_and_gates(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from flamvid.train.plot import plot_run

    write(tmp_path, 0, 6)
    with Image.open(plot_run(tmp_path, tmp_path / "plot.png")) as picture:
        wide = picture.size
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
    (tmp_path / "plain").mkdir()
    journal = Journal(tmp_path / "plain", 0)
    journal.write({"step": 1, "loss": {"pages": 3.0}, "gates": []})
    journal.close()
    with Image.open(plot_run(tmp_path / "plain", tmp_path / "plain.png")) as picture:
        assert picture.size[0] < wide[0]  # without gates there is one panel, not three


def test_losses_that_are_no_numbers_are_told_and_left_out(tmp_path: Path) -> None:
    """By what makes the updates; the picture and a resumed run can read it."""
    pytest.importorskip("matplotlib")
    from flamvid.train.plot import plot_run

    class Broken(Stream):
        """Whose second update has a corpus without a finite loss."""

        def __next__(self) -> list[Batch]:
            pages, videos = super().__next__()
            assert videos.features is not None
            videos.features[0] *= math.inf if self.number == 2 else 1
            return [pages, videos]

    toy = Linear()
    parallel = Parallel(toy, World())
    trainer = Trainer(
        parallel=parallel,
        updater=Updater(
            parallel, torch.optim.AdamW(toy.parameters()), {"pages": 1.0, "videos": 0.3}, 1.0
        ),
        data=Broken(),
        run=RunConfig(steps=3, save_every=9, log_every=1, validate_every=2),
        optim=OptimConfig(),
        snapshots=Snapshots(tmp_path),
        validate=lambda: {"held out": math.nan},
        log=lambda _: None,
    )
    for group in trainer.updater.optimizer.param_groups:
        group["peak"] = 1e-3
    with closing(Journal(tmp_path, 0)) as journal:
        trainer(0, journal, Stop())

    def strict(line: str) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(line, parse_constant=pytest.fail))

    entries = [strict(line) for line in (tmp_path / LOG).read_text().splitlines()]
    told = [entry for entry in entries if "skipped" in entry]
    assert told == [{"step": 2, "skipped": ["videos"], "applied": True}]
    assert {"step": 2, "validation": {"held out": None}} in entries
    assert plot_run(tmp_path, tmp_path / "plot.png").exists()
    Journal(tmp_path, 3).close()
    assert read_journal(tmp_path) == entries


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    from flamvid.train.plot import plot_run

    with pytest.raises(InputError, match="holds no losses; give the folder of a run"):
        plot_run(tmp_path, tmp_path / "plot.png")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("none/plot.png", "plot.png: No such file or directory; give another file"),
        ("plot.nix", r"plot\.nix ends in \.nix; a plot is a \.png"),
    ],
)
def test_a_picture_that_cannot_be_written_is_one_line(
    tmp_path: Path, name: str, complaint: str
) -> None:
    pytest.importorskip("matplotlib")
    from flamvid.train.plot import plot_run

    (tmp_path / LOG).write_text('{"step": 1, "loss": {"a": 2.0}}\n{"step": 2, "loss": 3}\n')
    with pytest.raises(InputError, match=complaint):
        plot_run(tmp_path, tmp_path / name)


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    journal = Journal(tmp_path, 0, tensorboard=True)
    journal.write({"step": 1, "loss": {"pages": 3.0}})
    journal.close()
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_full_disk_ends_tensorboard_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Board:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flamvid.train.journal._board", lambda folder, step: Board())
    journal = Journal(tmp_path, 0, tensorboard=True)
    journal.write({"step": 1, "loss": {"pages": 3.0}})
    assert journal.problem == "can't write for TensorBoard: No space left on device"
    journal.write({"step": 2, "loss": {"pages": 2.0}})
    journal.close()
    assert [entry["step"] for entry in read_journal(tmp_path)] == [1, 2]


def test_the_thread_of_a_board_on_a_full_disk_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = pytest.importorskip("tensorboard.summary.writer.record_writer")
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    journal = Journal(tmp_path, 0, tensorboard=True)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(written.RecordWriter, "write", full)
    others = set(threading.enumerate()) - {threading.main_thread()}
    journal.write({"step": 1, "loss": {"pages": 3.0}})
    for thread in others:
        if type(thread).__module__.startswith("tensorboard."):
            thread.join(60)
    journal.write({"step": 2, "loss": {"pages": 2.0}})
    assert journal.problem == "can't write for TensorBoard: No space left on device"
    journal.close()
    assert told == []
    failed = threading.Thread(target=full)  # of anyone else it is told
    failed.start()
    failed.join()
    assert len(told) == 1


def test_weights_and_biases_knows_a_run_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, list[tuple[int, dict[str, float]]]] = {}

    class Run:
        def __init__(self, lines: list[tuple[int, dict[str, float]]]) -> None:
            self.lines = lines

        def log(self, values: dict[str, float], step: int) -> None:
            self.lines.append((step, values))

        def finish(self) -> None:
            self.lines.append((-1, {}))

    def init(*, project: str, name: str, id: str, dir: str, resume: str) -> Run:
        assert (project, name, resume) == ("films", "run", "allow")
        return Run(logged.setdefault(id, []))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for place, first in (("a", 0), ("b", 0), ("a", 1)):
        folder = tmp_path / place / "run"
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(folder, first, wandb="films")
        journal.write({"step": first + 1, "loss": {"pages": 3.0}})
        journal.close()
    lines = {"loss/pages": 3.0}
    assert list(logged.values()) == [
        [(1, lines), (-1, {}), (2, lines), (-1, {})],
        [(1, lines), (-1, {})],
    ]
