"""`{% load pgsignals %}`."""
