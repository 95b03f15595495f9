"""Distil the reading of time series into small language models, on Ray."""

__version__ = "0.1.0"
