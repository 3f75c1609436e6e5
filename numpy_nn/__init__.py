"""The hand-written parts of the NumPy network: layers, losses, optimizers, and a monitor of its training."""
