"""Triton kernels, one op a file. Importing one imports triton, so ``vqtok.ops.triton`` does it on first use."""
