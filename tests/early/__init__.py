"""An app whose data migration writes a durable model, and whose name comes before `pgsignals`."""
