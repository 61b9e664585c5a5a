"""The eager twins of the loss kernels, in plain PyTorch: one module for each of `seqrec.kernels`, same signatures."""
