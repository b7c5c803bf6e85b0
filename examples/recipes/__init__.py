"""Recipes of `vqtok train`, one a preset; installed as vqtok.recipes and found by name."""
