"""What ``vqtok bench`` measures, installed as ``vqtok.benchmarks``: one case a file, one harness (harness.py)."""
