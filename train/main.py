"""`python -m train.main`: train or fine-tune a Florence-2, as `florence-jax train` does."""

from florence_jax.cli.train import end_process, main

if __name__ == "__main__":
    end_process(main())
