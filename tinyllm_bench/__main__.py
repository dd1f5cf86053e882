"""`python -m tinyllm_bench`: the form that `accelerate launch -m` needs."""

from tinyllm_bench.cli import main

if __name__ == "__main__":
    main()
