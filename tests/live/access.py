"""As by default, but looked up again all the time, so that a test need not wait for it."""

from pgsignals.live import access


class Access(access.Access):
    recheck_after = 0.0
