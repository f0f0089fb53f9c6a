"""Where things lie on the map: a conic projection that keeps areas true, and the ways that flights take on it.

The map's unit is a pixel of a picture WIDTH by HEIGHT; the page scales it. Knows no database.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from math import atan2, cos, degrees, hypot, radians, sin, sqrt

from . import day

WIDTH, HEIGHT = 900, 545

HOME = ("EWR", "JFK", "LGA")

Point = tuple[float, float]

# Albers' projection, with the parallels that maps of the United States use.
_SOUTH, _NORTH = radians(29.5), radians(45.5)
_CENTRE = radians(37.5), radians(-96)
_CONE = (sin(_SOUTH) + sin(_NORTH)) / 2
_C = cos(_SOUTH) ** 2 + 2 * _CONE * sin(_SOUTH)
_SCALE, _LEFT, _TOP = 1135.0, 449.0, 293.0

# The source has no place for these four.
_PLACES = {"BQN": (18.495, -67.129), "PSE": (18.008, -66.563), "SJU": (18.439, -66.002), "STT": (18.337, -64.973)}

_EDGE = 10.0
"""Pixels from the edge at which airports beyond it are shown."""

_NAMED = 12
"""Flights a day from which an airport is worth a name."""


@dataclass(frozen=True, slots=True)
class Spot:
    """An airport on the map."""

    code: str
    name: str
    x: float
    y: float
    radius: float
    named: bool
    """Whether its code is written beside it."""
    beyond: bool
    """Whether it lies outside, and this is where flights leave the map."""

    @property
    def is_home(self) -> bool:
        return self.code in HOME

    @property
    def anchor(self) -> str:
        return "end" if self.x > WIDTH - 45 else "start"

    @property
    def label_x(self) -> float:
        return self.x - self.radius - 3 if self.anchor == "end" else self.x + self.radius + 3


Way = tuple[float, float, float, float, float, float]
"""Begin, control point and end of the curve that a flight takes."""


def project(latitude: float, longitude: float) -> Point:
    """A place, in degrees, on the map; it may lie beyond its edges."""
    radius = sqrt(_C - 2 * _CONE * sin(radians(latitude))) / _CONE
    centre = sqrt(_C - 2 * _CONE * sin(_CENTRE[0])) / _CONE
    angle = _CONE * (radians(longitude) - _CENTRE[1])
    return _LEFT + _SCALE * radius * sin(angle), _TOP + _SCALE * (radius * cos(angle) - centre)


def knows(*codes: str) -> bool:
    """Whether these airports have a place on the map: those of the day have; others may be in the database."""
    return all(code in day.airports() for code in codes)


@cache
def way(origin: str, destination: str) -> Way:
    """The shortest way over the globe, as a quadratic curve, up to the map's edge."""
    one, other = _place(origin), _place(destination)
    (x, y), (middle_x, middle_y), (end_x, end_y) = project(*one), project(*_halfway(one, other)), project(*other)
    # The curve that passes through the middle.
    control_x, control_y = 2 * middle_x - (x + end_x) / 2, 2 * middle_y - (y + end_y) / 2
    return _cut((x, y, control_x, control_y, end_x, end_y))


@cache
def spots() -> tuple[Spot, ...]:
    """The airports of the day, those with most flights last, so that they lie on top."""
    flights = Counter(leg.destination for leg in day.legs())
    named: list[Point] = [project(*_place(code)) for code in HOME]
    found = [_spot(code, count, named) for code, count in flights.most_common()]
    home = [
        Spot(code, day.airports()[code].name, *_rounded(project(*_place(code))), 3.5, False, False) for code in HOME
    ]
    return (*reversed(found), *home)


def _spot(code: str, count: int, named: list[Point]) -> Spot:
    x, y = way("JFK", code)[4:]
    beyond = _is_beyond(project(*_place(code)))
    # A name needs room: 30 pixels beside other names, 13 above and below.
    is_named = count >= _NAMED and all(abs(x - there[0]) > 34 or abs(y - there[1]) > 13 for there in named)
    if is_named:
        named.append((x, y))
    return Spot(code, day.airports()[code].name, x, y, round(1.2 + sqrt(count) * 0.42, 1), is_named, beyond)


def _place(code: str) -> Point:
    airport = day.airports()[code]
    if airport.latitude is None or airport.longitude is None:
        return _PLACES[code]
    return airport.latitude, airport.longitude


def _halfway(one: Point, other: Point) -> Point:
    """The middle of the shortest way over the globe."""
    x, y, z = (a + b for a, b in zip(_vector(*one), _vector(*other), strict=True))
    return degrees(atan2(z, hypot(x, y))), degrees(atan2(y, x))


def _vector(latitude: float, longitude: float) -> tuple[float, float, float]:
    up, along = radians(latitude), radians(longitude)
    return cos(up) * cos(along), cos(up) * sin(along), sin(up)


def _is_beyond(point: Point) -> bool:
    return not (_EDGE <= point[0] <= WIDTH - _EDGE and _EDGE <= point[1] <= HEIGHT - _EDGE)


def _cut(whole: Way) -> Way:
    """The part of a curve that lies on the map."""
    x, y, control_x, control_y, end_x, end_y = whole
    if not _is_beyond((end_x, end_y)):
        return _rounded(whole)
    part = next((step / 200 for step in range(200, 0, -1) if not _is_beyond(_at(whole, step / 200))), 1.0)
    control = x + (control_x - x) * part, y + (control_y - y) * part
    return _rounded((x, y, *control, *_at(whole, part)))


def _at(curve: Way, part: float) -> Point:
    x, y, control_x, control_y, end_x, end_y = curve
    rest = 1 - part
    return (
        rest * rest * x + 2 * rest * part * control_x + part * part * end_x,
        rest * rest * y + 2 * rest * part * control_y + part * part * end_y,
    )


def _rounded(numbers: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(number, 1) for number in numbers)
