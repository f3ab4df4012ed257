"""Architectures and weights from and to the other systems, and the networks that they published."""
