"""One module for each command of `python -m spos`; `configure(parser)` adds its flags."""
