"""A user's own pictures: the garment found and made the image that the networks know, and the figures of predictions."""
