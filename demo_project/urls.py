"""The pages of the demo, what they ask for, and the admin."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import path
from django.views.generic import RedirectView

from .flights import acts, views

urlpatterns = [
    path("", views.front, name="board"),
    path("numbers/", views.numbers, name="numbers"),
    path("moment/", acts.moment, name="moment"),
    path("clock/", acts.set_clock, name="clock"),
    path("do/", acts.do, name="do"),
    path("journey/", views.show_journey, name="journey"),
    path("journey/follow/", acts.follow, name="follow"),
    path("durable/", views.show_durable, name="durable"),
    path("durable/hotel/", acts.fill_hotel, name="fill_hotel"),
    path("durable/worker/", acts.run_worker, name="run_worker"),
    path("durable/requeue/", acts.requeue, name="requeue"),
    path("durable/cancel/", acts.cancel_some, name="cancel_some"),
    path("favicon.ico", RedirectView.as_view(url=static("flights/icon.svg"))),
    path("admin/", admin.site.urls),
]
