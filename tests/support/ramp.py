"""A ramp of the length that the students of `tsd explain` read."""

LENGTH = 32
RAMP = [round(99 * i / (LENGTH - 1)) for i in range(LENGTH)]
