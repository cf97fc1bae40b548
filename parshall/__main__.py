"""`python -m parshall` is `parshall`."""

from parshall.cli import main

if __name__ == "__main__":
    main()
