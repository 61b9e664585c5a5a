"""The eager twins of the loss kernels: the same arguments and results, plain PyTorch, slow and obvious."""
