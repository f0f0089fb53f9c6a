"""Every event of a request says who caused it."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import quote

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.contrib.auth import alogin, login
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import path, re_path

import pgsignals
from pgsignals.middleware import ContextMiddleware, short_path

from .conftest import Listener
from .shop.models import Customer


class OwnContext(ContextMiddleware):
    """As a user would write one."""

    def get_context(self, request: HttpRequest) -> dict[str, Any]:
        return {**super().get_context(request), "tenant": request.headers["X-Tenant"]}


class WritingContext(ContextMiddleware):
    """Writes itself while it is asked."""

    def get_context(self, request: HttpRequest) -> dict[str, Any]:
        Customer.objects.create(name="asked")
        return {"asked": True}


def write(request: HttpRequest) -> HttpResponse:
    Customer.objects.create(name="Ada")
    return HttpResponse()


def write_twice(request: HttpRequest) -> HttpResponse:
    with transaction.atomic(), pgsignals.context(reason="import", method="by hand"):
        Customer.objects.create(name="Ada")
    with transaction.atomic():
        Customer.objects.create(name="Grace")
    return HttpResponse()


def write_often(request: HttpRequest) -> HttpResponse:
    for name in ("Ada", "Grace", "Edith"):
        Customer.objects.create(name=name)
    return HttpResponse()


def do(request: HttpRequest) -> HttpResponse:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("DO $$BEGIN INSERT INTO shop_customer (name) VALUES ('Ada'); END$$")
    return HttpResponse()


def read(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(Customer.objects.count()))


def come_in(request: HttpRequest) -> HttpResponse:
    Customer.objects.create(name="before")
    login(request, User.objects.get())
    Customer.objects.create(name="after")
    return HttpResponse()


def replace(request: HttpRequest) -> HttpResponse:
    """A savepoint of the request's own transaction is rolled back between the writes."""
    with transaction.atomic():
        try:
            with transaction.atomic():
                Customer.objects.create(name="undone")
                raise ZeroDivisionError
        except ZeroDivisionError:
            Customer.objects.create(name="kept")
    return HttpResponse()


async def awrite(request: HttpRequest) -> HttpResponse:
    await Customer.objects.acreate(name="Ada")
    return HttpResponse()


async def acome_in(request: HttpRequest) -> HttpResponse:
    await alogin(request, await User.objects.aget())
    await Customer.objects.acreate(name="Ada")
    return HttpResponse()


urlpatterns = [
    path("write/", write),
    path("write_twice/", write_twice),
    path("write_often/", write_often),
    path("do/", do),
    path("read/", read),
    path("come_in/", come_in),
    path("replace/", replace),
    path("awrite/", awrite),
    path("acome_in/", acome_in),
    re_path("", write),
]

BEFORE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


@pytest.fixture
def install(settings: Any) -> Any:
    """Serve this module's views behind a middleware."""
    settings.ROOT_URLCONF = __name__

    def behind(name: str = "pgsignals.middleware.ContextMiddleware") -> None:
        settings.MIDDLEWARE = [*BEFORE, name]

    behind()
    return behind


@pytest.fixture
def ada(listener: Listener) -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def client(install: Any, ada: User) -> Client:
    client = Client()
    client.force_login(ada)
    return client


def contexts(listener: Listener) -> list[dict[str, Any]]:
    return [dict(event.context) for event in listener.events() if event.label == "shop.customer"]


def test_an_event_says_who_asked_for_what(listener: Listener, client: Client, ada: User) -> None:
    client.post("/write/", headers={"X-Request-ID": "a.1:b/+=-_"})
    assert contexts(listener) == [
        {"actor": ada.pk, "request_id": "a.1:b/+=-_", "method": "POST", "path": "/write/"},
    ]


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 201, "é", "a\n"])
def test_a_request_without_a_proper_id_gets_one(listener: Listener, client: Client, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given}
    for _ in range(2):
        client.post("/write_twice/", headers=headers)
    ids = [context["request_id"] for context in contexts(listener)]
    assert [len(one) for one in ids] == [32] * 4
    assert (ids[0], ids[2]) == (ids[1], ids[3])
    assert ids[0] != ids[2]


def test_nobody_in_particular_is_no_actor(listener: Listener, install: Any) -> None:
    Client().post("/write/")
    assert [sorted(context) for context in contexts(listener)] == [["method", "path", "request_id"]]


def test_it_needs_no_users(listener: Listener, rf: RequestFactory) -> None:
    ContextMiddleware(write)(rf.get("/write/"))
    assert [sorted(context) for context in contexts(listener)] == [["method", "path", "request_id"]]


def test_a_request_that_writes_nothing_loads_nobody_and_sends_nothing(client: Client) -> None:
    with CaptureQueriesContext(connection) as queries:
        client.get("/read/")
        with transaction.atomic():
            client.get("/read/")
    assert [query["sql"].split()[0] for query in queries.captured_queries if "customer" not in query["sql"]] == [
        "BEGIN",
        "COMMIT",
    ]


def test_what_is_written_after_the_request_has_no_context(listener: Listener, client: Client) -> None:
    client.post("/write/")
    Customer.objects.create(name="Grace")
    assert [bool(context) for context in contexts(listener)] == [True, False]


def test_a_context_inside_the_request_is_merged(listener: Listener, client: Client, ada: User) -> None:
    client.post("/write_twice/", headers={"X-Request-ID": "a1"})
    said = {"actor": ada.pk, "request_id": "a1", "method": "POST", "path": "/write_twice/"}
    assert contexts(listener) == [{**said, "reason": "import", "method": "by hand"}, said]


def test_who_logs_in_is_the_actor_from_then_on(listener: Listener, install: Any, ada: User) -> None:
    Client().post("/come_in/")
    before, after = contexts(listener)
    assert "actor" not in before
    assert after["actor"] == ada.pk
    assert before["request_id"] == after["request_id"]


def test_a_block_of_code_in_the_database_has_it(listener: Listener, client: Client, ada: User) -> None:
    client.post("/do/")
    assert [context["actor"] for context in contexts(listener)] == [ada.pk]


def test_a_request_in_one_transaction_keeps_it_after_a_rollback(
    listener: Listener, client: Client, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    client.post("/replace/")
    assert [context["actor"] for context in contexts(listener)] == [ada.pk]


def test_async_views_have_it_without_leaving_their_loop(listener: Listener, install: Any, ada: User) -> None:
    async def ask() -> None:
        client = AsyncClient()
        await client.post("/acome_in/")
        await client.post("/awrite/")
        await sync_to_async(connections.close_all)()

    async_to_sync(ask)()
    assert [context["actor"] for context in contexts(listener)] == [ada.pk, ada.pk]


def test_it_takes_the_kind_of_what_comes_after_it(rf: RequestFactory) -> None:
    assert not iscoroutinefunction(ContextMiddleware(write))
    assert iscoroutinefunction(ContextMiddleware(awrite))


def test_a_user_of_it_can_say_more(listener: Listener, install: Any, client: Client) -> None:
    install(f"{__name__}.OwnContext")
    client.post("/write/", headers={"X-Tenant": "north"})
    assert [context["tenant"] for context in contexts(listener)] == ["north"]


def test_a_context_that_cannot_be_made_costs_the_context_only(
    listener: Listener, install: Any, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    install(f"{__name__}.OwnContext")
    assert client.post("/write_twice/").status_code == 200  # no such header
    assert contexts(listener) == [{"reason": "import", "method": "by hand"}, {}]
    assert [(record.name, record.levelno) for record in caplog.records] == [("pgsignals", logging.ERROR)]


def test_a_context_that_is_too_big_costs_the_context_only(
    listener: Listener, install: Any, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    install(f"{__name__}.OwnContext")
    assert client.post("/write_twice/", headers={"X-Tenant": "x" * 1000}).status_code == 200
    assert contexts(listener) == [{"reason": "import", "method": "by hand"}, {}]
    assert caplog.text.count("at most 1024") == 1


def test_two_that_are_too_big_together_leave_what_the_program_said(
    listener: Listener, install: Any, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with pgsignals.context(reason="x" * 950):
        assert client.post("/write_often/").status_code == 200
    assert [list(context) for context in contexts(listener)] == [["reason"]] * 3
    assert caplog.text.count("at most 1024") == 1


def test_a_context_that_writes_while_it_is_asked_is_asked_once(listener: Listener, install: Any, ada: User) -> None:
    install(f"{__name__}.WritingContext")
    Client().post("/write/")
    assert contexts(listener) == [{}, {"asked": True}]


@pytest.mark.parametrize("tail", ["x" * 5000, "é" * 300, "🛫" * 300, "\x01" * 300, '"' * 300])
def test_no_path_is_too_long_for_the_actor(listener: Listener, client: Client, ada: User, tail: str) -> None:
    client.post(f"/{quote(tail)}", headers={"X-Request-ID": "x" * 200})
    (context,) = contexts(listener)
    assert context["actor"] == ada.pk
    assert f"/{tail}".startswith(context["path"])
    assert 60 < len(context["path"]) <= 200


def test_a_short_path_is_left_as_it_is() -> None:
    assert short_path("/orders/7/é/") == "/orders/7/é/"


def test_a_user_without_a_key_breaks_nothing(listener: Listener, rf: RequestFactory) -> None:
    request = rf.get("/")
    request.user = AnonymousUser()
    ContextMiddleware(write)(request)
    assert "actor" not in contexts(listener)[0]
