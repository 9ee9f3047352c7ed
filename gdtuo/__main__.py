"""`python -m gdtuo` is the command `gdtuo`."""

from .lab.cli import main

if __name__ == "__main__":
    main()
