"""Ordinary pages."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from .models import Parcel


@login_required
def parcels(request: HttpRequest) -> HttpResponse:
    """Two fragments, one of them about a single parcel."""
    found = Parcel.objects.all()
    return render(request, "live/parcels.html", {"parcels": found, "first": found.first()})


@login_required
def htmx(request: HttpRequest) -> HttpResponse:
    """A page whose fragment htmx fetches."""
    return render(request, "live/htmx.html", {**_counts(), "version": request.GET["version"]})


def count(request: HttpRequest) -> HttpResponse:
    """The fragment."""
    return HttpResponse(f"{Parcel.objects.filter(status='gone').count()} gone")


def _counts() -> dict[str, Any]:
    return {"gone": Parcel.objects.filter(status="gone").count()}
