"""The embedded default tokenizer, as a model folder."""
