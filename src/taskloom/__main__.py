"""`python -m taskloom` is the command line."""

from taskloom.cli import main

if __name__ == "__main__":
    main()
