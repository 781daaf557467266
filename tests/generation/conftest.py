"""transformers as a quiet reference: no gradients, no advice, one thread (its models are tiny)."""

import pytest
import torch
import transformers


@pytest.fixture(autouse=True)
def _quiet_reference():
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity(verbosity)
