"""The three scripts on tiny data, and the flags that their runs have in common."""

from dataclasses import dataclass
from pathlib import Path

from forked import Finished, run_script
from tiny_space import TINY

OPTIONS = {"image_size": 8, "num_classes": 3}
COMMON = ("--space", TINY, "--device", "cpu", "--workers", "0")
SUPERNET = (*COMMON, "--image-size", "8", "--held-out-per-class", "4", "--batch-size", "6",
            "--calibration-images", "20", "--val-paths", "2")  # fmt: skip
SCRATCH = (*COMMON, "--batch-size", "6")


@dataclass(frozen=True)
class Workspace:
    """A folder with ``data``, an architecture ``arch.json`` and the runs made of them."""

    folder: Path

    def supernet(self, *words: object, run: str = "supernet", **arguments) -> Finished:
        """Run ``supernet.py`` on the tiny data."""
        return run_script("supernet.py", *self.supernet_words(run, *words), folder=self.folder,
                          **arguments)  # fmt: skip

    def scratch(self, *words: object, run: str = "scratch", **arguments) -> Finished:
        """Run ``scratch.py`` on the tiny data."""
        return run_script("scratch.py", *self.scratch_words(run, *words), folder=self.folder,
                          **arguments)  # fmt: skip

    def tester(self, *words: object, run: str = "supernet", **arguments) -> Finished:
        """Run ``tester.py`` on the tiny supernet."""
        words = ("--run-dir", run, *COMMON, *words)
        return run_script("tester.py", *words, folder=self.folder, **arguments)

    def supernet_words(self, run: str, *words: object) -> list[object]:
        """Words of a command; later ones count."""
        return ["--data-dir", "data", "--run-dir", run, *SUPERNET, "--epochs", 3, *words]

    def scratch_words(self, run: str, *words: object) -> list[object]:
        """Words of a command; later ones count."""
        return ["--fixed-arc", "arch.json", "--data-dir", "data", "--run-dir", run, *SCRATCH,
                "--epochs", 3, *words]  # fmt: skip
