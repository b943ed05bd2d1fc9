"""`python -m ndani` is `ndani`."""

from ndani.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
