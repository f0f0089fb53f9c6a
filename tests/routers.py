"""SQLite has no arrays and ranges: it gets the shop only."""

from __future__ import annotations

from typing import Any


class OneAppOnSQLite:
    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return app_label == "shop" if db == "sqlite" else None
