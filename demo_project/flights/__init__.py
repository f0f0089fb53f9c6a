"""A day of flights out of New York: the app that shows pgsignals at work."""
