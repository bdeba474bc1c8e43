"""sparsespec: lossless self-speculative decoding. Its rooms are `builder`, `plugins` and `runtime`.

An installed package has this file so that no folder of the same name, such as a clone's, is taken for it.
"""
