"""`python -m synthgen` is the `synthgen` command."""

from synthgen.cli import main

if __name__ == "__main__":
    main()
