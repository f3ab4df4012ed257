"""What a sampler is: something that says which path a training step trains.

Imports `spos.architecture`; never torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from spos.architecture import Candidate


class PathSampler(Protocol):
    """Chooses the path of a training step.

    The path depends on the step and on what the sampler was built with, so that all ranks train the
    same path without talking about it and a resumed run continues with the path it would have had.
    """

    def sample(self, step: int) -> dict[str, Candidate]:
        """The choices of training step ``step``."""
        ...


@runtime_checkable
class ResumableSampler(Protocol):
    """A sampler whose paths build on those before them.

    They are functions of (seed, step) all the same: a state that was stored saves a resumed run
    from walking up to its step again, and changes nothing else.
    """

    def sample(self, step: int) -> dict[str, Candidate]:
        """The choices of training step ``step``."""
        ...

    def state(self) -> dict[str, Any]:
        """Numbers, lists and dictionaries, for a checkpoint."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        ...
