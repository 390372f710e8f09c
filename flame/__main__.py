"""`python -m flame` is the command `flame`."""

from flame.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
