"""A project with live pages, for the tests that look at them in a browser."""
