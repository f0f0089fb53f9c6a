"""A cache of orders in this process's memory."""

from django.core.cache import caches

from tests.shop.models import Order


def order(pk):
    """An order, from this process's memory if it is there."""
    return caches["rows"].get_or_set(f"order:{pk}", lambda: Order.objects.get(pk=pk))
