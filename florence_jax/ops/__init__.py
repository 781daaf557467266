"""Operations of the model: reference forms, XLA forms and Pallas kernels."""
