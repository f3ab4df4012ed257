"""Which architecture to try next; never imports torch."""
