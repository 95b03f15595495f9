"""What a series is: `processes` it may follow, their `design` and `drawing`, and the `truth` measured on it."""
