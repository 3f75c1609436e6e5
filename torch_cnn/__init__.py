"""The convolutional network in PyTorch: the network, its features, devices, figures."""
