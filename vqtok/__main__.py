"""``python -m vqtok``."""

from vqtok.cli import main

main()
