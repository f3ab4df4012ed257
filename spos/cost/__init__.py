"""What an architecture costs: additive tables (no torch), and the counting that makes them."""
