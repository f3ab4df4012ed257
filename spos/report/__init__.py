"""One HTML page, and figures, of what a supernet, its search and the training from scratch did."""
