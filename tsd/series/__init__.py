"""What a series is: how it is drawn (`processes`) and what is measurably true of it (`truth`)."""
