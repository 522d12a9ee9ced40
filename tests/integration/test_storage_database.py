"""The store's own promises: schema, files, back-pressure and a clean end."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text, type_coerce, union_all
from sqlalchemy.exc import OperationalError

from ledger_stores import PostgreSQL, admission, settlement
from skillcell.core.errors import Fault, FaultKind
from skillcell.metering.ledger import Ledger
from skillcell.storage import schema
from skillcell.storage.database import Database, DatabaseSettings
from skillcell.storage.diagnosis import look
from skillcell.storage.migrate import newest_revision
from skillcell.storage.tables_registry import skill_versions
from skillcell.stores import checks_of


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, schema.metadata))


async def test_models_and_migrations_agree_on_sqlite(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:
        assert await database.read(differences) == []


async def test_models_and_migrations_agree_on_postgresql(cluster: PostgreSQL) -> None:
    async with await Database.open(cluster.new_url()) as database:
        assert await database.read(differences) == []


async def test_a_store_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with await Database.open(url) as database:
        await database.write(
            lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'")).close()
        )
    with pytest.raises(Fault) as caught:
        await Database.open(url)
    assert (caught.value.kind, caught.value.reason) == (FaultKind.FAILED_PRECONDITION, "STORE_NEWER")
    assert caught.value.metadata == {"revision": "9999"}


async def test_the_files_of_the_store_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with await Database.open(f"sqlite:///{tmp_path}/data/ledger.db"):
            modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()}
    finally:
        os.umask(before)
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


async def test_the_writer_runs_with_full_durability(tmp_path: Path) -> None:
    def pragmas(connection: Connection) -> tuple[object, ...]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return tuple(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names)

    async with await Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:
        assert await database.write(pragmas) == ("wal", 2, 1)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "nonsense", ""])
async def test_a_url_that_is_no_durable_store_is_refused(url: str) -> None:
    with pytest.raises(Fault) as caught:
        await Database.open(url)
    assert caught.value.violations[0].field == "database.url"


@pytest.mark.parametrize("rest", [":port/name", "/name?nonsense=1", "/name?sslmode=nonsense", "[::/name"])
async def test_a_url_with_a_password_is_refused_without_telling_it(rest: str, caplog: pytest.LogCaptureFixture) -> None:
    word = secrets.token_hex()
    with pytest.raises(Fault) as caught:
        await Database.open(f"postgresql://teller:{word}@127.0.0.1{rest}")
    chain: BaseException | None
    chain, told = caught.value, caplog.text
    while chain is not None:
        told += "".join(traceback.format_exception(chain))
        chain = chain.__cause__ or chain.__context__
    assert caught.value.reason in ("INVALID_FIELD", "LEDGER_UNAVAILABLE")
    assert word not in told


async def test_versions_are_sorted_by_bytes_whatever_the_locale_of_the_database(cluster: PostgreSQL) -> None:
    words = ["1alpha!", "1Beta!", "1-a!", "0000000001!"]
    async with await Database.open(cluster.new_url()) as database:
        made = union_all(*(select(type_coerce(word, skill_versions.c.sort_key.type).label("word")) for word in words))
        ordered = select(made.subquery().c.word).order_by("word")
        assert sorted(words) != await database.read(lambda connection: list(connection.execute(ordered).scalars()))
        of_column = text(
            "SELECT collation_name FROM information_schema.columns "
            "WHERE table_name = 'skill_versions' AND column_name = 'sort_key'"
        )
        assert await database.read(lambda connection: connection.execute(of_column).scalar_one()) == "C"


async def test_a_role_that_may_not_make_tables_is_told_the_fix(cluster: PostgreSQL) -> None:
    url = cluster.new_url()
    async with await Database.open(url) as database:
        await database.write(lambda connection: connection.execute(text("CREATE ROLE guest LOGIN")).close())
    with pytest.raises(Fault) as caught:
        await Database.open(cluster.new_url().replace("postgres@", "guest@"))
    assert (caught.value.kind, caught.value.reason) == (FaultKind.FAILED_PRECONDITION, "STORE_FORBIDDEN")
    assert "GRANT CREATE" in caught.value.message


async def test_options_of_the_url_hold_besides_ours(cluster: PostgreSQL) -> None:
    def settings(connection: Connection) -> list[str]:
        names = ("work_mem", "synchronous_commit", "timezone", "application_name")
        return [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]

    url = cluster.new_url() + "&options=-c%20work_mem%3D7MB%20-c%20synchronous_commit%3Doff&application_name=bank"
    async with await Database.open(url) as database:
        assert await database.write(settings) == ["7MB", "on", "UTC", "bank"]


async def test_a_server_that_does_not_answer_is_unavailable() -> None:
    with pytest.raises(Fault) as caught:
        await Database.open("postgresql://postgres@/x?host=/nonexistent")
    assert caught.value.reason == "LEDGER_UNAVAILABLE"


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(Fault) as caught:
        await Database.open(f"sqlite:///{tmp_path}/ledger.db")
    assert caught.value.reason == "LEDGER_UNAVAILABLE"


async def test_a_read_can_not_write(tmp_path: Path) -> None:
    async with await Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:
        with pytest.raises(Fault):
            await database.read(lambda connection: connection.execute(text("DELETE FROM ledger_head")).close())
        with pytest.raises(OperationalError):
            await database.read(lambda connection: connection.execute(text("SELECT nonsense FROM nowhere")).close())


async def test_a_full_queue_holds_writers_back_and_then_serves_them(tmp_path: Path) -> None:
    gate, began = threading.Event(), threading.Event()

    def hold(_: Connection) -> None:
        began.set()
        gate.wait(30)

    settings = DatabaseSettings(max_waiting=3)
    async with await Database.open(f"sqlite:///{tmp_path}/ledger.db", settings) as database:
        ledger = Ledger(database)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(database.write(hold))
            await asyncio.to_thread(began.wait, 30)
            admissions = [tasks.create_task(ledger.admit(admission())) for _ in range(10)]
            await asyncio.sleep(0)
            assert len(database._writer._jobs) == 2
            gate.set()
        assert all(task.result().created for task in admissions)


async def test_a_canceled_write_is_still_kept_and_gives_its_place_back(tmp_path: Path) -> None:
    gate, began = threading.Event(), threading.Event()

    def hold(_: Connection) -> None:
        began.set()
        gate.wait(30)

    settings = DatabaseSettings(max_waiting=2)
    async with await Database.open(f"sqlite:///{tmp_path}/ledger.db", settings) as database:
        ledger, given = Ledger(database), admission()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(database.write(hold))
            await asyncio.to_thread(began.wait, 30)
            canceled = tasks.create_task(ledger.admit(given))
            await asyncio.sleep(0)
            canceled.cancel()
            gate.set()
        assert (await ledger.admit(admission(request_id=given.request_id))).created is False


async def test_closing_writes_what_waits_and_refuses_what_comes_later(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    database = await Database.open(url)
    ledger = Ledger(database)
    waiting = [asyncio.ensure_future(ledger.admit(admission())) for _ in range(50)]
    await asyncio.sleep(0)
    await database.close()
    assert all(result.created for result in await asyncio.gather(*waiting))
    with pytest.raises(Fault, match="retry"):
        await ledger.admit(admission())
    assert not [thread for thread in threading.enumerate() if thread.name == "skillcell-writer" and thread.is_alive()]
    async with await Database.open(url) as again:
        assert len(await Ledger(again).unsettled()) == 50


async def test_a_server_that_restarts_is_found_again(cluster: PostgreSQL) -> None:
    async with await Database.open(cluster.new_url()) as database:
        ledger = Ledger(database)
        await ledger.admit(admission())
        assert len(await ledger.unsettled()) == 1
        await asyncio.to_thread(cluster.stop)
        for ask in (lambda: ledger.admit(admission()), ledger.unsettled):
            with pytest.raises(Fault) as caught:
                await ask()
            assert caught.value.reason == "LEDGER_UNAVAILABLE"
        assert not ledger.writable
        await asyncio.to_thread(cluster.start)
        assert await ledger.probe()
        assert (await ledger.admit(admission())).created
        assert len(await ledger.unsettled()) == 2


async def test_two_gateways_on_one_server_share_one_chain(cluster: PostgreSQL) -> None:
    url = cluster.new_url()
    async with await Database.open(url) as left, await Database.open(url) as right:
        ledgers = (Ledger(left), Ledger(right))

        async def call(number: int) -> None:
            given = admission(tenant=f"t{number % 3}")
            await ledgers[number % 2].admit(given)
            await ledgers[(number // 2) % 2].settle(settlement(given))

        await asyncio.gather(*[call(number) for number in range(80)])
        same = "0d5f4b1e-5b51-4a5c-9f0e-0a7c1f1f8a11"
        results = await asyncio.gather(*[ledgers[number % 2].admit(admission(request_id=same)) for number in range(40)])
        assert sum(result.created for result in results) == 1
        found = await ledgers[0].verify()
    assert (found.whole, found.records) == (True, 80)


async def test_doctor_tells_what_a_database_lacks(cluster: PostgreSQL) -> None:
    url = cluster.new_url()
    fresh = look(url)
    assert (fresh.revision, fresh.may_create, fresh.replica) == ("", True, False)
    assert [check.ok for check in checks_of(fresh)] == [True, True, True]
    async with await Database.open(url):
        assert look(url).revision == newest_revision()
    for spoilt, which in (
        (replace(fresh, version_number=110000), "database"),
        (replace(fresh, may_create=False), "database schema"),
        (replace(fresh, revision="9999"), "database schema"),
        (replace(fresh, replica=True), "database schema"),
        (replace(fresh, ahead_seconds=-60.0), "database clock"),
    ):
        assert [(check.name, bool(check.fix)) for check in checks_of(spoilt) if not check.ok] == [(which, True)]
    with pytest.raises(Fault) as caught:
        look("postgresql://postgres@/x?host=/nonexistent")
    assert caught.value.reason == "LEDGER_UNAVAILABLE"


async def test_gateways_that_start_at_once_migrate_one_after_the_other(cluster: PostgreSQL) -> None:
    url = cluster.new_url()
    opened = await asyncio.gather(*(Database.open(url) for _ in range(4)))
    try:
        ledgers = [Ledger(database) for database in opened]
        given = [admission() for _ in ledgers]
        await asyncio.gather(*(ledger.admit(one) for ledger, one in zip(ledgers, given, strict=True)))
        records = await asyncio.gather(
            *(ledger.settle(settlement(one)) for ledger, one in zip(ledgers, given, strict=True))
        )
        assert sorted(record.sequence for record in records) == [1, 2, 3, 4]
        assert (await ledgers[0].verify()).whole
    finally:
        for database in opened:
            await database.close()
