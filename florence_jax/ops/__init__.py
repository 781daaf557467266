"""Operations of the model, one family per group of files: reference, XLA forms, Pallas kernels.

The first file of a family (`depthwise_conv.py`) picks the form that is fastest on the platform
being compiled for. Files that end in `_pallas` hold a TPU kernel, the predicate that says when it
applies and, where no other file has it, the reference that it equals.
"""
