"""The network, its initialisation, and its fused batch norm, ReLU and dropout."""
