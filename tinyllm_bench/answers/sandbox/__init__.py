"""Running programs that a model wrote: a pool of limited workers that read them, and an interpreter that runs them."""
