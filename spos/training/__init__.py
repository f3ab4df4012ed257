"""The one training loop, for supernet and subnet."""
