"""A client that comes back with its last id gets what it missed, whatever order it was committed in, or fetches."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import connection

import pgsignals
from pgsignals.live import resume
from pgsignals.live.access import Access
from pgsignals.live.outbox import Frame

from .conftest import connect
from .ledger.models import Account
from .streaming import client, relay, write

pytestmark = pytest.mark.django_db(transaction=True)

ACCOUNT = "ledger.account"
INSERT = "INSERT INTO ledger_account (id, owner, balance, note) VALUES (%s, %s, 0, '')"


@pytest.fixture(autouse=True)
def layer(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}


@pytest.fixture
def admin(transactional_db: None) -> User:
    return User.objects.create_superuser("ada")


def keys(frame: Frame) -> list[Any]:
    return [key for _, key, _ in frame.said["events"]]


def test_what_was_missed_comes_first_and_nothing_twice(admin: User) -> None:
    async def main() -> None:
        async with relay():
            async with client(admin, ACCOUNT) as first:
                await first.next()
                await write(INSERT, 1, "")
                assert keys(await first.event()) == [1]
            await write(INSERT, 2, "")
            await write("UPDATE ledger_account SET balance = 5 WHERE id = 1")
            await write("DELETE FROM ledger_account WHERE id = 2")
            async with client(admin, ACCOUNT, since=first.ids) as second:
                subscribed = await second.next()
                assert subscribed.said["resumed"] == [ACCOUNT]
                missed = await second.next()
                assert missed.said["events"] == [["delete", 2, []], ["update", 1, ["balance"]]]
                assert missed.said["resumed"] is True
                await write(INSERT, 3, "")
                assert 3 in keys(await second.event())

    asyncio.run(main())


def test_a_slow_transaction_that_was_overtaken_is_not_lost(admin: User) -> None:
    """Its number in the log is lower than that of the last event that the client had seen."""

    async def main() -> None:
        async with relay():
            with connect() as slow:
                async with client(admin, ACCOUNT) as first:
                    await first.next()
                    with slow.transaction():
                        slow.execute(INSERT, [1, "slow"])
                        await write(INSERT, 2, "quick")
                        assert keys(await first.event()) == [2]
                        async with client(admin, ACCOUNT, since=first.ids) as meanwhile:
                            assert (await meanwhile.next()).said["resumed"] == [ACCOUNT]
                            here = meanwhile.ids
            for ids in (first.ids, here):
                async with client(admin, ACCOUNT, since=ids) as second:
                    await second.next()
                    assert keys(await second.next()) == [1]

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(4))
def test_whoever_comes_and_goes_hears_of_everything_that_was_committed(admin: User, seed: int) -> None:
    """Transactions of any length overlap in any order; the client may leave at any moment."""
    choose = random.Random(seed)
    committed: set[int] = set()
    heard: set[int] = set()
    open_ones: list[tuple[psycopg.Connection, list[int]]] = []

    async def main() -> None:
        ids: dict[str, str] = {}
        number = 0
        async with relay():
            async with client(admin, ACCOUNT) as first:
                await first.next()
                ids = first.ids
            for _ in range(12):
                async with client(admin, ACCOUNT, since=ids) as one:
                    assert (await one.next()).said["resumed"] == [ACCOUNT]
                    for _ in range(choose.randint(1, 5)):
                        number += 1
                        if open_ones and choose.random() < 0.5:
                            writer, written = open_ones.pop(choose.randrange(len(open_ones)))
                        else:
                            writer, written = connect(), []
                            writer.autocommit = False
                        writer.execute(INSERT, [number, ""])
                        written.append(number)
                        if choose.random() < 0.6:
                            finish(writer, written)
                        else:
                            open_ones.append((writer, written))
                    # It reads some of what there is, or nothing.
                    for _ in range(choose.randint(0, 2)):
                        if committed <= heard:
                            break
                        heard.update(keys(await one.event()))
                    ids = dict(one.ids)
            while open_ones:
                finish(*open_ones.pop())
            async with client(admin, ACCOUNT, since=ids) as last:
                assert (await last.next()).said["resumed"] == [ACCOUNT]
                while not committed <= heard:
                    heard.update(keys(await last.event()))

    def finish(writer: psycopg.Connection, written: list[int]) -> None:
        writer.commit()
        writer.close()
        committed.update(written)

    try:
        asyncio.run(main())
    finally:
        for writer, _ in open_ones:
            writer.close()
    assert committed == heard


def test_who_has_missed_too_much_fetches_anew(admin: User) -> None:
    """More keys than a message may name are one "refetch"; more events than are looked at are a gap."""

    async def main() -> None:
        async with client(admin, ACCOUNT) as first:
            await first.next()
        await write("INSERT INTO ledger_account (owner, balance, note) SELECT '', 0, '' FROM generate_series(1, 300)")
        async with client(admin, ACCOUNT, since=first.ids) as second:
            assert (await second.next()).said["resumed"] == [ACCOUNT]
            assert (await second.next()).said["refetch"] is True
        many = f"generate_series(1, {resume.LOOK_AT})"
        await write(f"INSERT INTO ledger_account (owner, balance, note) SELECT '', 0, '' FROM {many}")
        async with client(admin, ACCOUNT, since=first.ids) as third:
            assert (await third.next()).said["resumed"] == []
            gap = await third.next()
            assert (gap.type, gap.topic, gap.said) == ("gap", ACCOUNT, {"cause": "away for too long"})

    asyncio.run(main())


def aged(token: str, seconds: float) -> str:
    parsed = resume.parse(token)
    assert parsed is not None
    return str(resume.Token(parsed.cluster, int(time.time() - seconds), parsed.since, parsed.until, parsed.last).text())


def test_who_was_away_for_too_long_fetches_anew(admin: User, settings: Any) -> None:
    """An hour, or half of what the log is kept for: before anything that was missed may be deleted."""

    async def resumed(token: str) -> Any:
        async with client(admin, ACCOUNT, since={ACCOUNT: token}) as one:
            return (await one.next()).said["resumed"]

    async def main() -> None:
        async with client(admin, ACCOUNT) as first:
            await first.next()
        token = first.ids[ACCOUNT]
        assert await resumed(aged(token, 3500)) == [ACCOUNT]
        assert await resumed(aged(token, 3700)) == []
        assert await resumed(aged(token, -60)) == []
        settings.PGSIGNALS = {"LOG_KEEP": 100.0}
        assert await resumed(aged(token, 60)) == []

    asyncio.run(main())


def test_an_id_of_another_server_means_nothing_here(admin: User) -> None:
    """A log that was restored elsewhere has other transactions' numbers."""

    async def main() -> None:
        async with client(admin, ACCOUNT) as first:
            await first.next()
        token = resume.parse(first.ids[ACCOUNT])
        assert token is not None
        elsewhere = str(resume.Token("1", token.at, token.since, token.until, token.last).text())
        async with client(admin, ACCOUNT, since={ACCOUNT: elsewhere}) as second:
            assert (await second.next()).said["resumed"] == []
            assert (await second.next()).type == "gap"

    asyncio.run(main())


NOW = int(time.time())


def token_of(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


NO_IDS = [
    "",
    "x",
    "é",
    5,
    None,
    [],
    "x" * 10_000,
    base64.urlsafe_b64encode(b"[" * 1000).decode(),
    token_of(),
    token_of("1", NOW, "1:1:", "1:1:"),
    token_of(1, NOW, "1:1:", "1:1:", 0),
    token_of("1", NOW, "1:1:", "1:1:", -1),
    token_of("1", NOW, "1:1:", "1:1:", True),
    token_of("1", NOW, "1:1:", "1:1:", 2**63),
    token_of("1", 1.5, "1:1:", "1:1:", 0),
    token_of("1", NOW, "0:0:", "1:1:", 0),
    token_of("1", NOW, "2:1:", "1:1:", 0),
    token_of("1", NOW, "1:5:2,2", "1:1:", 0),
    token_of("1", NOW, "1:5:3,2", "1:1:", 0),
    token_of("1", NOW, "1:5:5", "1:1:", 0),
    token_of("1", NOW, "1:1:", "1:1:'; DROP TABLE x", 0),
    token_of("1", NOW, "1:1:\n", "1:1:", 0),
    token_of("1", NOW, "1:1:", "9" * 30 + ":1:", 0),
    token_of("1", NOW, "1:1:", "1:\u0661:", 0),
]


# By numbers: names that hold the time would be others in each process that runs tests.
@pytest.mark.parametrize("number", range(len(NO_IDS)))
def test_what_is_no_id_of_ours_is_a_gap(admin: User, number: int) -> None:
    text: Any = NO_IDS[number]
    assert resume.parse(text) is None

    async def main() -> None:
        async with client(admin, ACCOUNT, since={ACCOUNT: text}) as one:
            assert (await one.next()).said["resumed"] == []
            assert (await one.next()).type == "gap"

    asyncio.run(main())


def test_every_snapshot_that_is_let_through_is_one_to_postgresql(transactional_db: None) -> None:
    """So that nobody can make a query fail. What PostgreSQL takes, it gives back."""
    choose = random.Random(1)
    tried = 0
    with connection.cursor() as cursor:
        for _ in range(2000):
            numbers = [str(choose.choice([0, 1, 2, 3, 5, 9, 10**17, 10**18 - 1])) for _ in range(choose.randint(2, 5))]
            text = f"{numbers[0]}:{numbers[1]}:{','.join(numbers[2:])}"
            if resume._is_snapshot(text):
                tried += 1
                cursor.execute("SELECT %s::pg_snapshot::text", [text])
                assert cursor.fetchone() == (text,)
    assert tried > 50


def test_an_id_that_was_made_up_costs_no_more_than_any_other(admin: User) -> None:
    """From the log's beginning on, or of transactions that will never be: the query looks at as many rows."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ledger_account (owner, balance, note) SELECT '', 0, '' FROM generate_series(1, 20000)"
        )
        cursor.execute("ANALYZE pgsignals_log")
        many = ",".join(map(str, range(1, 100)))
        for since in ("1:1:", "1:100:" + many, "1:3:2", "900000000:900000000:"):
            given = {"since": since, "until": "900000000:900000000:", "last": 0, "most": resume.LOOK_AT, "keys": 200}
            cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + resume._MISSED, {**given, "source": ACCOUNT})
            plan = cursor.fetchone()[0][0]["Plan"]
            assert rows_of(plan) < 4 * resume.LOOK_AT, since
    here = resume.start()
    assert here is not None
    assert resume.missed(ACCOUNT, here) is not None
    assert resume.missed(ACCOUNT, replace(here, since="1:1:", until="1:1:")) is None


def rows_of(plan: Any) -> int:
    """The most rows that one scan of the log looked at."""
    own = plan["Actual Rows"] * plan["Actual Loops"] + plan.get("Rows Removed by Filter", 0)
    here = int(own) if plan.get("Relation Name") == "pgsignals_log" else 0
    return max([here, *(rows_of(one) for one in plan.get("Plans", []))])


def test_without_the_permission_an_id_brings_nothing(admin: User) -> None:
    """Neither what was missed, nor whether anything was."""

    async def main() -> None:
        async with client(admin, ACCOUNT) as first:
            await first.next()
        await write(INSERT, 1, "")
        nobody = await User.objects.acreate_user("bob")
        with pytest.raises(PermissionDenied):
            async with client(nobody, ACCOUNT, since=first.ids) as second:
                await second.next()

    asyncio.run(main())


class OwnAccounts(Access):
    """Everybody hears of accounts of their own, also of those that are deleted."""

    def filter_events(self, user: Any, events: Any) -> Any:
        return [one for one in events if user.username in {side["owner"] for side in (one.old, one.new) if side}]


def test_what_was_missed_is_filtered_as_everything_is(admin: User, settings: Any) -> None:
    settings.PGSIGNALS = {"LIVE_FIELDS": {ACCOUNT: ["owner"]}}

    async def main() -> None:
        async with relay():
            async with client(admin, ACCOUNT, access=OwnAccounts()) as first:
                await first.next()
                await write(INSERT, 1, "ada")
                await write(INSERT, 2, "bob")
                assert keys(await first.event()) == [1]
            await write("DELETE FROM ledger_account")
            async with client(admin, ACCOUNT, since=first.ids, access=OwnAccounts()) as second:
                await second.next()
                assert (await second.next()).said["events"] == [["delete", 1, []]]

    asyncio.run(main())


def test_an_object_is_resumed_by_itself(admin: User) -> None:
    async def main() -> None:
        topic = f"{ACCOUNT}:2"
        async with client(admin, topic) as first:
            await first.next()
        await write(INSERT, 1, "")
        await write(INSERT, 2, "")
        async with client(admin, topic, since=first.ids) as second:
            assert (await second.next()).said["resumed"] == [topic]
            assert (await second.next()).said["events"] == [["insert", 2, []]]

    asyncio.run(main())


class Listening(Access):
    def can_subscribe(self, user: Any, topic: str) -> bool:
        return True


def test_of_a_channel_durable_messages_are_resumed_and_the_rest_is_a_gap(admin: User) -> None:
    """A fast message is nowhere to be found, so the client is told that there may have been some."""

    async def main() -> None:
        topic = "channel:ledger.account"
        async with client(admin, topic, access=Listening()) as first:
            await first.next()
        await pgsignals.apublish("ledger.account", {"n": 1}, durable=True)
        await Account.objects.acreate()
        async with client(admin, topic, since=first.ids, access=Listening()) as second:
            assert (await second.next()).said["resumed"] == []
            assert (await second.next()).said["payloads"] == [{"n": 1}]
            assert (await second.next()).type == "gap"

    asyncio.run(main())


def test_a_model_whose_events_are_fast_has_no_id_and_a_gap_after_each_return(admin: User) -> None:
    async def main() -> None:
        async with client(admin, "shop.order") as first:
            assert (await first.next()).said["ids"] == {}
        async with client(admin, "shop.order", since={"shop.order": ""}) as second:
            assert (await second.next()).said["resumed"] == []
            assert (await second.next()).type == "gap"

    asyncio.run(main())


def test_who_is_cut_off_before_what_was_missed_has_arrived_comes_back_with_the_old_id(admin: User) -> None:
    async def main() -> None:
        async with client(admin, ACCOUNT) as first:
            await first.next()
        await write(INSERT, 1, "")
        async with client(admin, ACCOUNT, since=first.ids) as second:
            await second.next()
        async with client(admin, ACCOUNT, since=second.ids) as third:
            await third.next()
            assert keys(await third.next()) == [1]
        async with client(admin, ACCOUNT, since=third.ids) as fourth:
            assert (await fourth.next()).said["resumed"] == [ACCOUNT]
            await write("UPDATE ledger_account SET balance = 1")
        async with client(admin, ACCOUNT, since=fourth.ids) as fifth:
            await fifth.next()
            assert (await fifth.next()).said["events"] == [["update", 1, ["balance"]]]

    asyncio.run(main())


def test_several_topics_share_an_id() -> None:
    ids = {"a.b": "one", "a.c": "one", "a.d": "two"}
    assert resume.unbundle(resume.bundle(ids), ["a.b", "a.c", "a.d", "a.e"]) == ids
    assert resume.unbundle(resume.bundle(ids), ["a.d"]) == {"a.d": "two"}
    assert resume.bundle({str(number): "x" * 100 + str(number) for number in range(100)}) == resume.bundle({}) != ""


@pytest.mark.parametrize("text", ["", "x", "é", "x" * 10_000, base64.urlsafe_b64encode(b"[1]").decode()])
def test_what_is_no_shared_id_of_ours_holds_nothing(text: str) -> None:
    assert resume.unbundle(text, ["a.b"]) == {}
