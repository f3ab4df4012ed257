"""A tiny search space whose networks wait while a file is there, so that tests can interfere."""

import os
import time

from tiny_space import TinySpace
from torch import Tensor

NAME = "held_space:HeldSpace"
HOLD = "SPOS_TEST_HOLD"  # environment variable: path of the file


class HeldSpace(TinySpace):
    """`TinySpace`, in no hurry."""

    def forward(self, x: Tensor) -> Tensor:
        hold = os.environ.get(HOLD, "")
        if os.path.exists(hold):
            open(hold + ".reached", "w").close()
        while os.path.exists(hold):
            time.sleep(0.01)
        return super().forward(x)
