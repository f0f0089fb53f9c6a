"""Faults, staged for real: `python -m pytest -m faults`."""
