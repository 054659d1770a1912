"""Tests mirror the modules; each asserts what a user would notice."""
