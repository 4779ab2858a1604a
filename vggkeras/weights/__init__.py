"""Weights of other libraries, read into networks of ours and written back.

`load` has `pretrained`, `load_weights` and `init_from`; `save` has `save_weights`; `layouts` has
the table of how each library stores a network. They import Keras, so nothing is imported here.
"""
