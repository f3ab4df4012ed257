"""The one live status line of a training run.

Imports nothing of the package.
"""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0

log = logging.getLogger(__name__)


class StatusLine:
    """A bar on a terminal; elsewhere one line in the log every thirty seconds.

    Args:
        total: steps of the whole run.
        start: steps done before.
        is_shown: false on ranks other than 0.
    """

    def __init__(self, total: int, *, start: int, is_shown: bool) -> None:
        self._total = total
        self._start = self._step = start
        self._begun = self._last_line = time.monotonic()
        self._is_shown = is_shown
        on_terminal = is_shown and sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, initial=start, unit="step", leave=True) if on_terminal else None
        )

    def update(self, step: int, text: str) -> None:
        """Say that ``step`` steps are done, with ``text`` on how it goes."""
        if self._bar:
            self._bar.update(step - self._step)
            self._bar.set_postfix_str(text, refresh=False)
        elif self._is_shown and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            log.info("step %d/%d  %s  ETA %s", step, self._total, text, self._remaining(step))
        self._step = step

    def close(self) -> None:
        """End the line."""
        if self._bar:
            self._bar.close()

    def _remaining(self, step: int) -> str:
        done = step - self._start
        if not done:
            return "unknown"
        seconds = int((time.monotonic() - self._begun) / done * (self._total - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
