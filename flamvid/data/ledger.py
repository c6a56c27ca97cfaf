"""Samples that can't be read: named once each, and left out, up to a limit."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flamvid.data.collate import Bad
from flamvid.data.corpus import CorpusConfig
from flamvid.errors import SourceError

__all__ = ["Ledger"]

_log = logging.getLogger("flamvid.data")


class Ledger:
    """Names what could not be read, once each, and ends the run where that is too much.

    samples: of each corpus. later: whether the limit is that of all processes together, which
    `share` sees to; else each sample is counted as it is met. `news` are those not yet shared.
    """

    def __init__(
        self,
        path: Path | None,
        corpora: Sequence[CorpusConfig],
        samples: Mapping[str, int],
        later: bool = False,
    ) -> None:
        self.path, self.samples, self.later = path, samples, later
        self.limits = {c.name: c.max_bad for c in corpora}
        self.known: dict[str, list[str]] = {c.name: [] for c in corpora}
        self.news: list[tuple[str, str, str]] = []

    def add(self, corpus: str, bad: Sequence[Bad]) -> None:
        """Count samples of a corpus that are new; SourceError where they are too many."""
        known = self.known[corpus]
        for sample in bad:
            if sample.id in known:
                continue
            known.append(sample.id)
            self._write(corpus, sample)
            if self.later:
                self.news.append((corpus, sample.id, sample.reason))
            else:
                self._check(corpus, sample.id, sample.reason)

    def share(self, news: Iterable[Sequence[str]]) -> None:
        """Count what any process met, in the same order in all: all end together, or none."""
        last: dict[str, tuple[str, str]] = {}
        for corpus, name, reason in news:
            last[corpus] = (name, reason)
            if name not in self.known[corpus]:
                self.known[corpus].append(name)
        self.news.clear()
        for corpus, (name, reason) in last.items():
            self._check(corpus, name, reason)

    def _check(self, corpus: str, name: str, reason: str) -> None:
        """The last that was added is named."""
        count = len(self.known[corpus])
        if count == self.samples[corpus]:
            raise SourceError(
                f"corpus {corpus}: none of its {count} samples can be read; the last is "
                f"{name}: {reason}"
            )
        if count > self.limits[corpus]:
            raise SourceError(
                f"corpus {corpus}: {count} samples can't be read, max_bad is "
                f"{self.limits[corpus]}; the last is {name}: {reason}"
            )

    def _write(self, corpus: str, sample: Bad) -> None:
        if self.path is None:
            return
        line = json.dumps({"corpus": corpus, "sample": sample.id, "reason": sample.reason})
        try:
            # A run that was killed after its last snapshot meets some again.
            if self.path.exists() and line in self.path.read_text().splitlines():
                return
            # One write at the file's end: processes may share a ledger.
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(file, f"{line}\n".encode())
            finally:
                os.close(file)
        except OSError as error:  # a full disk stops no run
            _log.warning("can't write %s: %s; it lacks %s", self.path, error.strerror, line)
