"""What durable declarations and messages leave in the log."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from django.db import connection, transaction
from django.db.models import Model

import pgsignals
from pgsignals import Notify, PgEvent, publish
from pgsignals.decode import Decoder
from pgsignals.models import LogEntry

from .kinds.models import Everything
from .ledger.models import Account, Entry
from .working import clear_log

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _empty(transactional_db: object) -> None:
    clear_log()


def logged() -> list[PgEvent]:
    decoder = Decoder("default")
    rows = LogEntry.objects.order_by("pk").values_list("pk", "xid", "at", "source", "key", "head", "body")
    return [decoder.logged(row) for row in rows]


def test_a_row_that_is_written_is_in_the_log_with_all_that_a_receiver_asks_for() -> None:
    with transaction.atomic(), pgsignals.context(actor=7):
        one = Account.objects.create(owner="ada", balance=5)
        one.balance = 6
        one.save()
        one.delete()
    inserted, updated, deleted = logged()
    assert (inserted.op, inserted.pk, dict(inserted.new)) == (
        "insert",
        inserted.pk,
        {"id": inserted.pk, "owner": "ada", "balance": 5, "note": ""},
    )
    assert updated.changed == {"balance"}
    assert (updated.old["balance"], updated.new["balance"]) == (5, 6)
    assert (deleted.op, deleted.old["balance"], deleted.new) == ("delete", 6, None)
    assert inserted.id < updated.id < deleted.id
    assert inserted.transaction == updated.transaction
    assert updated.context == {"actor": 7}
    assert updated.key == inserted.pk


def test_a_bulk_statement_leaves_a_row_for_each_of_its_rows() -> None:
    Account.objects.bulk_create(Account(owner=str(number)) for number in range(50))
    Account.objects.update(balance=3)
    events = logged()
    assert [event.op for event in events] == ["insert"] * 50 + ["update"] * 50
    assert sum(LogEntry.objects.values_list("rings", flat=True)) == 2


def test_a_key_of_the_declaration_orders() -> None:
    account = Account.objects.create()
    Entry.objects.create(account=account, amount=4)
    entry = logged()[-1]
    assert (entry.key, entry.new["amount"]) == (account.pk, 4)


def test_a_changed_key_is_a_delete_and_an_insert() -> None:
    account = Account.objects.create(owner="x")
    Account.objects.filter(pk=account.pk).update(id=900_000)
    assert sorted((event.op, event.pk) for event in logged()[1:]) == [("delete", account.pk), ("insert", 900_000)]


def test_a_message_is_appended_with_its_key() -> None:
    with pgsignals.context(actor=1):
        publish("app_events", {"type": "user.created", "text": "x" * 10_000}, durable=True, key="k")
    (message,) = logged()
    assert (message.op, message.channel, message.key, message.context) == ("message", "app_events", "k", {"actor": 1})
    assert message.payload["type"] == "user.created"


@pytest.mark.parametrize(
    ("change", "back"),
    [
        ("DROP COLUMN note", "ADD COLUMN note text NOT NULL DEFAULT ''"),
        ("RENAME note TO other", "RENAME other TO note"),
        (
            "ALTER note DROP DEFAULT, ALTER note TYPE bytea USING note::bytea",
            "ALTER note TYPE text USING note::text",
        ),
    ],
    ids=["dropped", "renamed", "retyped"],
)
def test_a_column_changed_by_hand_fails_no_write_and_the_whole_row_is_stored(change: str, back: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE ledger_account ALTER note SET DEFAULT 'n'")
        cursor.execute(f"ALTER TABLE ledger_account {change}")
        more = (", note", ", 'n'") if "bytea" in change else ("", "")
        try:
            cursor.execute(f"INSERT INTO ledger_account (owner, balance{more[0]}) VALUES ('raw', 8{more[1]})")
            cursor.execute("UPDATE ledger_account SET balance = 9")
            cursor.execute("DELETE FROM ledger_account")
        finally:
            cursor.execute(f"ALTER TABLE ledger_account {back}")
            cursor.execute("ALTER TABLE ledger_account ALTER note DROP DEFAULT")
    inserted, updated, deleted = logged()
    assert inserted.incomplete
    assert inserted.raw["new"]["balance"] == 8
    assert inserted.pk == inserted.raw["new"]["id"]
    assert (updated.raw["old"]["balance"], updated.raw["new"]["balance"]) == (8, 9)
    assert deleted.raw["old"]["owner"] == "raw"


def shapes() -> list[tuple[str, str, str]]:
    """What the log holds, without what tells one row from another."""
    rows = LogEntry.objects.order_by("pk").values_list("head", "body", "key")
    return [(head, re.sub("90000[1-3]", "ID", body), re.sub("90000[1-3]", "ID", key)) for head, body, key in rows]


@pytest.fixture
def everything(transactional_db: object) -> Iterator[None]:
    """A model with a column of every kind, in more fields than a function of PostgreSQL has arguments, is durable."""
    declaration = Notify(name="everything 100 %s", channel="100 %s", fields="__all__", durable=True)
    with connection.schema_editor() as editor:
        editor.add_constraint(Everything, declaration)
    yield
    with connection.schema_editor() as editor:
        editor.remove_constraint(Everything, declaration)


@pytest.mark.parametrize("model", [Account, Entry, Everything])
def test_a_single_row_is_stored_as_each_of_many(model: type[Model], everything: None) -> None:
    """A statement of one row goes another way through the trigger than one of many."""
    text = "100 %s of \"it\" \\ 'all' é"
    account = Account.objects.create(owner=text)
    made = {Account: {"owner": text}, Entry: {"account": account}, Everything: {"char": text, "integers": [1, 2]}}[
        model
    ]
    field, value = {Account: ("note", "%"), Entry: ("amount", 7), Everything: ("text", "%s")}[model]
    clear_log()
    with pgsignals.context(actor="% %s"):
        with transaction.atomic():
            one = model.objects.create(pk=900_001, **made)
            model.objects.filter(pk=one.pk).update(**{field: value})
            model.objects.filter(pk=one.pk).delete()
        single = shapes()
        clear_log()
        with transaction.atomic():
            model.objects.bulk_create([model(pk=900_002, **made), model(pk=900_003, **made)])
            model.objects.exclude(pk=account.pk).update(**{field: value})
            model.objects.exclude(pk=account.pk).delete()
        many = shapes()
    assert [shape for shape in single for _ in range(2)] == many
    assert len(single) == 3
    assert '"actor": "% %s"' in single[0][0] or '"actor":"% %s"' in single[0][0]


def test_rows_without_a_key_keep_their_values() -> None:
    """Which none has in a table that Django made. An update of one is a delete and an insert: it pairs with none."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE ledger_account ALTER id DROP IDENTITY, DROP CONSTRAINT ledger_account_pkey CASCADE")
        cursor.execute("ALTER TABLE ledger_account ALTER id DROP NOT NULL")
        try:
            cursor.execute("INSERT INTO ledger_account (owner, balance, note) VALUES ('a', 1, ''), ('b', 1, '')")
            cursor.execute("UPDATE ledger_account SET balance = 2")
            cursor.execute("DELETE FROM ledger_account")
        finally:
            cursor.execute("ALTER TABLE ledger_account ALTER id SET NOT NULL, ADD PRIMARY KEY (id)")
            cursor.execute("ALTER TABLE ledger_account ALTER id ADD GENERATED BY DEFAULT AS IDENTITY")
            cursor.execute(
                "ALTER TABLE ledger_entry ADD CONSTRAINT ledger_entry_account_id_again FOREIGN KEY (account_id) "
                "REFERENCES ledger_account (id) DEFERRABLE INITIALLY DEFERRED"
            )
    said = sorted(
        (event.op, (event.new or event.old)["owner"], (event.new or event.old)["balance"]) for event in logged()
    )
    inserted = [("insert", "a", 1), ("insert", "a", 2), ("insert", "b", 1), ("insert", "b", 2)]
    assert said == [("delete", "a", 1), ("delete", "a", 2), ("delete", "b", 1), ("delete", "b", 2), *inserted]
