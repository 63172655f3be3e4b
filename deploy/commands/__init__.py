"""The commands of `python -m deploy`: what each asks, shows and then does."""
