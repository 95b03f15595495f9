"""`python -m tsd` is the `tsd` command, for where the command itself is not on the PATH."""

from tsd.cli import main

if __name__ == "__main__":
    main()
