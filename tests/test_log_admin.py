"""The log in the admin: everybody who may look sees, nobody changes but who may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from pgsignals import PgEvent, on_pg_event, publish
from pgsignals.durable import control
from pgsignals.models import DeadLetter, Group, LogEntry, ParkedEvent

from .ledger.models import Account
from .relaying import Box, only_receivers_of_this_test
from .working import clear_log, drained

pytestmark = pytest.mark.django_db(transaction=True)

MODELS = ["logentry", "group", "partition", "worker", "parkedevent", "deadletter", "delayedmessage"]


@pytest.fixture(autouse=True)
def box(transactional_db: object) -> Iterator[Box]:
    """A group that has failed for one event; then it takes what has a note."""
    clear_log()
    box = Box()
    with only_receivers_of_this_test():

        @on_pg_event(Account, "insert", group="billing", max_attempts=1)
        def bill(event: PgEvent) -> None:
            if not event.new["note"]:
                raise RuntimeError("a note is missing")
            box.put(event.new["note"])

        drained("billing")
        Account.objects.create(owner="ada")
        drained("billing")
        yield box
    clear_log()


def client_of(*permissions: str) -> Client:
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def viewer() -> Client:
    return client_of(*(f"view_{model}" for model in MODELS))


@pytest.mark.parametrize("model", MODELS)
def test_who_may_look_sees_the_list(viewer: Client, model: str) -> None:
    assert viewer.get(reverse(f"admin:pgsignals_{model}_changelist")).status_code == 200


@pytest.mark.parametrize("model", MODELS)
def test_who_may_not_look_does_not(model: str) -> None:
    assert client_of().get(reverse(f"admin:pgsignals_{model}_changelist")).status_code == 403


@pytest.mark.parametrize("model", MODELS)
def test_nobody_adds(admin_client: Client, model: str) -> None:
    assert admin_client.get(reverse(f"admin:pgsignals_{model}_add")).status_code == 403


def test_an_event_is_shown_with_what_it_says(viewer: Client) -> None:
    entry = LogEntry.objects.get()
    page = viewer.get(reverse("admin:pgsignals_logentry_change", args=[entry.pk])).content.decode()
    assert "ada" in page
    assert "account_log" in page
    assert "Save" not in page


def test_the_log_is_searched_by_model_and_key(viewer: Client) -> None:
    key = LogEntry.objects.get().key
    Account.objects.create(owner="grace")
    url = reverse("admin:pgsignals_logentry_changelist")
    found = viewer.get(url, {"q": f"ledger.account {key}"}).context["cl"].queryset
    assert [one.key for one in found] == [key]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("app_events", ["ada lovelace", "7"]),
        ("app_events ada\\ lovelace", []),
        ('"ada lovelace"', ["ada lovelace"]),
        ('App_Events "7"', ["7"]),
        ("app_events 7", ["7"]),
        ("ledger.Account app_events", []),
        ("2000-01-01 app_events", ["ada lovelace", "7"]),
        ("app_events 2000-01-01 2000-01-02T06:30", []),
        ("app_events 2999-01-01T06:00", []),
    ],
)
def test_the_log_is_searched_by_channel_key_and_time(viewer: Client, asked: str, found: list[str]) -> None:
    publish("app_events", 1, durable=True, key="ada lovelace")
    publish("app_events", 2, durable=True, key="7")
    page = viewer.get(reverse("admin:pgsignals_logentry_changelist"), {"q": asked})
    keys = page.context["cl"].queryset.order_by("pk").values_list("key", flat=True)
    assert [json.loads(key) for key in keys] == found


def test_the_log_is_narrowed_to_what_was_written_lately(viewer: Client) -> None:
    LogEntry.objects.update(at=timezone.now() - timedelta(minutes=30))
    Account.objects.create(owner="now")
    url = reverse("admin:pgsignals_logentry_changelist")
    counts = {past: viewer.get(url, {"past": past}).context["cl"].queryset.count() for past in ("600", "3600", "x")}
    assert counts == {"600": 1, "3600": 2, "x": 2}


def test_parked_events_are_searched_too(viewer: Client) -> None:
    letter = DeadLetter.objects.get()
    control.requeue("default", [letter.pk])
    url = reverse("admin:pgsignals_parkedevent_changelist")
    for asked, count in ((f"ledger.account {letter.key}", 1), ("nobody", 0)):
        assert viewer.get(url, {"q": asked}).context["cl"].queryset.count() == count


def test_a_group_is_shown_with_its_lag(viewer: Client) -> None:
    Account.objects.bulk_create(Account() for _ in range(123))
    page = viewer.get(reverse("admin:pgsignals_group_changelist")).content.decode()
    assert ">123<" in page
    assert "nobody works" in page


def test_only_who_may_change_groups_pauses_them(viewer: Client, admin_client: Client) -> None:
    url = reverse("admin:pgsignals_group_changelist")
    given = {"action": "pause", "_selected_action": ["billing"]}
    viewer.post(url, given)
    assert Group.objects.get().paused_at is None
    admin_client.post(url, given)
    assert Group.objects.get().paused_at is not None
    admin_client.post(url, {**given, "action": "resume"})
    assert Group.objects.get().paused_at is None


def test_a_dead_letter_is_put_right_and_tried_again(admin_client: Client, box: Box) -> None:
    letter = DeadLetter.objects.get()
    url = reverse("admin:pgsignals_deadletter_change", args=[letter.pk])
    page = admin_client.get(url).content.decode()
    assert "a note is missing" in page
    assert "Saving has the group handle the event again" in page
    assert "Save and continue" not in page
    wrong = admin_client.post(url, {"body": "{not json"})
    assert "This is not JSON" in wrong.content.decode()
    right = letter.body.replace('""]', '"mended"]')
    assert right != letter.body
    assert admin_client.post(url, {"body": right}).status_code == 302
    assert not DeadLetter.objects.exists()
    drained("billing")
    assert box.items == ["mended"]


def test_only_who_may_change_dead_letters_has_them_tried_again(viewer: Client, admin_client: Client) -> None:
    url = reverse("admin:pgsignals_deadletter_changelist")
    given = {"action": "requeue", "_selected_action": [DeadLetter.objects.get().pk]}
    viewer.post(url, given)
    assert DeadLetter.objects.exists()
    admin_client.post(url, given)
    assert ParkedEvent.objects.exists()
    drained("billing")
    given = {"action": "discard", "_selected_action": [DeadLetter.objects.get().pk]}
    admin_client.post(url, given)
    assert not DeadLetter.objects.exists()


def test_no_page_of_ours_has_a_script_of_its_own_in_it(admin_client: Client) -> None:
    page = admin_client.get(reverse("admin:pgsignals_deadletter_change", args=[DeadLetter.objects.get().pk]))
    assert "<script>" not in page.content.decode()
