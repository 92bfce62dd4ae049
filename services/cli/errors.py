"""What a command line user is told when something does not work: one line that says what to do, and an exit code.

    CliError            1  failure
    ├── UsageFault      2  wrong option, argument or setting
    ├── NotFound        3  no such service or rollout
    └── Away            4  what holds the data cannot be reached; it may be back later
        ├── StoreAway      the store
        └── ClusterAway    the cluster's API server

Exit code 0 is success. `main` prints the text and exits; no other module prints errors or exits.
"""

from __future__ import annotations

from typing import ClassVar


class CliError(Exception):
    """An expected failure; its text is complete and tells the next step."""

    exit_code: ClassVar[int] = 1


class UsageFault(CliError):
    exit_code = 2


class NotFound(CliError):
    exit_code = 3


class Away(CliError):
    exit_code = 4


class StoreAway(Away):
    pass


class ClusterAway(Away):
    pass
