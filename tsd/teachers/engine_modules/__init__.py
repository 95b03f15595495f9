"""Modules that an engine's server imports, in whatever environment it runs. The folder is on its PYTHONPATH."""
