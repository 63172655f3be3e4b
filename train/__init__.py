"""Training: channels of photos -> an artifact in the model folder."""
