"""The BERT family of Transformers, what training changes about it, and a model on disk.

Must not import checkpoint, parallel, training or runtime: a model knows no layout and no optimizer.
"""
