"""Numbers and pictures that say how good a tokenizer is, and whether an installation is sound."""
