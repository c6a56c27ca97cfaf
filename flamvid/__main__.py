"""`python -m flamvid` is `flamvid`."""

from flamvid.cli.main import main

if __name__ == "__main__":
    main()
