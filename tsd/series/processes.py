"""Placeholder until the processes land: the parameters they are drawn from."""

PARAMETERS = ("level", "drift", "sigma", "tau")
TOP = 99
