"""What a series is: the `processes` it may follow, and the `truth` that is measured on it."""
