"""`python -m l2c` is the program `l2c`; `accelerate launch -m l2c` starts several processes of it."""

from l2c.cli.main import main

if __name__ == "__main__":
    main()
