"""`nnictl` that gives NNI's server half a minute to start: python -m spos.search.patient_nnictl ...

Imports NNI.

NNI 3.0 asks its server thrice in three seconds, then kills it: too soon on a machine that is busy.
"""

from __future__ import annotations

import functools

SECONDS = 30  # one question a second


def main() -> None:
    """Run `nnictl` with the arguments of this process."""
    from nni.experiment import launcher
    from nni.tools.nnictl.nnictl import parse_args

    launcher._check_rest_server = functools.partial(launcher._check_rest_server, retry=SECONDS)
    parse_args()


if __name__ == "__main__":
    main()
