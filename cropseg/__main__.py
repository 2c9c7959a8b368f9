"""`python -m cropseg` is `cropseg`."""

from cropseg.cli import main

if __name__ == "__main__":
    main()
