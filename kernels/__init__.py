"""GPU kernels, installed as ``vqtok.kernels``; they know nothing of the package and are loaded on first use."""
