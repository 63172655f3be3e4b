"""The laptop's side: the demo, pushing, deploying. Never in the image."""
