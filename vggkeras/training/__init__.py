"""Training a network as in section 3.1 of the paper."""
