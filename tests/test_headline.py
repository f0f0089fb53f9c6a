"""The whole way: a write, a trigger, NOTIFY, the relay, a channel layer, a WebSocket; with real servers throughout."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Permission, User
from django.test import Client

from .conftest import connect
from .servers import Browser, browse, daphne, redis_server, running

pytestmark = pytest.mark.django_db(transaction=True)


def log_in(*permissions: str) -> str:
    """The session key of a new user."""
    user = User.objects.create_user("ada", password="a")
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return str(client.session.session_key)


def write(statement: str) -> None:
    with connect() as writer:
        writer.execute(statement)


def test_a_raw_sql_write_reaches_a_websocket_through_listen_and_redis(child_environment: dict[str, str]) -> None:
    """`manage.py listen` in its own process, channels_redis on a Redis server, a WebSocket on daphne."""
    session = log_in("view_order")
    with redis_server() as url:
        environment = {**child_environment, "PGSIGNALS_TEST_REDIS": url}
        listen = [sys.executable, "-m", "django", "listen"]
        with daphne("application", environment) as (_, port), running(listen, environment) as relay:
            relay.wait_for("Listening to")

            async def work(browser: Browser) -> tuple[dict[str, Any], dict[str, Any]]:
                await sync_to_async(write)("INSERT INTO shop_order (id, state, total, note) VALUES (5, 'new', 1, '')")
                inserted = await browser.until(lambda message: message["type"] == "event")
                await sync_to_async(write)("UPDATE shop_order SET state = 'paid'")
                return inserted, await browser.until(lambda message: message["type"] == "event")

            inserted, updated = asyncio.run(browse(port, session, ["shop.order"], work))
            assert inserted["events"] == [["insert", 5, []]]
            assert updated["events"] == [["update", 5, ["status"]]]
            assert updated["topic"] == "shop.order"
            assert relay.end() == 0


def test_a_lost_listener_shows_in_the_browser_and_a_gap_follows(child_environment: dict[str, str]) -> None:
    session = log_in("view_order")
    with redis_server() as url:
        environment = {**child_environment, "PGSIGNALS_TEST_REDIS": url}
        listen = [sys.executable, "-m", "django", "listen"]
        with daphne("application", environment) as (_, port), running(listen, environment) as relay:
            relay.wait_for("Listening to")

            async def work(browser: Browser) -> list[str]:
                await sync_to_async(write)(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgsignals%'"
                )
                lost = await browser.until(lambda message: message["type"] == "lost")
                gap = await browser.until(lambda message: message["type"] == "gap")
                return [lost["cause"], gap["cause"]]

            causes = asyncio.run(browse(port, session, ["shop.order"], work))
            assert causes == ["terminating connection due to administrator command"] * 2
