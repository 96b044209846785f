"""Makers of the committed fixtures: see tests/make_fixtures.py."""
