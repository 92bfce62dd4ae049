"""The store as the other services see it: one object with every question and every write, put together from this package's parts.

Gateway, controller and command line open it with `open_store` and call it from worker threads: every method blocks, is one transaction
(retention excepted), and may be repeated after an error without doubling anything.
"""

from __future__ import annotations

from services.common.clock import Clock, SystemClock
from services.store.closing import Closing
from services.store.costs import Costs
from services.store.database import Database, parse_url
from services.store.experiments import Experiments
from services.store.history import History
from services.store.housekeeping import Housekeeping
from services.store.judging import Judging
from services.store.recording import Recording
from services.store.rollouts import Rollouts
from services.store.routing import Routing
from services.store.samples import Samples
from services.store.standing import Standings
from services.store.streams import Streams
from services.store.usage import Usage
from services.store.visits import Visits


class Store(
    Recording,
    Streams,
    Routing,
    Closing,
    Visits,
    Judging,
    Samples,
    Rollouts,
    Experiments,
    Standings,
    History,
    Usage,
    Costs,
    Housekeeping,
):
    """One database. Thread-safe; several processes may have it open.

    Every method raises StoreUnavailable (repeat later), StoreCorrupt, SchemaMismatch, or plain StoreError where a row is refused.
    """

    def __init__(self, url: str, database: Database) -> None:
        self.url = url
        self._database = database

    def close(self) -> None:
        """Close the connections; the store may be used again and opens new ones."""
        self._database.close()

    def now(self) -> float:
        """The store's clock, seconds since the epoch: the one that all gateways and the controller go by."""
        return self._database.now()

    def ping(self) -> None:
        """Return if the database answers and has this program's schema, else raise."""
        with self._database.read():
            pass


def open_store(url: str, clock: Clock | None = None) -> Store:
    """The store at `url`: `sqlite:///folder/understudy.db`, or `postgresql://...` through psycopg 3.

    Connects with the first call, not here, so that a gateway can start while the database is away; does not migrate.

    Args:
        url: the database.
        clock: the machine's, for SQLite; PostgreSQL has its own, which is used instead.

    Raises:
        StoreError: the URL is of neither database.
    """
    return Store(url, Database(parse_url(url), clock or SystemClock()))
