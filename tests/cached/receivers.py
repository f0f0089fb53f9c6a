"""Keep the cache of orders in this process's memory up to date."""

from django.core.cache import caches

from pgsignals import on_pg_event, on_pg_gap
from pgsignals.ready import invalidate
from tests.shop.models import Order

on_pg_event(Order, everywhere=True)(invalidate("order:{pk}", cache="rows", clear=True))


@on_pg_gap(everywhere=True, start=True)
def drop_everything(gap):
    caches["rows"].clear()
