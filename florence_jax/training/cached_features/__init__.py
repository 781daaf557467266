"""The outputs of a frozen vision tower, computed once an image and read from disk ever after."""
