"""What training and serving share: the platform's contract, errors, photos, and the artifact."""
