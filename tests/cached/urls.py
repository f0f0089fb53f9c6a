"""Pages that say which process served them, and what its cache had."""

import os
import time

from django.core.cache import caches
from django.http import HttpRequest, JsonResponse
from django.urls import path

from pgsignals.listening import inprocess

from .orders import order


def show(request: HttpRequest, pk: int) -> JsonResponse:
    cached = f"order:{pk}" in caches["rows"]
    # Busy for a moment, so that the next request goes to another worker.
    time.sleep(0.05)
    return JsonResponse({"pid": os.getpid(), "status": order(pk).status, "cached": cached})


def sinks(request: HttpRequest) -> JsonResponse:
    relay = inprocess.start().relay
    return JsonResponse({"pid": os.getpid(), "sinks": [type(sink).__name__ for sink in relay.sinks]})


urlpatterns = [path("orders/<int:pk>", show), path("sinks", sinks)]
