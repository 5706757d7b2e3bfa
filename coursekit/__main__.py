"""`python -m coursekit`: the command, also where the environment's folder of programs is not on PATH."""

from coursekit.cli.main import main

if __name__ == "__main__":
    main(prog_name="coursekit")
